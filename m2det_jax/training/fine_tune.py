"""Starting a run from the weights of another one, or from converted ones."""

import collections
import logging
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from m2det_jax import trained
from m2det_jax.config import Config
from m2det_jax.config.dotted import flatten
from m2det_jax.detector.detector import Detector
from m2det_jax.errors import InputError
from m2det_jax.model import is_class_output

log = logging.getLogger("m2det_jax")

Tensors = dict[tuple[str, ...], np.ndarray]

# What the loaded weights take for granted, beside all of anchors.* and model.* but for NO_MATTER.
_EXPECTED = ("data.mean", "data.std", "data.channel_order")
_NO_MATTER = (
    "anchors.positive_threshold",
    "anchors.negative_threshold",
    "model.backbone_weights",
    "model.frozen_stages",
    "model.norm_momentum",
    "model.dtype",
)


def start_from(config: Config, detector: Detector, fresh: dict[str, Any]) -> dict[str, Any]:
    """Returns `fresh` variables with those of config.init_from in their places.

    The moving averages of the source are taken. Its class outputs are only where the class names
    are the same in the same order, and so is the kind of loss; else the fresh ones stay. The log
    lists what was loaded and what was not, and warns of preprocessing and anchors that differ.

    Args:
      config: init_from is a workdir, of a run or of converted weights; init_checkpoint is
        "latest", "best" or a step there.
      detector: of this run.
      fresh: its variables, {"params", "batch_stats"} of numpy arrays.

    Raises:
      ValueError: there is no such checkpoint, or tensors other than the class outputs do not fit;
        lists all of them, and the settings of the model that differ.
    """
    source = trained.restore(config.init_from, config.init_checkpoint)
    ours, theirs = flatten_dict(fresh), flatten_dict(jax.device_get(source.variables))
    reason = _why_other_outputs(source, detector)
    kept = {path for path in ours if reason and is_class_output(path[1:])}
    differing = _differing_settings(config, source.config)
    problems = _misfits(ours, theirs, kept)
    if problems:
        settings = [f"config.{key} is {new!r} here, {old!r} there" for key, new, old in differing]
        raise InputError(
            f"config.init_from={config.init_from}: {len(problems)} tensors do not fit this model. "
            f"Settings that differ: {', '.join(settings) or 'none'}. Tensors: {'; '.join(problems)}"
        )
    log.info("initial weights: moving averages of step %d in %s", source.step, config.init_from)
    _log_loaded({path: ours[path] for path in ours if path not in kept})
    for path in sorted(kept):
        log.info("  not loaded: %s %s, initialised afresh", "/".join(path), ours[path].shape)
    if kept:
        log.info("  because %s", reason)
    for key, new, old in differing:
        log.warning("  WARNING: the loaded weights were trained with config.%s=%r, this run has "
                    "%r; unless that is meant, add --config.%s='%s'",
                    key, old, new, key, old)  # fmt: skip
    return unflatten_dict({path: ours[path] if path in kept else theirs[path] for path in ours})


def _why_other_outputs(source: trained.Restored, detector: Detector) -> str:
    """Says why the source's class outputs mean something else; "" if they do not."""
    theirs, ours = source.class_names, detector.class_names
    if theirs != ours:
        what = "in another order" if sorted(theirs) == sorted(ours) else "other ones"
        return (
            f"the classes are {what}: {len(theirs)} there ({', '.join(theirs)}), "
            f"{len(ours)} here ({', '.join(ours)})"
        )
    outputs = source.detector.model.num_class_outputs, detector.model.num_class_outputs
    if outputs[0] != outputs[1]:
        return f"an anchor has {outputs[0]} class outputs there and {outputs[1]} here: another loss"
    return ""


def _misfits(ours: Tensors, theirs: Tensors, kept: set[tuple[str, ...]]) -> list[str]:
    """Lists the tensors that only one side has or whose shapes differ, but for those `kept`."""
    problems = []
    for path in sorted(ours.keys() | theirs.keys()):
        if path in kept or (path not in ours and is_class_output(path[1:]) and kept):
            continue
        shapes = [side[path].shape if path in side else "nothing" for side in (ours, theirs)]
        if shapes[0] != shapes[1]:
            problems.append(f"{'/'.join(path)}: {shapes[0]} here, {shapes[1]} there")
    return problems


def _log_loaded(loaded: Tensors) -> None:
    """Logs the loaded tensors by part of the network; complete, since a part is loaded whole."""
    parts: dict[str, list[int]] = collections.defaultdict(list)
    for path, value in loaded.items():
        names = path[1:3] if path[1] in ("mlfpn", "class_head") else path[1:2]
        parts["/".join(names)].append(value.size)
    for part, sizes in parts.items():
        log.info("  loaded: %s, all %d tensors, %s values", part, len(sizes), f"{sum(sizes):,}")


def _differing_settings(config: Config, source: Config) -> list[tuple[str, Any, Any]]:
    """Returns (key, value here, value in the source) of settings that the weights depend on."""
    here, there = flatten(config), flatten(source)
    keys = [
        key
        for key in here
        if (key.startswith(("model.", "anchors.")) or key in _EXPECTED) and key not in _NO_MATTER
    ]
    return [(key, here[key], there[key]) for key in keys if here[key] != there[key]]
