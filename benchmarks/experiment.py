"""Model of an experiment with random weights and random input, for benchmarks.

B batch, M objects of an image (padded), C classes, H, W.
"""

import argparse
import ast
from collections.abc import Callable, Iterable

import jax
import numpy as np

from m2det_jax.build import build_detector
from m2det_jax.config import Config, resolve
from m2det_jax.config.experiments import load_experiment
from m2det_jax.detector.detector import Detector
from m2det_jax.model import init_variables
from m2det_jax.run.cost import count_flops


def add_arguments(parser: argparse.ArgumentParser, config: str = "vgg512") -> None:
    """Adds the flags --config and --set; `load` takes their values."""
    parser.add_argument("--config", default=config, help=f"experiment (default: {config})")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the config, such as model.dtype=bfloat16; can be repeated",
    )


def load(name: str, overrides: Iterable[str] = ()) -> Config:
    """Returns an experiment's config with overrides "section.key=value".

    Raises:
        KeyError: if there is no such key.
        TypeError: if the value has another type.
        ValueError: if the value is not valid.
    """
    config = load_experiment(name).lock()
    for override in overrides:
        key, _, text = override.partition("=")
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text  # a plain word
        config.update_from_flattened_dict({key: value})
    return resolve(config)


def detector_with_variables(config: Config, num_classes: int) -> tuple[Detector, dict]:
    """Returns the detector of a config and random variables on the device."""
    detector = build_detector(config, tuple(f"class {i}" for i in range(num_classes)))
    size = detector.resize.image_size
    variables = init_variables(detector.model, size, seed=0, prior=detector.class_prior)
    return detector, jax.device_put(variables)


def forward_pass(detector: Detector) -> Callable[[dict, jax.Array], dict]:
    """Returns the function (variables, uint8 images [B, H, W, 3]) -> raw outputs, not jitted."""

    def forward(variables: dict, images: jax.Array) -> dict:
        return detector.model.apply(variables, detector.normalize(images), train=False)

    return forward


def forward_flops(detector: Detector, variables: dict, batch_size: int) -> int:
    """Returns the floating-point operations of a forward pass."""
    images = jax.ShapeDtypeStruct((batch_size, *detector.resize.image_size, 3), np.uint8)
    return count_flops(forward_pass(detector), variables, images)


def random_images(detector: Detector, batch_size: int) -> np.ndarray:
    """Returns noise, uint8 [B, H, W, 3]."""
    shape = (batch_size, *detector.resize.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def random_objects(
    image_size: tuple[int, int], num_classes: int, batch_size: int, count: int
) -> dict[str, np.ndarray]:
    """Returns boxes float32 [B, M, 4], labels int32 [B, M] and mask bool [B, M], without padding.

    The logarithm of each side is uniform, from 1/40 to 1/2 of the image side. Each box is inside
    the image.

    Args:
        image_size: (height, width) in pixels.
        num_classes: labels are 0 .. num_classes - 1.
        batch_size: number of images, B.
        count: objects in each image, M.
    """
    rng = np.random.default_rng(1)
    extent = np.array(image_size[::-1], np.float64)  # x, y
    sides = extent * np.exp(rng.uniform(np.log(1 / 40), np.log(1 / 2), (batch_size, count, 2)))
    low = rng.uniform(0, 1, (batch_size, count, 2)) * (extent - sides)
    return {
        "boxes": np.concatenate([low, low + sides], axis=-1).astype(np.float32),
        "labels": rng.integers(0, num_classes, (batch_size, count)).astype(np.int32),
        "mask": np.ones((batch_size, count), bool),
    }
