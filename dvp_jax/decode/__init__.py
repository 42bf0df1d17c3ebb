"""Decoding, to be read in this order: config, program, cache, layer_loop, step, token_loop,
api; then oracle, text, engine and lanes, trace."""
