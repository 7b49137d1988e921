"""Checks on a config: every key by its own check, and keys that must fit together."""

import math
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from m2det_jax.config.dotted import flatten, freeze
from m2det_jax.config.key_checks import positives
from m2det_jax.config.keys import Anchors, Config, Data, Optimizer, declared
from m2det_jax.errors import InputError


def resolve(config: ConfigDict | Config) -> Config:
    """Returns a checked config that cannot be changed; everything below the verbs takes this one.

    Args:
        config: as an experiment returns it, or a Config, which is checked.

    Raises:
        InputError: keys are unknown or missing, or values do not fit; lists all of these.
    """
    settings = freeze(config) if isinstance(config, ConfigDict) else config
    validate(settings)
    return settings


def validate(config: Config) -> None:
    """Checks what types cannot.

    Raises:
        InputError: values do not fit; names each key, its value and what fits.
    """
    problems = [*_each_key(config), *_together(config)]
    problems += [*_schedule(config.optimizer), *_anchors(config.anchors, config.model.num_scales)]
    problems += _data(config.data)
    if problems:
        raise InputError("; ".join(problems))


def validate_classes(config: Config, class_names: Sequence[str]) -> None:
    """Checks values that depend on the classes.

    Args:
        class_names: in the order of class ids.

    Raises:
        InputError: values do not fit; names them.
    """
    if not class_names and (config.data.class_map or config.data.labels_filter):
        raise InputError("config.data.class_map and labels_filter leave no class; keep one")
    alphas = config.loss.focal_alpha_per_class
    if alphas and len(alphas) != len(class_names):
        raise InputError(
            f"config.loss.focal_alpha_per_class has {len(alphas)} values for {len(class_names)} "
            f"classes; give one for each of {', '.join(class_names)}, in this order, or ()"
        )


def _each_key(config: Config) -> Iterator[str]:
    """Yields what is wrong with single values."""
    values = flatten(config)
    for key, field in declared().items():
        yield from _numbers(key, values[key])
        check = field.metadata["check"]
        if check and (problem := check(values[key])):
            yield f"config.{key}{problem}"


def _numbers(key: str, value: object) -> Iterator[str]:
    """Yields what is wrong with numbers that are not finite or too large for a device."""
    limit = 2**32 if key == "seed" else 2**31
    for number in _leaves(value):
        if isinstance(number, int) and number >= limit:
            yield f"config.{key}={value}: must be below {limit}"
        elif isinstance(number, float) and not math.isfinite(number):
            yield f"config.{key}={value}: give finite numbers"


def _leaves(value: object) -> list[object]:
    if isinstance(value, tuple):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [value]


def _together(config: Config) -> Iterator[str]:
    """Yields what is wrong with keys of several sections, or of none."""
    model = config.model
    if model.backbone_official_stride and not model.backbone.startswith("resnet"):
        yield (
            "config.model.backbone_official_stride=True: only ResNets have it, and "
            f"config.model.backbone={model.backbone!r}"
        )
    if not config.distributed.coordinator and config.distributed.num_processes > 1:
        yield (
            f"config.distributed.num_processes={config.distributed.num_processes} without "
            "config.distributed.coordinator; give 'auto' or 'host:port' (docs/clusters.md)"
        )
    if config.init_from and model.backbone_weights:
        yield (
            "config.init_from and config.model.backbone_weights are both given; give one: the "
            "former has the weights of the whole network"
        )
    if config.optimizer.norm_warmup and model.norm_momentum == 1:
        yield (
            "config.model.norm_momentum=1.0 keeps BatchNorm's averages as they are: there is no "
            "config.optimizer.norm_warmup for it"
        )
    if config.accumulation > 0 and config.batch_size % config.accumulation:
        yield (
            f"config.batch_size={config.batch_size} is not a multiple of "
            f"config.accumulation={config.accumulation}"
        )


def _schedule(optimizer: Optimizer) -> Iterator[str]:
    o = optimizer
    if o.warmup_epochs and o.warmup_share:
        yield (
            f"config.optimizer.warmup_epochs={o.warmup_epochs} and warmup_share={o.warmup_share} "
            "are both given: set one of them to 0.0"
        )
    if o.decay_epochs and o.decay_shares:
        yield (
            f"config.optimizer.decay_epochs={o.decay_epochs} and decay_shares={o.decay_shares} "
            "are both given: set one of them to ()"
        )
    count, times = len(o.decay_epochs), "decay_epochs"
    if o.decay_shares:
        count, times = len(o.decay_shares), "decay_shares"
    if count != len(o.decay_factors):
        yield (
            f"config.optimizer.decay_factors={o.decay_factors}: give one for each of the "
            f"{count} {times}"
        )


def _anchors(anchors: Anchors, num_scales: int) -> Iterator[str]:
    ssd = anchors.kind == "ssd"
    if anchors.negative_threshold > anchors.positive_threshold:
        yield "config.anchors.negative_threshold is above positive_threshold"
    if anchors.kind == "retinanet" and anchors.steps:
        yield "config.anchors.steps is for kind 'ssd'; retinanet's cells share the input"
    if anchors.kind == "retinanet" and not anchors.octave_scales:
        yield "config.anchors.octave_scales=(): give at least one, such as (1.0,)"
    for key, values, count in (
        ("sizes", anchors.sizes, num_scales + ssd if anchors.sizes else 0),
        ("steps", anchors.steps, num_scales if anchors.steps and ssd else len(anchors.steps)),
        ("variances", anchors.variances, 2),
    ):
        if not positives(values) and len(values) != count:
            yield (
                f"config.anchors.{key}={values}: give {count} values for "
                f"kind={anchors.kind!r} and config.model.num_scales={num_scales}"
            )


def _data(data: Data) -> Iterator[str]:
    """Yields what is wrong with the names of the data; whether they are there is seen later."""
    key, val = ("val_csv", data.val_csv) if data.format == "csv" else ("val_split", data.val_split)
    if not val and not 0 < data.val_fraction < 1:
        yield (
            f"config.data.val_fraction={data.val_fraction}: with config.data.{key}='' it is the "
            "share of images split off for validation; give a number above 0 and below 1"
        )
    if data.parent_label and data.format != "openimages":
        yield 'config.data.parent_label is for config.data.format="openimages"'
