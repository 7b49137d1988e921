"""Prediction on the user's images: `python -m m2det_jax.predict`, or `predict` from Python."""

from m2det_jax.predict.run import Predicted, predict

__all__ = ["Predicted", "cli", "predict"]


def cli() -> None:
    """Entry point of `m2det-predict`."""
    from m2det_jax.predict.__main__ import cli as run

    run()
