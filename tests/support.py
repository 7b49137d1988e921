"""Test helpers: a tiny detector and a tiny run, which take seconds."""

import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import m2det_jax
from m2det_jax.build import build_detector, step_settings
from m2det_jax.config import Config, default_config
from m2det_jax.config.dotted import freeze, to_dict, with_values
from m2det_jax.data.synthetic import DatasetFiles
from m2det_jax.model import init_variables
from m2det_jax.run.checkpoint import drop_old, make_meta, open_manager, record_evaluation, save
from m2det_jax.run.devices import data_mesh, place, state_sharding
from m2det_jax.run.state import TrainState, create_train_state
from m2det_jax.training import prepare
from m2det_jax.training.optimizer import make_optimizer, make_schedule
from m2det_jax.training.plan import make_optimizer_settings, make_plan
from m2det_jax.training.step import IntervalMetrics, make_train_step

NUM_TRAIN, NUM_VAL = 24, 12

PROGRESS = {"AP": 0.25, "best_AP": 0.5, "evaluations_since_best": 2}

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


# 3 steps per epoch, 6 in total.
SHORT = {"epochs": 2.0, "eval.every_epochs": 1.0, "log.every_steps": 3, "eval.max_detections": 20}


def tiny_config(
    files: DatasetFiles | None = None, overrides: dict[str, Any] | None = None
) -> Config:
    """Returns a tiny config on the data set `files`, with overrides by dotted key; unchecked."""
    config = default_config()
    for name, file in files._asdict().items() if files else ():
        config.data[f"{name}_csv"] = str(file)
    config.update_from_flattened_dict(TINY | (overrides or {}))
    return freeze(config)


def short_config(files: DatasetFiles, **overrides) -> Config:
    """Returns the tiny config of a run of six steps; `data__val_csv` stands for data.val_csv."""
    return tiny_config(files, SHORT | _dotted(overrides))


def changed(config: Config, **overrides) -> Config:
    """Returns a config with other values; `data__val_csv` stands for data.val_csv."""
    return with_values(config, _dotted(overrides))


def _dotted(overrides: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in overrides.items()}


def make_step(config, detector, num_images: int = NUM_TRAIN, mesh=None):
    """Returns (the pure train step of a config, neither jitted nor sharded; its optimiser)."""
    plan = make_plan(config, num_images)
    settings = make_optimizer_settings(config, plan, num_images)
    optimizer = make_optimizer(settings, detector.model.frozen_paths())
    schedule = make_schedule(settings)
    step = make_train_step(detector, optimizer, schedule, step_settings(config), mesh)
    return step, optimizer


@contextlib.contextmanager
def warnings_of_run():
    """Yields a list; the warnings that the package logs inside are added to it."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("m2det_jax")
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)


def import_or_skip(name: str, target: str = "test-torch"):
    """Returns a module that `make test` does not install, or skips the test.

    torch and torchvision are several GiB; jax2onnx is installed without its dependencies. The
    target of the Makefile installs them and sets M2DET_REQUIRE_TORCH or M2DET_REQUIRE_EXPORTS; a
    missing module is then an error.
    """
    if os.environ.get(f"M2DET_REQUIRE_{target.removeprefix('test-').upper()}"):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed; `make {target}` has it")


# Compiles faster than TINY; only the pyramid has BatchNorms. With ten times the learning rate,
# twenty steps would multiply rounding errors by a thousand.
SMALL = TINY | {
    "model.backbone_norm": False,
    "model.num_levels": 1,
    "optimizer.learning_rate": 5e-4,
}
SMALL_CLASSES = tuple(f"class{i}" for i in range(5))


@dataclasses.dataclass(frozen=True)
class SmallStep:
    """A step compiled for some devices, with its config, state and shardings."""

    config: Any
    detector: Any
    compiled: Any
    initial: TrainState  # in host memory
    state_sharding: Any
    replicated: jax.sharding.Sharding
    by_batch: jax.sharding.Sharding

    def start(self) -> TrainState:
        return place(self.initial, self.state_sharding)

    def run(self, state: TrainState, batches) -> tuple[TrainState, list[dict]]:
        """Does a step for each batch in host memory; returns the last state and all metrics."""
        metrics = []
        for batch in batches:
            state, found = self.compiled(state, jax.device_put(batch, self.by_batch))
            metrics.append(jax.device_get(found))
        return state, metrics


@functools.cache
def small_step(count: int, sharding: str = "replicated", accumulation: int = 1, **overrides):
    """Compiles the step of SMALL for the first `count` devices, as `prepare` does for all devices.

    The batch size is 8, on several devices times `accumulation`. The argument `model__remat` sets
    model.remat.
    """
    size = 8 * accumulation if count > 1 else 8
    fixed = {"sharding": sharding, "accumulation": accumulation, "batch_size": size}
    config = tiny_config(overrides=SMALL | fixed | _dotted(overrides))
    detector = build_detector(config, SMALL_CLASSES)
    replicated, by_batch = data_mesh(jax.devices()[:count])
    mesh = replicated.mesh if sharding == "replicated" else None
    step, optimizer = make_step(config, detector, mesh=mesh)
    variables = init_variables(detector.model, tuple(config.data.image_size), 0)
    state = jax.device_get(create_train_state(variables, optimizer))
    where = state_sharding(state, replicated, sharding)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(where, by_batch),
        out_shardings=(where, replicated),
    )
    compiled = jitted.lower(state, random_batch(0, size)).compile()
    return SmallStep(config, detector, compiled, state, where, replicated, by_batch)


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
    """A prepared run on all devices, its initial state in host memory, and its step's traces."""

    config: Any
    run: prepare.Run
    initial: TrainState
    traces: list[str]

    def fresh_state(self) -> TrainState:
        """Returns a copy of the initial state, because steps donate their state."""
        return place(self.initial, self.run.replicated)

    def step(self, state: TrainState, batch: dict[str, np.ndarray]):
        """Does one step with the function of a real run: jitted, sharded, with donation."""
        train_step = self.run.train_steps[batch["image"].shape[1:3]]
        return train_step(state, jax.device_put(batch, self.run.by_batch))


def random_batch(seed: int, size: int = 8, num_classes: int = 5) -> dict[str, np.ndarray]:
    """Returns a batch of 64 x 96 pictures with 1 to 3 objects each, padded to 8.

    The pictures consist of large blocks. Pixel noise would average out, and BatchNorm of nearly
    equal numbers magnifies rounding errors.
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
    """Asserts that two trees have the same structure, shapes, dtypes and values, bit for bit."""
    actual, expected = jax.device_get((actual, expected))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a, e = np.asarray(a), np.asarray(e)
        assert (a.shape, a.dtype) == (e.shape, e.dtype), path
        np.testing.assert_array_equal(a, e, err_msg=jax.tree_util.keystr(path))


def state_at(tiny_run: TinyRun, step: int) -> TrainState:
    """Returns a state that differs for each step; its averages differ from its raw weights."""

    def changed(tree, share):
        return jax.tree.map(lambda x: (x + np.abs(x) * share).astype(x.dtype), tree)

    initial = tiny_run.initial
    state = dataclasses.replace(
        initial,
        step=np.int32(step),
        params=changed(initial.params, 0.1 * step),
        batch_stats=changed(initial.batch_stats, 0.1 * step),
        ema_params=changed(initial.ema_params, 0.01 * step),
        ema_batch_stats=changed(initial.ema_batch_stats, 0.01 * step),
        opt_state=jax.tree.map(lambda x: x + np.asarray(step, x.dtype), initial.opt_state),
    )
    return place(state, tiny_run.run.replicated)


def running_at(tiny_run: TinyRun, step: int) -> IntervalMetrics:
    """Returns interval metrics that differ for each step."""
    names = ["loss", "loss_class", "loss_box", "num_positives", "grad_norm", "learning_rate"]
    values = {name: np.float32(step + i) for i, name in enumerate(names)}
    merged = IntervalMetrics.empty().merge(IntervalMetrics.single_from_model_output(**values))
    return place(merged, tiny_run.run.replicated)


def save_steps(workdir, tiny_run, aps: dict[int, float | None], keep_latest: int = 2) -> None:
    meta = make_meta(to_dict(tiny_run.config), tiny_run.run.train_index.class_names, PROGRESS)
    with open_manager(workdir, keep_latest=keep_latest) as manager:
        for step, ap in aps.items():
            save(manager, state_at(tiny_run, step), running_at(tiny_run, step), meta)
            if ap is not None:
                record_evaluation(manager, step, {"AP": ap})
                drop_old(manager, keep_latest)


def leaves(tree) -> list[np.ndarray]:
    """Returns the leaves of a tree as numpy arrays."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))]


def make_surer(workdir: pathlib.Path, folder: pathlib.Path, factor: float = 60) -> pathlib.Path:
    """Writes a tiny run's last checkpoint to a folder, with weights of classes times a factor."""
    restored = m2det_jax.restore(workdir)

    def surer(path, leaf):
        name = jax.tree_util.keystr(path)
        if "class_head" not in name:
            return leaf
        return factor * leaf if "kernel" in name else leaf * 0 - np.float32(2)

    variables = jax.tree_util.tree_map_with_path(surer, restored.variables)
    meta = make_meta(to_dict(restored.config), restored.class_names, {})
    with open_manager(folder) as manager:
        model, meta = ocp.args.StandardSave(variables), ocp.args.JsonSave(meta)
        manager.save(6, args=ocp.args.Composite(model=model, meta=meta))
    return folder
