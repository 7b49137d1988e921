"""Changes of a data set since it was noted: images are known by name, boxes by short digests.

A note is {name: [width, height, digests]} of all images, in their order. Names are relative to a
folder, so that a data set may move; digests are four hexadecimal digits a box.
"""

import collections
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from m2det_jax.data.index import DetectionIndex

Note = dict[str, list[Any]]

_DIGITS = 4
_SHOWN = 3  # names in a message


def image_names(paths: Iterable[str], root: str) -> list[str]:
    """Returns the names of images: paths relative to a folder, each on one line."""
    return [" ".join(os.path.relpath(path, root).splitlines()) for path in paths]


def note_images(index: DetectionIndex, root: str) -> Note:
    """Notes an index, so that `describe_changes` can later tell what has changed."""
    objects = _digests(index, index.boxes, index.labels, index.difficult)
    marks = np.full(len(index.regions), 2)  # no object has this flag
    regions = _digests(index, index.regions, index.region_labels, marks)
    ends, region_ends = index.offsets.tolist(), index.region_offsets.tolist()
    sizes = index.sizes.tolist()
    note = {}
    for i, name in enumerate(image_names(index.image_paths, root)):
        boxes = objects[ends[i] : ends[i + 1]] + regions[region_ends[i] : region_ends[i + 1]]
        note[name] = [*sizes[i], "".join(boxes)]
    return note


def _digests(
    index: DetectionIndex, boxes: np.ndarray, labels: np.ndarray, flags: np.ndarray
) -> list[str]:
    # By the class's name: its id changes where another class is added to a data set.
    names = [*index.class_names, ""]
    classes = np.array([zlib.crc32(repr(name).encode()) for name in names], np.uint32)
    bits = np.ascontiguousarray(boxes, np.float32).view(np.uint32).reshape(-1, 4)
    table = np.column_stack([bits, classes[labels], flags]).astype("<u4")
    raw, width = table.tobytes(), 4 * table.shape[1]
    digests = (zlib.crc32(raw[i : i + width]) for i in range(0, len(raw), width))
    return [f"{digest & 0xFFFF:04x}" for digest in digests]


def align(before: Sequence[str], now: Sequence[str]) -> dict[str, str]:
    """Returns pairs of names of the same images, noted before and now: {before: now}.

    Equal names are pairs. Of the others those are pairs that agree, from their end on, in as many
    folders as possible, and in more than any other does: so a data set is found after it moved.
    """
    known, present = set(before), set(now)
    pairs = {name: name for name in before if name in present}
    sides = [[n for n in before if n not in present], [n for n in now if n not in known]]
    parts = {name: _parts(name) for side in sides for name in side}
    for length in range(max(map(len, parts.values()), default=0), 0, -1):
        if not all(sides):
            break
        old, new = (_unique(side, parts, length) for side in sides)
        found = {name: new[end] for end, name in old.items() if end in new}
        pairs |= found
        taken = set(found.values())
        sides = [[n for n in sides[0] if n not in found], [n for n in sides[1] if n not in taken]]
    return pairs


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split(os.sep) if part not in ("", ".", ".."))


def _unique(
    names: list[str], parts: dict[str, tuple[str, ...]], length: int
) -> dict[tuple[str, ...], str]:
    """Returns {last parts of a name: name} where only one name has them."""
    ends = collections.Counter(parts[name][-length:] for name in names)
    return {parts[name][-length:]: name for name in names if ends[parts[name][-length:]] == 1}


def describe_changes(before: Note, now: Note) -> list[str]:
    """Returns what differs between two notes, with counts and the first names; []: nothing.

    A size of 0, 0 is unknown and compared with nothing.
    """
    pairs = align(list(before), list(now))
    there = set(pairs.values())
    boxes = 0
    changed: list[str] = []
    turned: list[str] = []
    resized: list[str] = []
    for old, new in pairs.items():
        *size_before, digests_before = before[old]
        *size_now, digests_now = now[new]
        if size_before != size_now and any(size_before):
            resized.append(new)
        if digests_before != digests_now:
            differing = _differing(digests_before, digests_now)
            (changed if differing else turned).append(new)
            boxes += differing
    added = [name for name in now if name not in there]
    removed = [name for name in before if name not in pairs]
    lines = []
    if changed:
        count = "1 box" if boxes == 1 else f"{boxes} boxes"
        lines.append(f"{count} of {_images(changed)} changed {shown(changed)}")
    if turned:
        lines.append(f"the boxes of {_images(turned)} are in another order {shown(turned)}")
    if resized:
        lines.append(f"the size of {_images(resized)} changed {shown(resized)}")
    for names, what in ((added, "added"), (removed, "removed")):
        if names:
            verb = "was" if len(names) == 1 else "were"
            lines.append(f"{_images(names)} {verb} {what} {shown(names)}")
    if not lines and [pairs[name] for name in before] != list(now):
        lines.append("the images are in another order")
    return lines


def _differing(before: str, now: str) -> int:
    """Returns how many boxes of an image changed, came or went."""
    old, new = (
        collections.Counter(text[i : i + _DIGITS] for i in range(0, len(text), _DIGITS))
        for text in (before, now)
    )
    return max((old - new).total(), (new - old).total())


def shown(names: Sequence[str]) -> str:
    """Returns the first names in brackets, as a terminal can show them."""
    first = [name if name.isprintable() else ascii(name)[1:-1] for name in names[:_SHOWN]]
    return f"({', '.join([*first, *['...'] * (len(names) > _SHOWN)])})"


def _images(names: Sequence[str]) -> str:
    return "1 image" if len(names) == 1 else f"{len(names)} images"
