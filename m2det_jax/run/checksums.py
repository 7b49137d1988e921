"""Checksums of checkpoints: damaged checkpoints are found, reported and moved to another folder.

Orbax usually notices files that are missing or cut short, but it restores an array with changed
bytes without a warning. So every checkpoint contains a list of file sizes and CRC-32 sums, which is
written before the folder gets its final name.
"""

import json
import logging
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Sequence

import jax

from m2det_jax.errors import InputError
from m2det_jax.run.devices import wait_for_all

log = logging.getLogger("m2det_jax")

_FILE = "checksums.json"
# Orbax writes these after the list; they are not needed to restore.
_NOT_LISTED = (_FILE, "commit_success.txt", "_CHECKPOINT_METADATA")
_BLOCK = 1 << 22


def write_checksums(folder: pathlib.Path) -> None:
    """Writes the list of all files in the folder of a checkpoint into that folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sums = {
        str(path.relative_to(folder)): [path.stat().st_size, _crc32(path)]
        for path in files
        if path.name not in _NOT_LISTED
    }
    with (folder / _FILE).open("w") as file:
        file.write(json.dumps({"crc32": sums}, indent=0) + "\n")
        file.flush()
        os.fsync(file.fileno())  # against power loss; Orbax does the same with the arrays


def find_damage(folder: pathlib.Path, items: Sequence[str] = ()) -> str | None:
    """Returns the first file that is damaged, and how; None if none is.

    A folder without a list, saved by another program, counts as not damaged; see `has_checksums`.

    Args:
        folder: folder of a checkpoint.
        items: the items to check, such as "model"; (): all.
    """
    if not has_checksums(folder):
        return None
    try:
        sums = json.loads((folder / _FILE).read_text())["crc32"]
        expected = {
            folder / name: (size, crc)
            for name, (size, crc) in sums.items()
            if not items or pathlib.PurePath(name).parts[0] in items
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_FILE} is not a list of checksums"
    for path, (size, crc) in expected.items():
        name = path.relative_to(folder)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if _crc32(path) != crc:
            return f"{name} has changed since it was written"
    return None


def has_checksums(folder: pathlib.Path) -> bool:
    """Returns whether the folder has a list of checksums."""
    return (folder / _FILE).is_file()


def _crc32(path: pathlib.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def write_figures(folder: pathlib.Path, figures: dict[str, float]) -> None:
    """Adds the metrics of an evaluation to a checkpoint, in the form of Orbax's item "metrics".

    Metrics that exist already are kept. No other file changes, and the item is never half written.

    Args:
        folder: folder of the checkpoint.
        figures: metrics by name.
    """
    if (folder / "metrics").exists():
        return
    beside = folder.parent.parent / ".metrics.tmp"
    shutil.rmtree(beside, ignore_errors=True)  # left by a run that was killed
    beside.mkdir()
    with (beside / "metrics").open("w") as file:
        file.write(json.dumps(figures | {"crc32": _crc32_of(figures)}))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(folder / "metrics")


def _crc32_of(figures: dict[str, float]) -> int:
    return zlib.crc32(json.dumps(figures).encode())


def _bad_figures(folder: pathlib.Path) -> bool:
    """Returns whether a checkpoint has metrics and they are damaged."""
    if not (folder / "metrics").is_dir():
        return False
    try:
        figures = json.loads((folder / "metrics" / "metrics").read_bytes())
        crc = figures.pop("crc32", None)  # versions before 0.2 had none
        return not math.isfinite(figures["AP"]) or crc not in (None, _crc32_of(figures))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True


def refuse_bad_figures(directory: pathlib.Path) -> None:
    """Raises InputError if the metrics of any checkpoint are damaged. Orbax reads all of them."""
    for step in finished_steps(directory.parent):
        folder = step_folder(directory, step) / "metrics"
        if _bad_figures(folder.parent):
            raise InputError(
                f"{folder} is damaged; delete it: the checkpoint then counts as not evaluated, and "
                "training evaluates it when it resumes"
            )


def step_folder(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Returns the folder of a checkpoint.

    Its name is the step, as in Orbax by default. Versions before 0.2 padded the name to eight
    digits; their workdirs keep that form.

    Args:
        directory: folder of all checkpoints of the run.
        step: optimiser step of the checkpoint.
    """
    return directory / (f"{step:08d}" if pads_names(directory) else str(step))


def pads_names(directory: pathlib.Path) -> bool:
    """Returns whether the folders of the checkpoints have names of eight digits: 00000100."""
    return any(re.fullmatch(r"0\d{7}", path.name) for path in directory.glob("0*"))


def finished_steps(workdir: str | pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a workdir, damaged ones included, in order."""
    folders = (pathlib.Path(workdir) / "checkpoints").glob("*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def move_damaged(directory: pathlib.Path) -> None:
    """Moves damaged checkpoints to the folder "damaged" in the workdir.

    Args:
        directory: folder of all checkpoints of the run.

    Raises:
        InputError: if all of them are damaged. Then none is moved.
    """
    if jax.process_index() == 0:
        _move_damaged(directory)
    wait_for_all("damaged checkpoints are moved")


def _move_damaged(directory: pathlib.Path) -> None:
    steps = finished_steps(directory.parent)
    found = {step: find_damage(step_folder(directory, step)) for step in reversed(steps)}
    damaged = {step: what for step, what in found.items() if what is not None}
    if steps and len(damaged) == len(steps):
        raise none_left(directory, damaged)
    set_aside(directory, damaged)
    for step in finished_steps(directory.parent):
        folder = step_folder(directory, step)
        if _bad_figures(folder):
            log.warning("checkpoint %d: its metrics are damaged and were removed; it counts as "
                        "not evaluated", step)  # fmt: skip
            shutil.rmtree(folder / "metrics")


def set_aside(directory: pathlib.Path, failures: dict[int, str]) -> None:
    """Moves checkpoints to the folder "damaged" in the workdir.

    They cannot stay: Orbax silently skips a save if it sees a checkpoint of the same or a later
    step.

    Args:
        directory: folder of all checkpoints of the run.
        failures: the checkpoints to move, by step, with the reason.
    """
    if jax.process_index() != 0:
        return
    for step, what in failures.items():
        folder = step_folder(directory, step)
        target = directory.parent / "damaged" / folder.name
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        newer = any(other > step for other in finished_steps(directory.parent))
        log.warning("checkpoint %d is damaged: %s; moved to %s%s", step, what, target,
                    "" if newer else ", the one before it is used")  # fmt: skip


def none_left(directory: pathlib.Path, failures: dict[int, str]) -> InputError:
    """Returns the error for a run if none of its checkpoints can be restored.

    Args:
        directory: folder of all checkpoints of the run.
        failures: reason by step.
    """
    return InputError(
        f"none of the checkpoints in {directory} can be restored into this model; "
        f"use another --workdir, or the config that they were trained with. "
        f"{'; '.join(f'{step}: {what}' for step, what in failures.items())}"
    )
