"""Training for early exit: losses over depths, the trainer, and CALM's meta classifier."""
