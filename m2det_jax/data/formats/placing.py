"""Image files of a data set that is written: named anew where a format asks for it, and placed."""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def unique_stems(paths: Sequence[str]) -> list[str]:
    """Returns a name without suffix for each path: its own without blanks, numbered if taken."""
    taken: set[str] = set()
    stems = []
    for path in paths:
        own = "_".join(os.path.splitext(os.path.basename(path))[0].split()) or "image"
        stem, number = own, 1
        while stem in taken:
            number += 1
            stem = f"{own}_{number}"
        taken.add(stem)
        stems.append(stem)
    return stems


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
