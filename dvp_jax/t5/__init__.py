"""The model, stateless: config, layers, encoder and decoder, conversion of checkpoints."""
