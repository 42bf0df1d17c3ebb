"""The paper, to be read in this order: confidence, vocabulary, pruning, policy, thresholds, cost."""
