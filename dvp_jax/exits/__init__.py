"""The method: confidence measures, vocabulary pruning, exit policies, thresholds, FLOP counts."""
