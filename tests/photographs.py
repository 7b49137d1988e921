"""Real photographs of many sizes, in all modes and kinds of files that are met."""

import itertools
import pathlib

import numpy as np
from PIL import Image

from m2det_jax.data import read_size


def as_it_is(image, path):
    image.save(path.with_suffix(".jpg"))


def turned(image, path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path.with_suffix(".jpg"), exif=exif)


def large(image, path):  # decoded at a fraction of its size
    image.resize((2000, 1500)).save(path.with_suffix(".jpg"))


def sixteen_bit(image, path):
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path.with_suffix(".png"))


def transparent(image, path):
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path.with_suffix(".png"))


def in_mode(mode, suffix):
    return lambda image, path: image.convert(mode).save(path.with_suffix(suffix))


KINDS = [as_it_is, turned, large, sixteen_bit, transparent]
KINDS += [in_mode("L", ".jpg"), in_mode("CMYK", ".jpg"), in_mode("P", ".png"), in_mode("1", ".bmp")]


def write_photographs(
    bccd_dir: pathlib.Path, folder: pathlib.Path, number: int
) -> list[pathlib.Path]:
    """Writes parts of the photographs of two data sets to a folder; returns their paths."""
    folders = [bccd_dir / "images", bccd_dir.parent / "cards" / "images"]
    real = [sorted(inside.rglob("*.jp*g")) for inside in folders if inside.is_dir()]
    paths = list(itertools.chain(*zip(*real, strict=False)))
    rng = np.random.default_rng(0)
    for i, path in enumerate(paths[:number]):
        with Image.open(path) as image:
            image = image.convert("RGB")
        left, top = (int(side * rng.uniform(0, 0.4)) for side in image.size)
        KINDS[i % len(KINDS)](image.crop((left, top, *image.size)), folder / f"{i:02d}")
    found = sorted(folder.iterdir())
    assert len(found) == number and len({read_size(path) for path in found}) > 0.8 * number
    return found
