"""Detection from Python: `m2det_jax.load`, images of any kind, and results in their pixels."""
