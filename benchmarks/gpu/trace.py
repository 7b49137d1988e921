"""Traces of a GPU: how long it is busy, and the gaps between its kernels."""

import dataclasses
import pathlib
from collections.abc import Iterable

from jax.profiler import ProfileData


@dataclasses.dataclass(frozen=True)
class Busy:
    """What a trace says of one device, from the first kernel to the last.

    Attributes:
        idle_share: of the time without any kernel, 0..1.
        largest_gap_ms: between two kernels.
        kernels: how many ran.
    """

    idle_share: float
    largest_gap_ms: float
    kernels: int


def busy_of(intervals: Iterable[tuple[float, float]]) -> Busy:
    """Returns what (start, end) of kernels, in nanoseconds and any order, say together."""
    ordered = sorted(intervals)
    first, reached = ordered[0]
    idle = largest = 0.0
    for start, end in ordered:
        gap = max(0.0, start - reached)
        idle, largest = idle + gap, max(largest, gap)
        reached = max(reached, end)
    return Busy(idle / max(reached - first, 1.0), largest / 1e6, len(ordered))


def read_trace(folder: pathlib.Path) -> Busy | None:
    """Reads the newest trace of jax.profiler in a folder; None: it has no kernels of a GPU."""
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        return None
    intervals = [
        (event.start_ns, event.start_ns + event.duration_ns)
        for plane in ProfileData.from_file(str(files[-1])).planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    return busy_of(intervals) if intervals else None
