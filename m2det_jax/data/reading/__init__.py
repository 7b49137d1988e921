"""Annotations to an index: rows of CSV files, their checks, sources of the user's own."""
