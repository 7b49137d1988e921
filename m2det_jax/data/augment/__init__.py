"""Random changes of training pictures and their boxes."""
