"""One token, top to bottom: config, program, cache, layer_loop, step, token_loop, api; then text and engine."""
