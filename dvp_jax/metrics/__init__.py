"""Metrics of text, each in percent."""
