"""What early exit and pruning do to the tokens of real texts: one question a module."""
