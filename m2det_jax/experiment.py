"""`load_experiment`, at the name that experiments of users import it from."""

from m2det_jax.config.experiments import load_experiment

__all__ = ["load_experiment"]
