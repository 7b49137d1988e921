"""Synthetic data set: `python -m m2det_jax.data.synthetic --out DIR`."""

from m2det_jax.data.synthetic.dataset import DatasetFiles, draw_dataset
from m2det_jax.data.synthetic.shapes import CLASS_NAMES

__all__ = ["CLASS_NAMES", "DatasetFiles", "draw_dataset"]
