"""Data sets and what is done to them before the network: numpy, Pillow and grain, no jax."""

from m2det_jax.data.csv_source import read_classes, read_csv, write_classes, write_csv
from m2det_jax.data.errors import DataError
from m2det_jax.data.images import load_image, read_size
from m2det_jax.data.index import DetectionIndex, split_by_image
from m2det_jax.data.pipeline import eval_batches, train_batches
from m2det_jax.data.settings import AugmentSettings, ResizeSettings

__all__ = [
    "AugmentSettings",
    "DataError",
    "DetectionIndex",
    "ResizeSettings",
    "eval_batches",
    "load_image",
    "read_classes",
    "read_csv",
    "read_size",
    "split_by_image",
    "train_batches",
    "write_classes",
    "write_csv",
]
