"""Which images a config names for training, validation and evaluation, and what is kept of them."""
