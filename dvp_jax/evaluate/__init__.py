"""Whole experiments: decode a task in several ways, score, sweep, choose settings, and report."""
