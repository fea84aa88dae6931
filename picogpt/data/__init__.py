"""From text to batches: tokenizer, corpora, shards, prepare, loader."""
