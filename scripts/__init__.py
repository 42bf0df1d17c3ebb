"""One-off tools."""
