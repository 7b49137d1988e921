"""Comparison of two trained detectors on the same images: what got better and what worse."""
