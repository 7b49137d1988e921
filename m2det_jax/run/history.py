"""The record of a run: JSON lines for programs, TensorBoard event files for eyes.

    workdir/history.jsonl   one object a line: "step" and the scalars written at it
    workdir/tensorboard/    event files with the same scalars, and pictures

A resumed run continues the record: what was written after the step it resumes from is cut from the
JSON lines and hidden from TensorBoard, so no step appears twice. (TensorBoard keeps both points of
an evaluation that is done again.)
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from m2det_jax.errors import InputError

HISTORY = "history.jsonl"


def _parse_line(path: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line)
        if not isinstance(record["step"], int):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}:{number}: a JSON object with an integer 'step' expected, got {line[:80]!r};"
            " mend or delete the line"
        ) from None
    return record


def _complete_lines(path: Path) -> list[bytes]:
    """The lines of the file without a last one that has no end: its writer was killed."""
    return path.read_bytes().split(b"\n")[:-1]


def read_history(workdir: str | os.PathLike) -> list[dict]:
    """Reads workdir/history.jsonl: a list of {"step": int, name: number or NaN}, as written.

    Empty if there is no such file. A last line cut short is left out. Raises ValueError, with file
    and line, for any other line that is not a record.
    """
    path = Path(workdir) / HISTORY
    if not path.exists():
        return []
    records = [_parse_line(path, i, line) for i, line in enumerate(_complete_lines(path), 1)]
    return [{k: math.nan if v is None else v for k, v in r.items()} for r in records]


def _cut(path: Path, last_step: int, evaluated: bool) -> None:
    """Removes the lines after `last_step` and a line cut short; the file is never half written.

    evaluated: False: the figures of an evaluation of that step go too, it is done again.
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


def _as_number(name: str, value) -> int | float:
    """A Python number from a Python, numpy or jax scalar."""
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"history: '{name}' must be one number, got {array.dtype} {array.shape}")
    return int(array) if array.dtype.kind in "biu" else float(array)


class _Events:
    """An event file of TensorBoard, written in the caller's thread.

    tensorboardX's own SummaryWriter writes in a thread, which ends on a full disk without a word,
    and lets the next calls wait for ever.
    """

    def __init__(self, folder: Path, purge_step: int):
        # Here, so that reading a history needs no protobuf.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        self._summary, self._event = summary, Event
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # TensorBoard hides older events from purge_step on, also those of a run begun anew.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def _add(self, step: int, content) -> None:
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
    """Writes scalars and pictures of a run; usable in a `with` statement.

    workdir: made if missing; start_step: the last step that the resumed checkpoint contains, 0 for
    a new run; evaluated: whether the figures of that step's evaluation count, if there are any;
    enabled: False makes every method do nothing (all processes but the first).
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        start_step: int = 0,
        *,
        evaluated: bool = True,
        enabled: bool = True,
    ):
        self._file, self._events = None, None
        if not enabled:
            return
        path = Path(workdir) / HISTORY
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut(path, start_step, evaluated)
        self._file = path.open("a", encoding="utf-8")
        self._events = _Events(path.parent / "tensorboard", start_step + 1)

    def write(self, step: int, scalars: Mapping[str, object]) -> None:
        """Writes one line and one TensorBoard point a scalar (numpy and jax scalars too).

        NaN and infinities become null in the JSON lines, which know neither. The line is on the
        disk when this returns, so that a checkpoint is never ahead of it. Raises ValueError for
        what is not one number, and for a scalar named "step".
        """
        if self._file is None:
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
        # TensorBoard shows no NaN, and tensorboardX warns of each.
        self._events.add_scalars(int(step), {n: v for n, v in finite.items() if v is not None})

    def write_image(self, step: int, name: str, image: Image.Image | np.ndarray) -> None:
        """Writes a picture (PIL image or uint8 [H, W, 3]) to TensorBoard."""
        if self._file is None:
            return
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        self._events.add_image(int(step), name, pixels)

    def flush(self) -> None:
        """Brings the event files up to date on disk; the JSON lines always are."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Ends the record; may be called twice."""
        file, events = self._file, self._events
        self._file = self._events = None
        if file is not None:
            try:
                file.close()
            finally:
                events.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
