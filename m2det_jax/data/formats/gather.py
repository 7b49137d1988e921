"""Gathering images and boxes of formats with small annotation files; lists of images."""

import array
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2det_jax.data.errors import Findings
from m2det_jax.data.files import SMALL, read_text
from m2det_jax.data.formats.class_file import list_classes
from m2det_jax.data.images import IMAGE_SUFFIXES
from m2det_jax.data.places import Places
from m2det_jax.data.rows import Rows


class Gather:
    """Images and boxes in the order in which they are found.

    Args:
        class_names: the classes by id; None: those that the boxes name.
        first_names: of classes that the boxes name, those that come first; others follow, sorted.
    """

    def __init__(
        self, class_names: tuple[str, ...] | None = None, first_names: tuple[str, ...] = ()
    ) -> None:
        self._class_names, self._first_names = class_names, first_names
        self._names: dict[str, int] = {}
        self._paths: list[str] = []
        self._ids: list[str] = []
        self._sizes, self._places = array.array("q"), array.array("q")
        self._files: dict[str, int] = {}
        self._numbers, self._lines = array.array("d"), array.array("q")
        self._images, self._labels = array.array("q"), array.array("q")
        self._regions, self._difficult = array.array("b"), array.array("b")

    def add_image(
        self,
        path: str | Path,
        file: str | Path,
        line: int = 0,
        *,
        image_id: str,
        size: tuple[int, int] = (0, 0),
    ) -> int:
        """Notes an image that `line` of an annotation file is about; returns its number."""
        self._paths.append(os.path.abspath(path))
        self._ids.append(image_id)
        self._sizes.extend(size)
        self._places.extend((self._files.setdefault(str(file), len(self._files)), line))
        return len(self._paths) - 1

    def add_box(
        self,
        image: int,
        numbers: Sequence[float],
        label: str | int,
        line: int,
        *,
        region: bool = False,
        difficult: bool = False,
    ) -> None:
        """Notes a box; its label is a class name, an id, or -1: unknown, or any (regions)."""
        if isinstance(label, str):
            label = self._names.setdefault(label, len(self._names))
        self._numbers.extend(numbers)
        self._images.append(image)
        self._labels.append(label)
        self._lines.append(line)
        self._regions.append(region)
        self._difficult.append(difficult)

    @property
    def num_images(self) -> int:
        """Number of images so far."""
        return len(self._paths)

    def rows(self, *, style: str, names: tuple[str, str, str, str], missing_remedy: str) -> Rows:
        """Returns all of it; see `Rows`."""
        labels, class_names = np.array(self._labels, np.int64), self._class_names
        if class_names is None:
            others = sorted(set(self._names) - set(self._first_names))
            class_names = (*self._first_names, *others)
            numbers = {name: i for i, name in enumerate(class_names)}
            order = [numbers[name] for name in self._names]
            labels = np.array([*order, -1], np.int64)[labels]
        places = np.array(self._places, np.int64).reshape(-1, 2)
        return Rows(
            class_names=class_names,
            image_paths=self._paths,
            places=Places(
                files=tuple(self._files),
                image_files=places[:, 0],
                image_lines=places[:, 1],
                box_lines=np.array(self._lines, np.int64),
            ),
            numbers=np.array(self._numbers, np.float64).reshape(-1, 4),
            style=style,
            images=np.array(self._images, np.int64),
            labels=labels,
            regions=np.array(self._regions, np.bool_),
            difficult=np.array(self._difficult, np.bool_),
            sizes=np.array(self._sizes, np.int64).reshape(-1, 2),
            image_ids=tuple(self._ids),
            names=names,
            missing_remedy=missing_remedy,
        )


def listed_classes(root: Path, findings: Findings) -> tuple[str, ...]:
    """Reads ROOT/classes.csv, our list for formats that have none; () where it is not there."""
    path = root / "classes.csv"
    return list_classes(path, findings) if path.is_file() else ()


def read_ids(path: Path, findings: Findings) -> list[tuple[int, str]]:
    """Reads a list of image names, one a line; returns (line, name), without blank lines."""
    text = read_text(path, findings, limit=SMALL)
    if text is None:
        return []
    found: list[tuple[int, str]] = []
    lines: dict[str, int] = {}
    for line, name in enumerate(text.splitlines(), 1):
        name = name.strip()
        if name in lines:
            what, remedy = f"repeats line {lines[name]}", "remove one of them"
            findings.add(path, line, what, remedy, kind="bad-id", value=name)
        elif name:
            lines[name] = line
            found.append((line, name))
    if not found:
        findings.add(path, 0, "no images", "name one a line", kind="no-rows")
    return found


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Returns the image files of a folder by their name without suffix; {} where it is missing.

    Of files that differ in the suffix alone the first in order of name is taken.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    found: dict[str, Path] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(stem, folder / name)
    return found
