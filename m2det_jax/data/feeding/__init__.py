"""Batches of an index: sampling, decoding, augmentation, in threads and processes."""
