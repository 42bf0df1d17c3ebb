"""Experiments: decode tasks with several methods, score the texts, sweep settings, select one, and report."""
