"""Gallery of a report: which detections and truths are shown, cut out of their images."""

import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from m2det_jax.data import DetectionIndex
from m2det_jax.data.images import UnreadableImage, load_image
from m2det_jax.pages.pictures import reduce
from m2det_jax.report.outcomes import (
    BACKGROUND,
    CORRECT,
    DUPLICATE,
    POOR,
    WRONG,
    Outcomes,
)
from m2det_jax.report.suspects import LIKELY, Suspects, in_words

log = logging.getLogger("m2det_jax")

OF_EACH_KIND, OF_ONE_IMAGE = 12, 2
MAX_BOXES = 80  # detections, and as many truths, of one picture
MISSED, SUSPECT = "missed", "suspect"
# Kinds of pictures in the order of the page: (name in the address, heading).
KINDS = {
    "background": "False alarm",
    MISSED: "Missed",
    "wrong": "Wrong class",
    "duplicate": "Duplicate",
    "poor": "Poor box",
    SUSPECT: "Likely label error",
    "best": "Best",
}
_NUMBERS = {"background": BACKGROUND, "wrong": WRONG, "duplicate": DUPLICATE, "poor": POOR}


@dataclasses.dataclass(frozen=True, eq=False)
class Shot:
    """A picture of the gallery.

    Attributes:
        image: RGB, reduced.
        size: (width, height) of the cut in pixels of the image file.
        kind: a key of KINDS.
        labels: the classes that it is about.
        score: of the detection that it is about; of a miss: of the detection that finds it at a
            lower threshold, NaN: none. NaN of a suspect.
        file: name of the image.
        found: rows [x1, y1, x2, y2, score, label, kind, is it about this one] in the cut.
        truths: rows [x1, y1, x2, y2, label, score of its detection or None, is it about this one].
        note: what the page says of it; "": the score.
    """

    image: Image.Image
    size: tuple[int, int]
    kind: str
    labels: tuple[int, ...]
    score: float
    file: str
    found: list[list[Any]]
    truths: list[list[Any]]
    note: str = ""


def choose(
    judged: Outcomes, index: DetectionIndex, threshold: float, suspected: Suspects | None = None
) -> list[tuple[str, int]]:
    """Returns (kind, row) of the gallery, in the order of KINDS.

    The row is a detection; of misses a truth; of likely label errors one of the suspects.

    False alarms, confusions, duplicates and poor boxes with the highest scores come first, the
    largest misses, the most suspicious labels, and the best by score and IoU. Classes take turns,
    but for suspects.
    """
    chosen = []
    owners = np.repeat(np.arange(index.num_images), index.counts)
    for kind in KINDS:
        if kind == SUSPECT:
            if suspected is None:
                continue
            likely = np.flatnonzero(suspected.suspicion >= LIKELY)
            chosen += [(kind, k) for k in few_of_an_image(likely, suspected.images)]
            continue
        if kind == MISSED:
            some, images = np.flatnonzero(judged.missed(threshold)), owners
            weights, labels = index.areas[some], index.labels
        else:
            number = _NUMBERS.get(kind, CORRECT)
            some = np.flatnonzero((judged.kinds == number) & (judged.scores >= threshold))
            weights = judged.scores[some] * (judged.ious[some] if kind == "best" else 1)
            images, labels = judged.images, judged.labels
        order = in_turns(labels[some], weights)
        chosen += [(kind, int(k)) for k in few_of_an_image(some[order], images)]
    return chosen


def in_turns(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the order in which classes take turns, each with its heaviest first: [n]."""
    order = np.lexsort((-weights, labels))
    starts = np.searchsorted(labels[order], labels[order])
    turn = np.arange(len(order)) - starts
    return order[np.lexsort((-weights[order], turn))]


def few_of_an_image(rows: np.ndarray, images: np.ndarray) -> list[int]:
    """Returns the first rows, at most OF_ONE_IMAGE of an image and OF_EACH_KIND in all.

    Args:
        images: of every row, also of those that are not in `rows`.
    """
    taken: dict[int, int] = {}
    kept = []
    for row in rows.tolist():
        image = int(images[row])
        if taken.get(image, 0) < OF_ONE_IMAGE:
            taken[image] = taken.get(image, 0) + 1
            kept.append(row)
        if len(kept) == OF_EACH_KIND:
            break
    return kept


def shots(
    judged: Outcomes,
    index: DetectionIndex,
    chosen: list[tuple[str, int]],
    suspected: Suspects | None = None,
) -> list[Shot]:
    """Returns the pictures; those whose file can no longer be read are left out with a warning."""
    made = []
    for kind, row in chosen:
        about = _about(judged, index, suspected, kind, row)
        try:
            picture = load_image(index.image_paths[about.image])
        except UnreadableImage as error:
            log.warning("left out of the report: %s", error)
            continue
        made.append(_shot(judged, index, kind, about, picture))
    return made


class _About(NamedTuple):
    """What a picture is about: a truth, a row of the index, and a detection; -1: none."""

    image: int
    truth: int
    found: int
    score: float
    note: str


def _about(
    judged: Outcomes, index: DetectionIndex, suspected: Suspects | None, kind: str, row: int
) -> _About:
    if kind == SUSPECT and suspected is not None:
        image, truth, found = (
            int(column[row]) for column in (suspected.images, suspected.rows, suspected.found)
        )
        return _About(image, truth, found, np.nan, in_words(suspected, row, index, judged))
    if kind == MISSED:
        image = int(np.searchsorted(index.offsets, row, side="right")) - 1
        score = float(judged.found[row])
        return _About(image, row, -1, score, "no detection at this threshold")
    image, truth = int(judged.images[row]), int(judged.truths[row])
    return _About(image, truth, row, float(judged.scores[row]), "")


def _shot(
    judged: Outcomes, index: DetectionIndex, kind: str, about: _About, picture: Image.Image
) -> Shot:
    image, truth, focused = about.image, about.truth, about.found
    boxes, labels = [], []
    if focused >= 0:
        boxes.append(judged.boxes[focused])
        labels.append(int(judged.labels[focused]))
    if truth >= 0:
        boxes.append(index.boxes[truth].astype(float))
        labels.append(int(index.labels[truth]))
    low, high = np.min(boxes, 0)[:2], np.max(boxes, 0)[2:]
    cut = cut_around(np.append(low, high), picture.size)
    left, top, right, bottom = cut
    span = np.arange(index.offsets[image], index.offsets[image + 1])
    span = span[np.argsort(span != truth, kind="stable")]
    truths = [
        [*box, int(index.labels[k]), _floor(judged.found[k]), int(k == truth)]
        for k, box in inside(index.boxes, span, cut)
    ]
    own = np.arange(*np.searchsorted(judged.images, [image, image + 1]))
    own = own[np.argsort(own != focused, kind="stable")]
    found = [
        [*box, _floor(judged.scores[k]), int(judged.labels[k]), int(judged.kinds[k]),
         int(k == focused)]
        for k, box in inside(judged.boxes, own, cut)
    ]  # fmt: skip
    name = index.image_paths[image].replace("\\", "/").rpartition("/")[2]
    return Shot(
        reduce(picture.crop(cut)), (right - left, bottom - top), kind,
        tuple(dict.fromkeys(labels)), about.score, name, found, truths, about.note,
    )  # fmt: skip


def cut_around(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns a square around a box, with the things beside it, inside the image: x1, y1, x2, y2.

    Args:
        box: [4] xyxy pixels.
        size: (width, height) of the image; the cut is not square where it is narrower.
    """
    side = max(2.5 * float((box[2:] - box[:2]).max()), 0.35 * min(size), 64.0)
    ends = []
    for axis in (0, 1):
        length = min(round(side), size[axis])
        start = round(float(box[axis] + box[axis + 2]) / 2 - length / 2)
        start = min(max(start, 0), size[axis] - length)
        ends.append((start, start + length))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def inside(
    boxes: np.ndarray, rows: np.ndarray, cut: tuple[int, int, int, int]
) -> list[tuple[int, list[float]]]:
    """Returns (row, box in pixels of the cut) of the first boxes that reach into the cut."""
    low, high = np.array(cut[:2], float), np.array(cut[2:], float)
    some = boxes[rows].astype(float).reshape(-1, 4)
    meets = ((some[:, :2] < high) & (some[:, 2:] > low)).all(1)
    placed = np.clip(some, np.tile(low, 2), np.tile(high, 2)) - np.tile(low, 2)
    kept = np.flatnonzero(meets)[:MAX_BOXES]
    return [(int(rows[k]), [round(v, 1) for v in placed[k].tolist()]) for k in kept]


def _floor(score: float) -> float | None:
    """Returns a score with 4 digits, never above it; None for NaN."""
    return None if np.isnan(score) else float(np.floor(score * 10_000) / 10_000)
