"""Plots, and the report in HTML."""
