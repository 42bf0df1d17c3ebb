"""ml_collections configs, one per table row or figure."""
