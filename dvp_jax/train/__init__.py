"""Training for early exit: losses over depths, the trainer, CALM's meta classifier."""
