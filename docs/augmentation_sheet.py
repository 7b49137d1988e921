"""Sheet of augmentation examples, docs/augmentation.jpg: each step on the demo's drawn pictures.

python docs/augmentation_sheet.py [--out docs/augmentation.jpg] [--seed 3]
"""

import argparse
import pathlib
import tempfile

import numpy as np

from m2det_jax.build import augment_settings
from m2det_jax.config import default_config
from m2det_jax.data import read_classes, read_csv
from m2det_jax.data.augment.steps import augment
from m2det_jax.data.synthetic import draw_dataset
from m2det_jax.drawing.boxes import contact_sheet, draw_boxes

# Each row: its title and the pipeline; all probabilities are 1 here.
ROWS = (
    ("resized only", ()),
    ("expand", ("expand",)),
    ("crop", ("crop",)),
    ("flip", ("flip",)),
    ("photometric", ("photometric",)),
    ("affine", ("affine",)),
    ("scale_jitter", ("scale_jitter",)),
    ("paste", ("paste",)),
    ("mosaic", ("mosaic",)),
    ("mosaic, affine", ("mosaic", "affine")),
    ("mixup", ("mixup",)),
    ("the default", ("expand", "crop", "flip", "photometric")),
)
SIZE = (168, 222)  # height, width: the mean size of the drawn pictures


def draw_sheet(out: pathlib.Path, seed: int) -> None:
    """Writes a sheet with two examples of each row, in pairs."""
    config = default_config()
    config.data.image_size = SIZE
    # Weaker than the defaults, if those would hide the effect of a step.
    config.augment.update(
        jitter_scale=(0.4, 2.0), affine_rotation=20.0, mosaic_scale=(0.5, 1.0), expand_max=2.5
    )
    config.augment.update({key: 1.0 for key in config.augment if key.endswith("_probability")})
    pictures, titles = [], []
    with tempfile.TemporaryDirectory() as folder:
        files = draw_dataset(folder, num_train=40, num_val=1)
        index = read_csv(files.train, read_classes(files.classes))
        for title, pipeline in ROWS:
            config.augment.pipeline = pipeline
            settings = augment_settings(config)
            for example in (0, 1):
                rng = np.random.default_rng((seed, example, *map(ord, title)))
                image, boxes, rows = augment(index, example, settings, rng)
                labels = index.labels[rows]
                pictures.append(draw_boxes(image, boxes, labels, index.class_names))
                titles.append(title)
    sheet = contact_sheet(pictures, columns=6, cell_size=SIZE, titles=titles)
    sheet.save(out, quality=74, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="docs/augmentation.jpg")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    draw_sheet(options.out, options.seed)
