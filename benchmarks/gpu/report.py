"""Figures of the GPU measurement: printed at once, and in a JSON file that is whole at any time."""

import json
import pathlib
import time
from typing import Any

from benchmarks import timing


class Report:
    """Takes the figures of one part.

    Args:
        path: JSON file, shared by the parts, which run one after the other.
        part: name of the part.
        fresh: what the file has of the part from before goes.
    """

    def __init__(self, path: pathlib.Path, part: str, *, fresh: bool = True):
        self.path, self.part, self.started = path, part, time.monotonic()
        if fresh or part not in self._read():
            self._write({"rows": {}, "ended": "no"})

    def add(self, row: str, **figures: Any) -> None:
        """Notes figures, numbers or texts, of a row of the part's table."""
        entry = self._read()[self.part]
        entry["rows"].setdefault(row, {}).update(figures)
        self._write(entry)
        texts = (f"{name.replace('_', ' ')} {written(value)}" for name, value in figures.items())
        timing.print_figure(row, ", ".join(texts))

    def rows(self, part: str) -> dict[str, dict[str, Any]]:
        """Returns the rows that a part has noted; {} where it has not run."""
        return self._read().get(part, {}).get("rows", {})

    def end(self, how: str) -> None:
        """Notes how the part ended: "whole", "time limit", "skipped: ..." or "error: ..."."""
        self._write(self._read()[self.part] | {"ended": how})
        print(f"{self.part}: {how}", flush=True)

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def _write(self, entry: dict[str, Any]) -> None:
        entry = entry | {"seconds": round(time.monotonic() - self.started, 1)}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self._read() | {self.part: entry}, indent=1) + "\n")
        partial.replace(self.path)


def written(value: Any) -> str:
    """Writes a figure: four digits of a float, anything else as it is."""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


class Skip(Exception):
    """A part cannot run here; the message says why."""
