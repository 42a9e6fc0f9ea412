"""Layer 1: from files on disk to batches. Formats, shards and their index, the order of samples, decoding, collation, loaders."""
