"""Builds what a training run needs before its first step."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from clu import parameter_overview

from m2det_jax.build import (
    augment_settings,
    backbone_settings,
    build_detector,
    make_anchors,
    memory_settings,
    step_settings,
    train_sizes,
)
from m2det_jax.config import Config
from m2det_jax.config.checks import validate_classes
from m2det_jax.data import DetectionIndex, describe_augmentation
from m2det_jax.data.size_cache import SizeCache
from m2det_jax.datasets import record
from m2det_jax.datasets.loading import fingerprint, load_datasets
from m2det_jax.detector import evaluation
from m2det_jax.detector.detector import Detector
from m2det_jax.model import init_variables, variable_shapes
from m2det_jax.run import devices, memory
from m2det_jax.run.state import TrainState, create_train_state
from m2det_jax.training.compiled_step import CompiledStep
from m2det_jax.training.fine_tune import start_from
from m2det_jax.training.optimizer import make_optimizer, make_schedule
from m2det_jax.training.plan import Plan, images_of_epoch, make_optimizer_settings, make_plan
from m2det_jax.training.step import make_train_step
from m2det_jax.weights.backbones import with_backbone
from m2det_jax.weights.pretrained import load_backbone

log = logging.getLogger("m2det_jax")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready for its first step.

    Attributes:
      train_step: compiled when first called; see make_train_step.
      eval_step: jitted; see make_eval_step.
      state_shapes: the state as shapes, dtypes and shardings; of the arrays, only the loop holds
        any, so that there is one state on the devices.
      replicated, by_batch: shardings of what every device has whole, and of a batch.
      fingerprints: of both data sets, to be stored with checkpoints.
      sizes: of all images, to be written once the run is not refused.
    """

    train_index: DetectionIndex
    val_index: DetectionIndex
    detector: Detector
    optimizer: optax.GradientTransformation
    plan: Plan
    train_step: CompiledStep
    eval_step: Callable
    state_shapes: TrainState
    replicated: jax.sharding.Sharding
    by_batch: jax.sharding.Sharding
    fingerprints: dict[str, str]
    sizes: SizeCache


def prepare(config: Config, workdir: pathlib.Path) -> Run:
    """Reads the data of a checked config, and builds model, optimiser and steps.

    Raises:
      ValueError, FileNotFoundError: config or data do not fit; the message says what to do.
    """
    devices.check_divisible("config.batch_size", config.batch_size, config.accumulation)
    devices.check_divisible("config.eval.batch_size", config.eval.batch_size)
    augmentation = describe_augmentation(augment_settings(config), train_sizes(config))
    sizes = record.size_cache(workdir)
    train_index, val_index = load_datasets(config, workdir, sizes)
    validate_classes(config, train_index.class_names)
    log.info("augmentation, in this order:\n%s", augmentation)
    detector = build_detector(config, train_index.class_names)
    num_images = images_of_epoch(config, train_index)
    plan = make_plan(config, num_images)
    optimizer_settings = make_optimizer_settings(config, plan, num_images)
    optimizer = make_optimizer(optimizer_settings, detector.model.frozen_paths())
    settings = step_settings(config)
    replicated, by_batch = devices.data_mesh()
    variables = variable_shapes(detector.model, detector.resize.image_size)
    state_shapes = jax.eval_shape(lambda v: create_train_state(v, optimizer), variables)
    state_sharding = devices.state_sharding(state_shapes, replicated, config.sharding)
    # Split weights are gathered layer by layer, which is for XLA to arrange.
    mesh = replicated.mesh if config.sharding == "replicated" else None
    schedule = make_schedule(optimizer_settings)
    jitted = jax.jit(
        make_step(config, detector, optimizer, schedule, settings, mesh),
        donate_argnums=0,
        in_shardings=(state_sharding, by_batch),
        out_shardings=(state_sharding, replicated),
    )
    return Run(
        train_index=train_index,
        val_index=val_index,
        detector=detector,
        optimizer=optimizer,
        plan=plan,
        train_step=CompiledStep(jitted, train_sizes(config), memory_settings(config)),
        eval_step=jax.jit(evaluation.make_eval_step(detector, settings)),
        state_shapes=jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            state_shapes,
            state_sharding,
        ),
        replicated=replicated,
        by_batch=by_batch,
        fingerprints={"training": fingerprint(train_index), "validation": fingerprint(val_index)},
        sizes=sizes,
    )


def first_state(config: Config, run: Run) -> TrainState:
    """Returns the state before the first step, placed on all devices.

    Raises:
      ValueError, FileNotFoundError: the files of weights that the config names do not fit.
    """
    variables = initial_variables(config, run.detector)
    log.info("parameters:\n%s", parameter_overview.get_parameter_overview(variables["params"]))
    state = create_train_state(variables, run.optimizer)
    where = jax.tree.map(lambda x: x.sharding, run.state_shapes)
    with memory.explained(lambda: memory.state_advice(state, memory_settings(config))):
        return devices.place(state, where)


def make_step(
    config: Config, detector: Detector, optimizer, schedule, settings, mesh=None
) -> Callable:
    """Returns the train step; it takes batches of every size of config.data.train_sizes.

    Under jit it is traced, and compiled, once for each size. mesh: see make_train_step.
    """
    steps = {}
    for size in train_sizes(config):
        resize = dataclasses.replace(detector.resize, image_size=size)
        at_size = dataclasses.replace(detector, anchors=make_anchors(config, size), resize=resize)
        steps[size] = make_train_step(at_size, optimizer, schedule, settings, mesh)
    if len(steps) == 1:
        return next(iter(steps.values()))

    def train_step(state, batch):
        size = batch["image"].shape[1:3]  # [B, H, W, 3]
        return steps[size](state, batch)

    return train_step


def initial_variables(config: Config, detector: Detector) -> dict[str, Any]:
    """Returns variables to start with: random from the seed, or from the files of a config."""
    variables = init_variables(
        detector.model, detector.resize.image_size, config.seed, prior=detector.class_prior
    )
    model = config.model
    if config.init_from:
        return start_from(config, detector, variables)
    if model.backbone_weights:
        variables = with_backbone(variables, load_backbone(backbone_settings(config)))
    elif model.backbone.startswith("vgg") and not model.backbone_norm:
        log.warning(
            "WARNING: a VGG without BatchNorm starts from random weights and will learn slowly or "
            "not at all. Give ImageNet weights, --config.model.backbone_weights=%s.safetensors "
            "(README: Pretrained backbone), or set --config.model.backbone_norm=True",
            model.backbone,
        )
    return variables
