"""Speed: time per token with forced exits, throughput, collectives, and other decoders beside ours."""
