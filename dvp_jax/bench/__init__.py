"""Speed: time per token with forced exits, throughput, vocabulary scaling, collectives, and other decoders."""
