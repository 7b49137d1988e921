"""Synthetic data set: images with their boxes are drawn and written as CSV.

Six classes: filled (disc, triangle, cross), outlined (ring), textured (stripes) and a character
(letter_A), in any colour on cluttered backgrounds, from 8 px to half the image.
Rules that hold for every object (scenes.py beside this):

- its box is the tight box of its own pixels, covered or not, and lies inside the image;
- at least MIN_VISIBLE of its pixels stay visible;
- its colour is at least MIN_CONTRAST grey levels from MIN_CONTRAST_SHARE of the pixels around it;
- class, size and colour are drawn independently.

Image i of a split depends on (seed, split, i, short_side) alone: the same seed gives the same bytes
(with one version of Pillow), and a longer split begins with the shorter one.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m2det_jax.data.synthetic.scenes import draw_scene
from m2det_jax.data.synthetic.shapes import CLASS_NAMES, MIN_SIDE

EMPTY_EVERY = 25  # one image in 25 has no object
MIN_OBJECTS, MAX_OBJECTS = 2, 12  # of the other images, before those without a fitting position

_SPLITS = ("train", "val")


class DatasetFiles(NamedTuple):
    """The CSV files of a data set."""

    train: Path
    val: Path
    classes: Path


def _draw_split(root: Path, split: str, seed: int, count: int, short_side: tuple[int, int]) -> Path:
    """Writes the images of one split and its CSV file; returns the path of the CSV file."""
    (root / split).mkdir(parents=True, exist_ok=True)
    rows: list[tuple[object, ...]] = []
    for i in range(count):
        rng = np.random.default_rng((seed, _SPLITS.index(split), i))
        short = int(rng.integers(short_side[0], short_side[1] + 1))
        size = (short, int(short * rng.uniform(1.15, 1.5)))
        size = size[::-1] if rng.random() < 0.12 else size
        empty = i % EMPTY_EVERY == EMPTY_EVERY // 2
        wanted = 0 if empty else int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
        scene = draw_scene(rng, size, wanted)
        name = f"{split}/{i:06d}.jpg"
        # No chroma subsampling: it would smear an 8 px object's colour beyond its box.
        scene.image().save(root / name, quality=95, subsampling=0)
        names = [CLASS_NAMES[label] for label in scene.labels]
        objects = [(name, *box, label) for box, label in zip(scene.boxes, names, strict=True)]
        rows += objects or [(name, *[""] * 5)]
    return _write_csv(root / f"{split}.csv", rows)


def _write_csv(path: Path, rows: Sequence[tuple[object, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def draw_dataset(
    root: str | Path,
    *,
    seed: int = 0,
    num_train: int = 2800,
    num_val: int = 100,
    short_side: tuple[int, int] = (144, 192),
) -> DatasetFiles:
    """Writes train/*.jpg, val/*.jpg, train.csv, val.csv and classes.csv (CSV form) under `root`.

    The longer side of an image is 1.15 to 1.5 times its shorter side; an eighth of the images
    stand upright. The mean size is 168 x 222. Files of these names are replaced.

    Args:
        seed: 0 or more.
        num_train, num_val: images of each split, 1 or more.
        short_side: smallest and largest shorter side of an image in pixels, from 32.

    Raises:
        ValueError: if a number is out of range.
    """
    low, high = short_side
    if seed < 0 or num_train < 1 or num_val < 1 or not 4 * MIN_SIDE <= low <= high:
        raise ValueError(
            f"draw_dataset: seed >= 0, num_train and num_val >= 1, {4 * MIN_SIDE} <= short_side[0]"
            f" <= short_side[1] needed, got {seed=}, {num_train=}, {num_val=}, {short_side=}"
        )
    root = Path(root)
    train = _draw_split(root, "train", seed, num_train, short_side)
    val = _draw_split(root, "val", seed, num_val, short_side)
    ids = [(name, i) for i, name in enumerate(CLASS_NAMES)]
    return DatasetFiles(train, val, _write_csv(root / "classes.csv", ids))
