"""Record of a step whose loss or gradient is not finite: what `m2det replay` repeats it by.

    workdir/nonfinite/STEP/record.json   step, metrics, seed, images, config, data, versions
    workdir/nonfinite/STEP/batch.npz     the arrays that the step took: pictures and boxes

A batch is a function of data, config, seed and step, and so is all that is random in it: the seed
and the step are its keys. The batch is kept all the same, so that a replay can tell whether the
images are still those of the run. Of several processes, each keeps its part of the batch; those of
the others are in STEP-process1 and so on. The first few failures of a run are kept, no more.
"""

import json
import logging
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from m2det_jax.errors import InputError, in_words
from m2det_jax.run.outputs import new_folder
from m2det_jax.run.progress import Failure

log = logging.getLogger("m2det_jax")

FOLDER = "nonfinite"
MOST_KEPT = 3  # of a process; a batch of 32 pictures of 512 x 512 takes 25 MB
_FORMAT = 1


def keep(workdir: pathlib.Path, describe: Callable[[], dict[str, Any]], failure: Failure) -> None:
    """Keeps the record and the batch of a failed step; says in one line what became of it.

    Files that are there stay as they are. Nothing that goes wrong here, such as a full disk, hides
    the failure itself.

    Args:
        workdir: folder of the run.
        describe: returns the item "meta" that a checkpoint of now would have.
        failure: the step, its error, its metrics and its batch.
    """
    parent, process = workdir / FOLDER, jax.process_index()
    ending = f"-process{process}" if process else ""
    folder = parent / f"{failure.step}{ending}"
    try:
        kept = [path for path in parent.glob(f"*{ending}") if _is_step(path, ending)]
        if folder.exists() or len(kept) >= MOST_KEPT or not workdir.is_dir():
            return
        with new_folder(folder) as partial:
            np.savez(partial / "batch.npz", allow_pickle=False, **failure.batch)
            text = json.dumps(_record(describe(), failure), indent=2, allow_nan=False)
            (partial / "record.json").write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        log.warning("the batch of step %d cannot be kept: %s", failure.step, in_words(error))
        return
    log.warning("the batch of step %d is kept in %s", failure.step, folder)


def _is_step(path: pathlib.Path, ending: str) -> bool:
    return path.name.removesuffix(ending).isdecimal()


def _record(meta: dict[str, Any], failure: Failure) -> dict[str, Any]:
    images = zip(failure.error.image_ids, failure.error.image_paths, strict=True)
    return {
        "format": _FORMAT,
        "step": failure.step,
        "what": failure.error.what,
        "metrics": {name: json_number(value) for name, value in failure.metrics.items()},
        "seed": meta["config"]["seed"],
        "images": [{"image_id": int(number), "file_name": path} for number, path in images],
        "process": jax.process_index(),
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "meta": meta,
    }


def json_number(value: Any) -> float | str:
    """Returns a number as JSON has it; "nan", "inf" or "-inf" if it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def kept_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps that are kept, rising."""
    folders = (workdir / FOLDER).glob("*/record.json")
    return sorted(int(path.parent.name) for path in folders if path.parent.name.isdecimal())


def read_record(workdir: pathlib.Path, step: int) -> dict[str, Any] | None:
    """Returns the record of a step; None if there is none.

    Raises:
        InputError: if it is damaged, or of a newer version.
    """
    path = workdir / FOLDER / str(step) / "record.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] == _FORMAT and record["step"] == step and "config" in record["meta"]:
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path}: not a record of this version; move its folder away, and give --step")


def read_batch(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray] | None:
    """Returns the batch that was kept with a step; None if there is none, or it is damaged."""
    path = workdir / FOLDER / str(step) / "batch.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive can raise any type
        log.warning("%s cannot be read (%s); the batch is made anew", path, error)
        return None
