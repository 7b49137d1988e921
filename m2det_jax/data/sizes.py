"""Sizes of all images of a data set: read from their headers by threads, and kept for later.

A cache keeps what was measured, by path, file size and times: a file that was touched since is read
again. Its file may be deleted at any time; one that is damaged, or of another version, is ignored.
"""

import concurrent.futures
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from m2det_jax.data.files import write_whole
from m2det_jax.data.images import read_size

Size = tuple[int, int]  # (width, height) of an upright image
ReadSize = Callable[[str], Size]

_CHUNK = 500  # images a thread reads before it lets the others run
_FORMAT = 1  # to be raised when `read_size` gives other sizes for the same files
# A file that is written twice within the resolution of its time looks the same both times. As in
# git, the size of a file is not kept while it is younger than the coarsest resolution (FAT: 2 s).
_RACY = 2_000_000_000  # nanoseconds


def read_sizes(
    paths: Sequence[str], *, num_threads: int = 8, read: ReadSize = read_size
) -> list[Size | ValueError]:
    """Reads the size of every image, or returns the error in its place.

    Args:
        read: `images.read_size`, or that of a `SizeCache`.
    """
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        parts = pool.map(lambda chunk: _sizes_or_errors(chunk, read), chunks)
        return [size for part in parts for size in part]


def _sizes_or_errors(paths: Sequence[str], read: ReadSize) -> list[Size | ValueError]:
    found: list[Size | ValueError] = []
    for path in paths:
        try:
            found.append(read(path))
        except ValueError as error:
            found.append(error)
    return found


class SizeCache:
    """A reader of sizes like `read_size` that opens only files that it does not know.

    Args:
        file: the sizes that an earlier start wrote; it need not exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known = _load(file)
        self._seen: dict[str, list[int]] = {}

    def read_size(self, path: str) -> Size:
        """Returns (width, height) of the upright image; may be called by several threads.

        Raises:
            ValueError: as `images.read_size`.
        """
        now = time.time_ns()
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return read_size(path)  # which says what is wrong
        key = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        entry = self._known.get(path)
        if entry is None or entry[:3] != key:
            entry = [*key, *read_size(path)]
            if now - max(key[1:]) <= _RACY:
                return entry[3], entry[4]
        self._seen[path] = entry
        return entry[3], entry[4]

    def write(self) -> None:
        """Writes the sizes that were asked for; others are forgotten.

        Raises:
            OSError: if the disk is full, or the folder gone.
        """
        if self._seen != self._known or not self.file.is_file():
            images = dict(sorted(self._seen.items()))
            write_whole(self.file, json.dumps({"format": _FORMAT, "images": images}) + "\n")


def _load(file: Path) -> dict[str, list[int]]:
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != _FORMAT:
            return {}
        images = content["images"].items()
        return {path: entry for path, entry in images if _is_entry(entry)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: object) -> bool:
    """Returns whether it is [bytes, mtime, ctime, width, height] of an image that can exist."""
    if not isinstance(entry, list) or len(entry) != 5:
        return False
    return all(type(number) is int for number in entry) and all(
        0 < side < 2**31 for side in entry[3:]
    )
