"""Image files of a data set that is written: named anew where a format asks for it, and placed."""

import errno
import os
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


def same_file_key(name: str) -> str:
    """Returns what two names share that are one file on some file systems (case, accents)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def distinct_names(names: Iterable[str]) -> list[str]:
    """Returns the names, numbered where one is that of an earlier file on some file system."""
    taken: set[str] = set()
    last: dict[str, int] = {}  # number given to a name
    distinct = []
    for own in names:
        name, key = own, same_file_key(own)
        while same_file_key(name) in taken:
            last[key] = last.get(key, 1) + 1
            name = f"{own}_{last[key]}"
        taken.add(same_file_key(name))
        distinct.append(name)
    return distinct


def unique_stems(paths: Sequence[str]) -> list[str]:
    """Returns a name without suffix for each path: its own without blanks, numbered if taken."""
    own = (os.path.splitext(os.path.basename(path))[0].split() for path in paths)
    return distinct_names("_".join(words) or "image" for words in own)


def place_image(source: str, target: Path, *, copy: bool) -> bool:
    """Puts an image at target, as a hard link unless copied; returns whether it was copied.

    A file that is there is replaced. Hard links are impossible between file systems.
    """
    if target.exists() and os.path.samefile(source, target):
        return False
    target.unlink(missing_ok=True)
    if not copy:
        try:
            os.link(os.path.realpath(source), target)
            return False
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
    shutil.copyfile(source, target)
    return True


def shortest(value: float | np.floating) -> str:
    """Returns the shortest decimal text that reads back as the same number of its type."""
    return str(int(value)) if value == int(value) else str(value)
