"""Decoding, to be read in this order: config, cache, step, token_loop, api; then text, engine and lanes, trace."""
