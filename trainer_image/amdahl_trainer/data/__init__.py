"""From text to batches: corpus, tokens, packing, order, loader. Each is exact given its inputs."""
