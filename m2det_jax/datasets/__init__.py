"""Data sets that a config names for training, validation and evaluation, and their record."""
