"""Differences of two detectors, A and B: objects that one finds, false alarms that one has.

Each is looked at with the detections from its own threshold up, the one with its best F1.
"""

import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from m2det_jax.data import DetectionIndex
from m2det_jax.data.images import UnreadableImage, load_image
from m2det_jax.ops.coverage import aligned_iou
from m2det_jax.pages.pictures import reduce
from m2det_jax.report.gallery import cut_around, few_of_an_image, in_turns, inside
from m2det_jax.report.outcomes import BACKGROUND, GOOD_IOU, POOR_IOU, Outcomes

log = logging.getLogger("m2det_jax")

# Kinds of pictures in the order of the page: (name in the address, heading).
KINDS = {
    "found-a": "Only A finds it",
    "found-b": "Only B finds it",
    "alarm-a": "False alarm of A only",
    "alarm-b": "False alarm of B only",
}


FAR, NEAR, ABOUT = range(3)


class Side(NamedTuple):
    """The detections of one of the two, and its threshold."""

    judged: Outcomes
    threshold: float

    @property
    def finds(self) -> np.ndarray:
        """Whether each object is found, bool [K]."""
        return self.judged.found >= self.threshold

    @property
    def shown(self) -> np.ndarray:
        """The detections from the threshold up, int64 [n]."""
        return np.flatnonzero(self.judged.scores >= self.threshold)


@dataclasses.dataclass(frozen=True, eq=False)
class Shot:
    """A picture of a difference.

    Attributes:
        image: RGB, reduced.
        size: (width, height) of the cut in pixels of the image file.
        kind: a key of KINDS.
        label: the class that it is about.
        detail: in words.
        file: name of the image.
        truths: rows [x1, y1, x2, y2, label, weight] in the cut; the weight is ABOUT for the box
            that the picture is about, NEAR for those that overlap it, FAR for others.
        found: of A and of B, rows [x1, y1, x2, y2, label, score, weight].
    """

    image: Image.Image
    size: tuple[int, int]
    kind: str
    label: int
    detail: str
    file: str
    truths: list[list[Any]]
    found: tuple[list[list[Any]], ...]


def found_by_one(a: Side, b: Side) -> tuple[np.ndarray, np.ndarray]:
    """Returns the objects that only A finds, and those that only B finds: int64 rows."""
    counted = a.judged.counted
    return np.flatnonzero(counted & a.finds & ~b.finds), np.flatnonzero(
        counted & b.finds & ~a.finds
    )


def alarms_of_one(side: Side, other: Side) -> np.ndarray:
    """Returns the false alarms of a side that the other has not: int64 rows of its detections.

    The other has it if one of its detections of the same class overlaps it with IoU 0.5 or more.
    """
    alarms = side.shown[side.judged.kinds[side.shown] == BACKGROUND]
    theirs = other.judged
    own = []
    for row in alarms.tolist():
        image = side.judged.images[row]
        low, high = np.searchsorted(theirs.images, [image, image + 1])
        same = theirs.labels[low:high] == side.judged.labels[row]
        same &= theirs.scores[low:high] >= other.threshold
        overlap = aligned_iou(side.judged.boxes[row][None], theirs.boxes[low:high][same])
        if not (overlap >= GOOD_IOU).any():
            own.append(row)
    return np.array(own, np.int64)


def choose(a: Side, b: Side, index: DetectionIndex) -> list[tuple[str, int]]:
    """Returns (kind, row) of the pictures: rows of objects, or of detections for false alarms.

    The largest objects and the false alarms with the highest scores come first. Classes take turns.
    """
    owners = np.repeat(np.arange(index.num_images), index.counts)
    only_a, only_b = found_by_one(a, b)
    rows = {
        "found-a": (only_a, index.areas, index.labels, owners),
        "found-b": (only_b, index.areas, index.labels, owners),
        "alarm-a": (alarms_of_one(a, b), a.judged.scores, a.judged.labels, a.judged.images),
        "alarm-b": (alarms_of_one(b, a), b.judged.scores, b.judged.labels, b.judged.images),
    }
    chosen = []
    for kind, (some, weights, labels, images) in rows.items():
        order = in_turns(labels[some], weights[some])
        chosen += [(kind, row) for row in few_of_an_image(some[order], images)]
    return chosen


def shots(a: Side, b: Side, index: DetectionIndex, chosen: list[tuple[str, int]]) -> list[Shot]:
    """Returns the pictures; those whose file can no longer be read are left out with a warning."""
    made = []
    for kind, row in chosen:
        judged = (a if kind.endswith("a") else b).judged
        image = int(judged.images[row])
        if kind.startswith("found"):
            image = int(np.searchsorted(index.offsets, row, side="right")) - 1
        try:
            picture = load_image(index.image_paths[image])
        except UnreadableImage as error:
            log.warning("left out of the comparison: %s", error)
            continue
        made.append(_shot((a, b), index, kind, row, image, picture))
    return made


def _shot(
    sides: tuple[Side, Side],
    index: DetectionIndex,
    kind: str,
    row: int,
    image: int,
    picture: Image.Image,
) -> Shot:
    is_object, own = kind.startswith("found"), "ab".index(kind[-1])
    judged = sides[own].judged
    focus = (index.boxes if is_object else judged.boxes)[row].astype(float)
    label = int((index.labels if is_object else judged.labels)[row])
    score = float((judged.found if is_object else judged.scores)[row])
    cut = cut_around(focus, picture.size)
    rows = np.arange(index.offsets[image], index.offsets[image + 1])
    truths = _rows(index.boxes, rows, cut, focus, row if is_object else -1)
    found = []
    for place, side in enumerate(sides):
        low, high = np.searchsorted(side.judged.images, [image, image + 1])
        rows = np.arange(low, high)
        rows = rows[side.judged.scores[rows] >= side.threshold]
        about = row if place == own and not is_object else -1
        found.append(_rows(side.judged.boxes, rows, cut, focus, about))
    return Shot(
        image=reduce(picture.crop(cut)),
        size=(cut[2] - cut[0], cut[3] - cut[1]),
        kind=kind,
        label=label,
        detail=f"score {score:.2f} of {'AB'[own]}",
        file=index.image_paths[image].replace("\\", "/").rpartition("/")[2],
        truths=[[*box, int(index.labels[k]), weight] for k, box, weight in truths],
        found=tuple(
            [[*box, int(one.judged.labels[k]), float(one.judged.scores[k]), weight]
             for k, box, weight in some]
            for one, some in zip(sides, found, strict=True)
        ),
    )  # fmt: skip


def _rows(
    boxes: np.ndarray,
    rows: np.ndarray,
    cut: tuple[int, int, int, int],
    focus: np.ndarray,
    about: int,
) -> list[tuple[int, list[float], int]]:
    """Returns (row, box in the cut, weight) of boxes, the heaviest first.

    Args:
        focus: [4] xyxy, the box that the picture is about.
        about: its row in `boxes`; -1: it is of another kind.
    """
    near = aligned_iou(boxes[rows].astype(float), focus[None]) >= POOR_IOU
    weights = np.where(rows == about, ABOUT, np.where(near, NEAR, FAR))
    order = np.argsort(-weights, kind="stable")
    by_row = dict(zip(rows.tolist(), weights.tolist(), strict=True))
    return [(k, box, by_row[k]) for k, box in inside(boxes, rows[order], cut)]
