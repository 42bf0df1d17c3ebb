"""Questions about what early exit and pruning do to the tokens of real texts, one in each module."""
