"""ml_collections configs, one for each table or figure."""
