"""A detector and a run small enough for seconds, shared by the tests of the verbs."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from m2det_jax import prepare
from m2det_jax.config import default_config
from m2det_jax.data.synthetic import DatasetFiles
from m2det_jax.evaluate import step_settings
from m2det_jax.optimizer import make_optimizer, make_schedule
from m2det_jax.train_state import TrainState, place
from m2det_jax.train_step import make_train_step

NUM_TRAIN, NUM_VAL = 24, 12

# Non-square; nothing in the compiled step depends on the length of the run.
TINY = {
    "batch_size": 8,
    "data.image_size": (64, 96),
    "model.backbone_width": 0.125,
    "model.backbone_norm": True,
    "model.num_levels": 2,
    "model.num_scales": 2,
    "model.shallow_channels": 16,
    "model.deep_channels": 16,
    "model.reduced_channels": 8,
    "model.tum_width": 16,
    "model.tum_out": 8,
    "model.norm_momentum": 0.9,
    "optimizer.learning_rate": 0.005,
    "optimizer.reference_batch_size": 8,
    "optimizer.schedule": "constant",
    "optimizer.warmup_epochs": 0.0,
    "optimizer.ema_decay": 0.9,
    "eval.batch_size": 8,
}


def tiny_config(files: DatasetFiles | None = None, overrides: dict[str, Any] | None = None):
    """Returns a tiny config on the data set `files`, with overrides by dotted key."""
    config = default_config()
    for name, file in files._asdict().items() if files else ():
        config.data[f"{name}_csv"] = str(file)
    config.update_from_flattened_dict(TINY | (overrides or {}))
    return config


def make_step(config, detector, num_images: int = NUM_TRAIN):
    """Returns (the pure train step of a config, neither jitted nor sharded; its optimiser)."""
    plan = prepare.make_plan(config, num_images)
    settings = prepare.make_optimizer_settings(config, plan, num_images)
    optimizer = make_optimizer(settings, detector.model.frozen_paths())
    step = make_train_step(detector, optimizer, make_schedule(settings), step_settings(config))
    return step, optimizer


@contextlib.contextmanager
def counted_traces():
    """Yields a list that grows by one whenever a train step prepared inside is traced."""
    traces, make = [], prepare.make_train_step

    def counting(*args):
        step = make(*args)

        @functools.wraps(step)
        def train_step(state, batch):
            traces.append("trace")
            return step(state, batch)

        return train_step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "make_train_step", counting)
        yield traces


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """A prepared run on all devices, its fresh state in host memory, and how often it was traced."""

    config: Any
    run: prepare.Run
    initial: TrainState
    traces: list[str]

    def fresh_state(self) -> TrainState:
        """A state of its own: steps donate theirs."""
        return place(self.initial, self.run.replicated)

    def step(self, state: TrainState, batch: dict[str, np.ndarray]):
        """One step of the shipped, jitted, sharded and donating function."""
        return self.run.train_step(state, jax.device_put(batch, self.run.by_batch))


def random_batch(seed: int, size: int = 8, num_classes: int = 8) -> dict[str, np.ndarray]:
    """Returns a batch of 64 x 96 pictures with 1 to 3 objects an image, padded to 8.

    The pictures are of large blocks: pixel noise would average out, and batch norms of nearly
    equal numbers blow up rounding errors.
    """
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (size, 4, 6, 3), np.uint8)
    corner = rng.uniform(0, (48, 24), (size, 8, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(12, 40, (size, 8, 2))], -1)
    mask = np.arange(8) < rng.integers(1, 4, (size, 1))
    return {
        "image": blocks.repeat(16, axis=1).repeat(16, axis=2),
        "boxes": (boxes * mask[..., None]).astype(np.float32),
        "labels": (rng.integers(0, num_classes, (size, 8)) * mask).astype(np.int32),
        "mask": mask,
    }


def assert_trees_equal(actual, expected) -> None:
    """Asserts the same structure, shapes, dtypes and bits."""
    actual, expected = jax.device_get((actual, expected))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a, e = np.asarray(a), np.asarray(e)
        assert (a.shape, a.dtype) == (e.shape, e.dtype), path
        np.testing.assert_array_equal(a, e, err_msg=jax.tree_util.keystr(path))
