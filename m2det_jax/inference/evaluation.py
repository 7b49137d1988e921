"""Evaluation of a trained detector on a data set: by one view of each image, or by several."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.build import make_views, step_settings
from m2det_jax.data import DetectionIndex
from m2det_jax.datasets.evaluation import DataChoice, add_flags
from m2det_jax.detector.evaluation import Stages, detect, evaluate, make_eval_step, make_staged_step
from m2det_jax.detector.reading import Reading
from m2det_jax.detector.views import MultiScale
from m2det_jax.errors import InputError
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.run import devices, memory, readers
from m2det_jax.trained import Restored


def evaluation_parser(prog: str, description: str, output: str) -> argparse_flags.ArgumentParser:
    """Returns the parser of a verb that evaluates a run.

    Args:
        prog: how the verb is called.
        description: what it does.
        output: help of the flag --output.
    """
    parser = argparse_flags.ArgumentParser(
        prog=prog,
        description=description,
        conflict_handler="resolve",  # if training is imported too, absl has a flag --trust
    )
    parser.add_argument(
        "--workdir", required=True, type=pathlib.Path, help="folder of the training run"
    )
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    parser.add_argument(
        "--batch_size", type=int, default=0, help="images per call; default: as in the config"
    )
    parser.add_argument("--output", default="", help=output)
    readers.add_flags(parser)
    trust = "import the Python module that the run names as config.data.format"
    parser.add_argument("--trust", action="store_true", help=trust)
    runtime.add_overrides(parser)
    runtime.add_json_flag(parser)
    add_flags(parser)
    return parser


def data_choice(data: str | os.PathLike | Mapping[str, Any] | None) -> DataChoice:
    """Returns the data set that is meant.

    Args:
        data: a CSV file of annotations, a folder with val.csv, or a mapping of fields of
            DataChoice; None: the validation set of the run.

    Raises:
        InputError: if a field does not exist, or the fields contradict each other.
    """
    if data is None:
        return DataChoice()
    if isinstance(data, str | os.PathLike):
        path = pathlib.Path(data)
        return DataChoice(csv=str(path / "val.csv" if path.is_dir() else path))
    if not isinstance(data, Mapping):
        raise InputError(f"data: a CSV file, a folder or a mapping expected, got {data!r:.60}")
    known = [field.name for field in dataclasses.fields(DataChoice)]
    for key in data:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise InputError(
                f"data: there is no key {key!r}, the nearest is {nearest!r}; give some of "
                f"{', '.join(known)}"
            )
    fields = {key: str(v) if isinstance(v, os.PathLike) else v for key, v in data.items()}
    if isinstance(pairs := fields.get("class_map"), Mapping):
        fields["class_map"] = [f"{old}={new}" for old, new in pairs.items()]
    return DataChoice(**fields)


def evaluate_restored(
    restored: Restored,
    index: DetectionIndex,
    batch_size: int,
    key: str,
    stages: Stages | None = None,
    /,
    **reading: int,
) -> tuple[dict, list[ImageDetections]]:
    """Returns (metrics, detections) of a data set with the classes of the detector.

    Args:
        batch_size: images per call, over all devices; 0: that of the config. There are no more
            than the data set has.
        key: how the user gives it, for error messages.
        stages: gets the time of the stages, each of which is then waited for; None: nothing is
            waited for, so that a batch is prepared while the device computes.
        reading: num_workers and num_threads, that read images; -1: what fits the host.

    Raises:
        InputError: if an image cannot be read, or a batch cannot be split over the devices.
        OutOfMemory: if a batch does not fit into the memory of a device.
    """
    batch_size = batch_size or restored.config.eval.batch_size
    devices.check_divisible(key, batch_size)
    batch_size = devices.no_larger_batch(batch_size, index.num_images)
    detector, settings = restored.detector, step_settings(restored.config)
    replicated, by_batch = devices.data_mesh()
    variables = jax.device_put(restored.variables, replicated)
    how = Reading(batch_size, on_bad_image=restored.config.data.on_bad_image, **reading)
    with memory.batch_explained("the evaluation", key, batch_size):
        timed = {"mark": stages.of(index.num_images, batch_size).mark} if stages else {}
        if views := make_views(restored.config):
            multi = MultiScale(detector, views, settings)
            found = multi.detect(variables, index, how, sharding=by_batch, **timed)
        else:
            eval_step = (
                make_staged_step(detector, settings, **timed)
                if timed
                else jax.jit(make_eval_step(detector, settings))
            )
            found = detect(eval_step, variables, index, detector, how, sharding=by_batch)
        return evaluate(found, index, how.num_batches(index))
