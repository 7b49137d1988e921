"""Preparation of a training run: all that it needs before its first step."""

import dataclasses
import logging
import math
import pathlib
from typing import Any

import jax
import optax
from clu import parameter_overview
from jax.sharding import NamedSharding

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
from m2det_jax.data import DetectionIndex, TrainSettings, describe_augmentation, train_batches
from m2det_jax.data.feeding.batches import Batches
from m2det_jax.data.sizes import SizeCache
from m2det_jax.datasets import record
from m2det_jax.datasets.loading import fingerprint, load_datasets
from m2det_jax.detector import evaluation
from m2det_jax.detector.detector import Detector
from m2det_jax.model import init_variables, variable_shapes
from m2det_jax.run import devices, memory, readers
from m2det_jax.run.cost import StepCost, describe, read_cost
from m2det_jax.run.state import TrainState, create_train_state
from m2det_jax.run.trackers import refuse_missing
from m2det_jax.training.fine_tune import start_from
from m2det_jax.training.optimizer import make_optimizer, make_schedule
from m2det_jax.training.plan import Plan, images_of_epoch, make_optimizer_settings, make_plan
from m2det_jax.training.step import INPUTS, make_train_step
from m2det_jax.weights.imagenet import with_backbone
from m2det_jax.weights.pretrained import load_backbone

log = logging.getLogger("m2det_jax")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready for its first step.

    Attributes:
        train_steps: jitted, by the image size (height, width) of their batches, the largest first;
            see `step.make_train_step` and `compile_step`.
        eval_step: jitted; see `evaluation.make_eval_step`.
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
    train_steps: dict[tuple[int, int], jax.stages.Wrapped]
    eval_step: jax.stages.Wrapped
    state_shapes: TrainState
    replicated: NamedSharding
    by_batch: NamedSharding
    fingerprints: dict[str, str]
    sizes: SizeCache


def prepare(config: Config, workdir: pathlib.Path) -> Run:
    """Reads the data of a checked config, and builds model, optimiser and steps.

    Raises:
        InputError, FileNotFoundError: config or data do not fit; the message says what to do.
    """
    refuse_missing(config.log.trackers if jax.process_index() == 0 else ())
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
    replicated, by_batch = devices.data_mesh()
    state_shapes = _state_shapes(detector, optimizer, replicated, config.sharding)
    schedule = make_schedule(optimizer_settings)
    return Run(
        train_index=train_index,
        val_index=val_index,
        detector=detector,
        optimizer=optimizer,
        plan=plan,
        train_steps=_train_steps(
            config, detector, optimizer, schedule, state_shapes, replicated, by_batch
        ),
        eval_step=jax.jit(evaluation.make_eval_step(detector, step_settings(config))),
        state_shapes=state_shapes,
        replicated=replicated,
        by_batch=by_batch,
        fingerprints={"training": fingerprint(train_index), "validation": fingerprint(val_index)},
        sizes=sizes,
    )


def _state_shapes(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    replicated: NamedSharding,
    kind: str,
) -> TrainState:
    """Returns the state as shapes, dtypes and shardings; kind: see `devices.state_sharding`."""
    variables = variable_shapes(detector.model, detector.resize.image_size)
    shapes = jax.eval_shape(lambda v: create_train_state(v, optimizer), variables)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        devices.state_sharding(shapes, replicated, kind),
    )


def _train_steps(
    config: Config,
    detector: Detector,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state_shapes: TrainState,
    replicated: NamedSharding,
    by_batch: NamedSharding,
) -> dict[tuple[int, int], jax.stages.Wrapped]:
    """Returns the jitted train step of every size of config.data.train_sizes, see Run."""
    state_sharding = jax.tree.map(lambda x: x.sharding, state_shapes)
    # Split weights are gathered layer by layer, which is for XLA to arrange.
    mesh = replicated.mesh if config.sharding == "replicated" else None
    steps: dict[tuple[int, int], jax.stages.Wrapped] = {}
    for size in sorted(train_sizes(config), key=math.prod, reverse=True):
        at_size = detector_at(config, detector, size)
        steps[size] = jax.jit(
            make_train_step(at_size, optimizer, schedule, step_settings(config), mesh),
            donate_argnums=0,
            in_shardings=(state_sharding, by_batch),
            out_shardings=(state_sharding, replicated),
        )
    return steps


def detector_at(config: Config, detector: Detector, size: tuple[int, int]) -> Detector:
    """Returns the detector for pictures of another size (height, width), with its anchors there."""
    resize = dataclasses.replace(detector.resize, image_size=size)
    return dataclasses.replace(detector, anchors=make_anchors(config, size), resize=resize)


def compile_steps(
    config: Config,
    run: Run,
    state: TrainState,
    batch: dict[str, Any],
    costs: dict[tuple[int, int], StepCost],
) -> dict[tuple[int, int], jax.stages.Compiled]:
    """Compiles the train step for every image size, and reports what each costs.

    The largest goes first, so that what does not fit is known before anything is computed.

    Args:
        batch: numpy arrays of this process, of any of the sizes.
        costs: to be filled, by image size.

    Raises:
        OutOfMemory: a program needs more than a device has, or cannot even be compiled.
    """
    programs = {}
    for size, train_step in run.train_steps.items():
        settings = dataclasses.replace(memory_settings(config), image_size=size)
        log.info("compiling the train step for pictures of %d x %d", *size)
        traced = train_step.trace(state, _batch_shapes(batch, size))
        programs[size], costs[size] = compile_traced(traced, settings)
    return programs


def _batch_shapes(batch: dict[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """Returns the inputs of a train step as shapes, over all processes."""
    shapes = {name: (batch[name].shape, batch[name].dtype) for name in INPUTS}
    (count, _, _, channels), dtype = shapes["image"]
    shapes["image"] = (count, *image_size, channels), dtype
    return {
        name: jax.ShapeDtypeStruct((shape[0] * jax.process_count(), *shape[1:]), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def compile_traced(
    traced: jax.stages.Traced, settings: memory.MemorySettings
) -> tuple[jax.stages.Compiled, StepCost]:
    """Compiles a traced train step, and reports its cost.

    Args:
        settings: of the step, for advice where memory does not suffice.

    Raises:
        OutOfMemory: the program needs more than a device has, or cannot even be compiled.
    """
    with memory.explained(lambda: memory.train_advice(settings, None, memory.available())):
        program = traced.lower().compile()
    cost, limit = read_cost(traced, program), memory.available()
    log.info("the train step for pictures of %d x %d, batch %d:\n%s", *settings.image_size,
             settings.batch_size, describe(cost, settings.num_devices, limit))  # fmt: skip
    # Every byte counted is allocated before the program starts, so this could only fail; on a CPU
    # the kernel would kill the process without a word.
    if limit is not None and cost.memory > limit:
        advice = memory.train_advice(settings, cost, limit)
        raise memory.OutOfMemory(f"out of memory: {advice}")
    return program, cost


def training_readers(config: Config) -> readers.Readers:
    """Returns who reads the training images of this process."""
    pixels = max(height * width for height, width in train_sizes(config))
    return readers.local_readers(
        "training",
        batch_bytes=config.batch_size // jax.process_count() * pixels * 3,
        num_workers=config.data.num_workers,
        num_threads=config.data.num_threads,
    )


def open_batches(
    config: Config, run: Run, start_step: int, chosen: readers.Readers | None = None
) -> Batches:
    """Opens the training data at the batch after `start_step`; close what it returns.

    Args:
        chosen: who reads the images; None: `training_readers`.
    """
    chosen = chosen or training_readers(config)
    settings = TrainSettings(
        augment_settings(config),
        batch_size=config.batch_size,
        seed=config.seed,
        sizes=train_sizes(config),
        repeat_threshold=config.data.repeat_threshold,
        on_bad_image=config.data.on_bad_image,
    )
    return train_batches(
        run.train_index,
        settings,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=chosen.workers,
        num_threads=chosen.threads,
    )


def first_state(config: Config, run: Run) -> TrainState:
    """Returns the state before the first step, placed on all devices.

    Raises:
        InputError, FileNotFoundError: the files of weights that the config names do not fit.
        OutOfMemory: the devices cannot hold the state.
    """
    variables = initial_variables(config, run.detector)
    log.info("parameters:\n%s", parameter_overview.get_parameter_overview(variables["params"]))
    state = create_train_state(variables, run.optimizer)
    where = jax.tree.map(lambda x: x.sharding, run.state_shapes)
    with memory.explained(lambda: memory.state_advice(state, memory_settings(config))):
        return devices.place(state, where)


def initial_variables(config: Config, detector: Detector) -> dict[str, Any]:
    """Returns variables to start with: random from the seed, or from the files of a config."""
    variables = init_variables(
        detector.model, detector.resize.image_size, config.seed, prior=detector.class_prior
    )
    model = config.model
    if config.init_from:
        return start_from(config, detector, variables)
    if model.backbone_weights:
        loaded = load_backbone(backbone_settings(config))
        variables = with_backbone(variables, loaded.variables, loaded.absent)
    elif model.backbone.startswith("vgg") and not model.backbone_norm:
        log.warning(
            "WARNING: a VGG without BatchNorm starts from random weights and will learn slowly or "
            "not at all. Give ImageNet weights, --config.model.backbone_weights=%s.safetensors "
            "(docs/training.md: Pretrained backbone), or set --config.model.backbone_norm=True",
            model.backbone,
        )
    return variables
