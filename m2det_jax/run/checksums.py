"""Damaged checkpoints: found by checksums, named, and set aside.

Orbax notices files that are gone or cut short, most of the time; other bytes inside an array it
restores without a word. So a list of sizes and CRC-32 sums lies in every checkpoint, written before
the folder gets its final name.
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
# Written by Orbax after the list, and not needed to restore.
_NOT_LISTED = (_FILE, "commit_success.txt", "_CHECKPOINT_METADATA")
_BLOCK = 1 << 22


def write_checksums(folder: pathlib.Path) -> None:
    """Writes the list of all files below a checkpoint's folder into it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sums = {
        str(path.relative_to(folder)): [path.stat().st_size, _crc32(path)]
        for path in files
        if path.name not in _NOT_LISTED
    }
    with (folder / _FILE).open("w") as file:
        file.write(json.dumps({"crc32": sums}, indent=0) + "\n")
        file.flush()
        os.fsync(file.fileno())  # as Orbax does with the arrays; for machines that lose power


def find_damage(folder: pathlib.Path, items: Sequence[str] = ()) -> str | None:
    """Names the first file that is not as it was written, and how; None: all are.

    items: names of the only parts of the checkpoint to look at, such as "model"; (): all.

    A folder without a list, of a save by other means, counts as whole: see `has_checksums`.
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
        return f"{_FILE} is not what was written"
    for path, (size, crc) in expected.items():
        name = path.relative_to(folder)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if _crc32(path) != crc:
            return f"{name} has other contents than were written"
    return None


def has_checksums(folder: pathlib.Path) -> bool:
    """Tells whether there is a list of checksums to compare with."""
    return (folder / _FILE).is_file()


def _crc32(path: pathlib.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def write_figures(folder: pathlib.Path, figures: dict[str, float]) -> None:
    """Adds what an evaluation came to to a checkpoint, as Orbax writes its item "metrics".

    The first figures stay. None of the files that are there is touched, and the item is there
    whole or not at all.
    """
    if (folder / "metrics").exists():
        return
    beside = folder.parent.parent / ".metrics.tmp"
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    beside.mkdir()
    with (beside / "metrics").open("w") as file:
        file.write(json.dumps(figures | {"crc32": _crc32_of(figures)}))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(folder / "metrics")


def _crc32_of(figures: dict[str, float]) -> int:
    return zlib.crc32(json.dumps(figures).encode())


def _bad_figures(folder: pathlib.Path) -> bool:
    """Tells whether the figures of an evaluation are there, and not as they were written."""
    if not (folder / "metrics").is_dir():
        return False
    try:
        figures = json.loads((folder / "metrics" / "metrics").read_bytes())
        crc = figures.pop("crc32", None)  # versions before 0.2 had none
        return not math.isfinite(figures["AP"]) or crc not in (None, _crc32_of(figures))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True


def refuse_bad_figures(directory: pathlib.Path) -> None:
    """Raises InputError where the figures of an evaluation are damaged; Orbax reads them all."""
    for step in finished_steps(directory.parent):
        folder = step_folder(directory, step) / "metrics"
        if _bad_figures(folder.parent):
            raise InputError(
                f"{folder} is damaged; delete it: the checkpoint then counts as not evaluated, and "
                "training evaluates it when it goes on"
            )


def step_folder(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Returns the folder of a checkpoint; directory is that of all checkpoints of a run.

    It is named by the step alone, as Orbax does by default. Versions before 0.2 padded the name to
    eight digits, and go on doing so in the workdirs that they began.
    """
    return directory / (f"{step:08d}" if pads_names(directory) else str(step))


def pads_names(directory: pathlib.Path) -> bool:
    """Tells whether the folders of the checkpoints have names of eight digits: 00000100."""
    return any(re.fullmatch(r"0\d{7}", path.name) for path in directory.glob("0*"))


def finished_steps(workdir: str | pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a workdir, whether they can be restored or not."""
    folders = (pathlib.Path(workdir) / "checkpoints").glob("*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def move_damaged(directory: pathlib.Path) -> None:
    """Moves checkpoints aside whose files are not as they were written.

    Raises:
      ValueError: all of them are damaged; nothing is moved then.
    """
    if jax.process_index() == 0:
        _move_damaged(directory)
    wait_for_all("damaged checkpoints are out of the way")


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
            log.warning("checkpoint %d: the figures of its evaluation are damaged and removed; it "
                        "counts as not evaluated", step)  # fmt: skip
            shutil.rmtree(folder / "metrics")


def set_aside(directory: pathlib.Path, failures: dict[int, str]) -> None:
    """Moves checkpoints to "damaged" beside the folder; `failures` has the reason of each step.

    Orbax silently saves nothing up to the latest step that it sees, so they cannot stay.
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
    """The error for a run none of whose checkpoints can be used."""
    return InputError(
        f"none of the checkpoints in {directory} can be restored into this model; "
        f"use another --workdir, or the config they were trained with. "
        f"{'; '.join(f'{step}: {what}' for step, what in failures.items())}"
    )
