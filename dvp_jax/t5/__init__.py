"""The T5 model as pure functions of its parameters: config, layers, checkpoints, sharding."""
