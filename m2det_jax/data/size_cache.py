"""Sizes of images that an earlier start has read from their headers, kept in a file.

Only what was measured is kept, by path, file size and times: a file that was touched since is read
again. The file may be deleted at any time; one that is damaged, or of another make, is ignored.
"""

import json
import os
import time
from pathlib import Path

from m2det_jax.data.files import write_whole
from m2det_jax.data.images import read_size

_FORMAT = 1  # to be raised when `read_size` gives other sizes for the same files
# A file that is written twice within the resolution of its time looks the same both times. As in
# git, what is younger than the coarsest resolution (FAT has 2 s) when it is read is not kept.
_RACY = 2_000_000_000  # nanoseconds


class SizeCache:
    """Reads sizes as `read_size`, but those it knows without opening the file.

    Args:
        file: where an earlier start wrote them, if it did.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known = _load(file)
        self._seen: dict[str, list[int]] = {}

    def read_size(self, path: str) -> tuple[int, int]:
        """Returns (width, height) of the upright image; may be called by several threads.

        Raises:
            ValueError: as `read_size` of the images.
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
        """Writes what was seen; images that were not are forgotten.

        Raises:
            OSError: the disk is full, or the folder gone.
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
    """True for [bytes, mtime, ctime, width, height] with a size that an image can have."""
    if not isinstance(entry, list) or len(entry) != 5:
        return False
    return all(type(number) is int for number in entry) and all(
        0 < side < 2**31 for side in entry[3:]
    )
