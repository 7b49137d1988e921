"""`load_experiment`, under the name by which users' experiments import it."""

from m2det_jax.config.experiments import load_experiment

__all__ = ["load_experiment"]
