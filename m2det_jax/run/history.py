"""History of a run: JSON lines for programs, TensorBoard event files for people.

    workdir/history.jsonl   one object per line: "step" and the scalars of that step
    workdir/tensorboard/    event files with the same scalars, and pictures

The trackers of the run, if there are any, get the same scalars (`trackers`).

A resumed run continues the history. Lines after the step from which it resumes are removed from the
JSON file and hidden in TensorBoard, so no step appears twice. (If an evaluation is repeated,
TensorBoard shows both of its points.)
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from m2det_jax.errors import InputError
from m2det_jax.run.trackers import Trackers

HISTORY = "history.jsonl"


def _parse_line(path: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line)
        if not isinstance(record["step"], int):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}:{number}: a JSON object with an integer 'step' expected, got {line[:80]!r};"
            " correct or delete the line"
        ) from None
    return record


def _complete_lines(path: Path) -> list[bytes]:
    """Returns the lines of the file, without an incomplete last one (its writer was killed)."""
    return path.read_bytes().split(b"\n")[:-1]


def read_history(workdir: str | os.PathLike) -> list[dict]:
    """Reads workdir/history.jsonl.

    Args:
        workdir: folder of the run.

    Returns:
        A list of {"step": int, name: number or NaN}, in the order of the file; empty if there is no
        file. An incomplete last line is left out.

    Raises:
        InputError: if any other line is not valid; the message has the file and the line.
    """
    path = Path(workdir) / HISTORY
    if not path.exists():
        return []
    records = [_parse_line(path, i, line) for i, line in enumerate(_complete_lines(path), 1)]
    return [{k: math.nan if v is None else v for k, v in r.items()} for r in records]


def _cut(path: Path, last_step: int, evaluated: bool) -> None:
    """Removes the lines after `last_step` and an incomplete line; the file is never half written.

    Args:
        path: the JSON file.
        last_step: last step to keep.
        evaluated: False removes the metrics of that step too, because it is evaluated again.
    """
    if not path.exists():
        return

    def stays(record: dict) -> bool:
        again = not evaluated and any(name.startswith("val_") for name in record)
        return record["step"] < last_step or (record["step"] == last_step and not again)

    lines = enumerate(_complete_lines(path), 1)
    kept = [line + b"\n" for i, line in lines if stays(_parse_line(path, i, line))]
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _as_number(name: str, value: object) -> int | float:
    """Returns a Python, numpy or jax scalar as a Python number."""
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"history: '{name}' must be one number, got {array.dtype} {array.shape}")
    return int(array) if array.dtype.kind in "biu" else float(array)


class _Events:
    """An event file of TensorBoard, written in the thread of the caller.

    The SummaryWriter of tensorboardX writes in its own thread. On a full disk this thread ends
    without an error, and later calls wait forever.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        # Imported here, so that reading a history needs no protobuf.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        self._summary, self._event = summary, Event
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # TensorBoard hides older events from purge_step on, also if the run started from scratch.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def _add(self, step: int, content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, summary=content)
        self._writer.write_event(event)

    def add_scalars(self, step: int, numbers: Mapping[str, int | float]) -> None:
        for name, value in numbers.items():
            self._add(step, self._summary.scalar(name, value))
        self._writer.flush()

    def add_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._add(step, self._summary.image(name, pixels, dataformats="HWC"))
        self._writer.flush()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class History:
    """Writes scalars and pictures of a run; can be used in a `with` statement.

    Args:
        workdir: folder of the run; created if it is missing.
        start_step: step of the checkpoint that is resumed; 0 for a new run.
        evaluated: False removes the metrics of that step, because it is evaluated again.
        enabled: False makes every method do nothing (all processes except the first).
        trackers: get the finite scalars too; they are started and ended elsewhere.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        start_step: int = 0,
        *,
        evaluated: bool = True,
        enabled: bool = True,
        trackers: Trackers | None = None,
    ) -> None:
        self._file: TextIO | None = None
        self._events: _Events | None = None
        self._trackers = trackers
        if not enabled:
            return
        path = Path(workdir) / HISTORY
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut(path, start_step, evaluated)
        self._file = path.open("a", encoding="utf-8")
        self._events = _Events(path.parent / "tensorboard", start_step + 1)

    def write(self, step: int, scalars: Mapping[str, object]) -> None:
        """Writes one line, and one TensorBoard point per scalar.

        NaN and infinities become null, since JSON has neither. The line is on the disk when this
        method returns, so a checkpoint is never ahead of it.

        Args:
            step: optimiser step.
            scalars: Python, numpy or jax scalars by name.

        Raises:
            ValueError: if a value is not a single number, or a scalar is named "step".
        """
        if self._file is None or self._events is None:
            return
        if "step" in scalars:
            raise ValueError("history: a scalar named 'step' would hide the step; rename it")
        numbers = {name: _as_number(name, value) for name, value in scalars.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise FileNotFoundError(f"{self._file.name} was removed during the run")
        self._file.write(json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        # TensorBoard cannot show NaN, and tensorboardX warns about each.
        points = {n: v for n, v in finite.items() if v is not None}
        self._events.add_scalars(int(step), points)
        if self._trackers is not None:
            self._trackers.write(int(step), points)

    def write_image(self, step: int, name: str, image: Image.Image | np.ndarray) -> None:
        """Writes a picture, a PIL image or uint8 [H, W, 3], to TensorBoard."""
        if self._events is None:
            return
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        self._events.add_image(int(step), name, pixels)

    def flush(self) -> None:
        """Writes waiting events to the disk; the JSON lines are already there."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Closes the files; can be called twice."""
        file, events = self._file, self._events
        self._file = self._events = None
        try:
            if file is not None:
                file.close()
        finally:
            if events is not None:
                events.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
