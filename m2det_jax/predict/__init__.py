"""Prediction on images and videos: `python -m m2det_jax.predict`, or `predict` from Python."""

from m2det_jax.predict.run import Predicted, predict
from m2det_jax.predict.video import predict_videos

__all__ = ["Predicted", "cli", "predict", "predict_videos"]


def cli() -> None:
    """Entry point of `m2det-predict`."""
    from m2det_jax.predict.__main__ import cli as run

    run()
