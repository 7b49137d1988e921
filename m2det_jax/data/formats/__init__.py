"""Formats of whole data sets: each module reads one to `Rows`, and writes an index in it."""
