"""Suspects: labels that are likely wrong, ranked by what a trained detector finds instead.

A detector that has learnt from many labels contradicts the few that are wrong. A suspicion, from 0
to 1, is the score of the detection that contradicts a label, times how much it contradicts:

- wrong class: min(1, 2 IoU), times 1 - the best score of a detection that supports the label (one
  of its class with an IoU of at least 0.5);
- badly placed box: min(1, 2 (1 - IoU)). An IoU of 0.5 or less contradicts wholly;
- missing label, of a detection that no object explains: 1 - the largest IoU with an object, or with
  a better detection that no object explains.

An object goes with one detection and a detection with one object: pairs are formed by falling score
times IoU, from an IoU of 0.1 up. Letters: D detections, K objects (rows of the index), S suspects.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.ops.coverage import aligned_iou
from m2det_jax.pages.markup import shorten
from m2det_jax.report.outcomes import GOOD_IOU, IGNORED, POOR_IOU, Outcomes

KINDS = ("wrong class", "badly placed box", "missing label")
WRONG_CLASS, MISPLACED, MISSING = range(len(KINDS))
LIKELY = 0.5  # suspicion from which the page shows and counts a label
MAX_LISTED = 100_000
MAX_MISSING = 500_000  # of a ranking: labels that may be missing, for the sake of memory
COLUMNS = (
    "image", "place", "kind", "suspicion", "label", "x1", "y1", "x2", "y2",
    "suggested_label", "suggested_x1", "suggested_y1", "suggested_x2", "suggested_y2", "score",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Suspects:
    """All objects, and the detections that no object explains, by falling suspicion.

    Attributes:
        images: int64 [S].
        rows: int64 [S], the object, a row of the index; -1: a label is missing.
        found: int64 [S], the detection that contradicts, a row of Outcomes; -1: there is none.
        kinds: int64 [S], positions in KINDS.
        suspicion: float64 [S], from 0 to 1.
    """

    images: np.ndarray
    rows: np.ndarray
    found: np.ndarray
    kinds: np.ndarray
    suspicion: np.ndarray

    def likely(self) -> dict[str, int]:
        """Returns how many labels have a suspicion of LIKELY or more, by kind."""
        counts = np.bincount(self.kinds[self.suspicion >= LIKELY], minlength=len(KINDS))
        return dict(zip(KINDS, counts.tolist(), strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class _Evidence:
    """What speaks for and against labels.

    Attributes:
        partners: int64 [K], the detection that goes with each object; -1: none.
        support: float64 [K], the best score of a detection of the object's class that overlaps it
            with an IoU of at least 0.5; 0: there is none.
        overlaps: float64 [D], the largest IoU of a detection with an object, or with a better
            detection that no object explains.
    """

    partners: np.ndarray
    support: np.ndarray
    overlaps: np.ndarray


def suspects(index: DetectionIndex, judged: Outcomes) -> Suspects:
    """Returns all labels, and labels that may be missing, ranked by suspicion.

    Missing are detections that overlap no object, and no better missing one, with an IoU of 0.5 or
    more; the most suspicious MAX_MISSING of them. Those in regions (crowds) are left out. Difficult
    objects are labels as others are.
    """
    seen, num_objects = _evidence(index, judged), len(index.labels)
    known = np.flatnonzero(seen.partners >= 0)
    partners = seen.partners[known]
    scores, labels = judged.scores[partners], judged.labels[partners]
    iou = aligned_iou(judged.boxes[partners], index.boxes[known].astype(float))
    agree = labels == index.labels[known]
    placed = np.minimum(1, 2 * (1 - iou))
    other = np.minimum(1, 2 * iou) * (1 - seen.support[known])
    suspicion = np.zeros(num_objects)
    suspicion[known] = scores * np.where(agree, placed, other)
    kinds = np.full(num_objects, MISPLACED)
    kinds[known[~agree]] = WRONG_CLASS
    free = (seen.overlaps < GOOD_IOU) & (judged.kinds != IGNORED)
    free[partners] = False
    missing = np.flatnonzero(free)
    lacking = judged.scores[missing] * (1 - seen.overlaps[missing])
    if len(missing) > MAX_MISSING:
        best = np.sort(np.argpartition(-lacking, MAX_MISSING)[:MAX_MISSING])
        missing, lacking = missing[best], lacking[best]
    columns = (
        np.repeat(np.arange(index.num_images), index.counts),
        np.arange(num_objects),
        seen.partners,
        kinds,
        suspicion,
    )
    more = (
        judged.images[missing],
        np.full(len(missing), -1),
        missing,
        np.full(len(missing), MISSING),
        lacking,
    )
    whole = [np.concatenate(pair) for pair in zip(columns, more, strict=True)]
    order = np.argsort(-whole[-1], kind="stable")
    return Suspects(*(column[order] for column in whole))


def _evidence(index: DetectionIndex, judged: Outcomes) -> _Evidence:
    partners = np.full(len(index.labels), -1)
    support, overlaps = np.zeros(len(index.labels)), np.zeros(len(judged.scores))
    starts = np.searchsorted(judged.images, np.arange(index.num_images + 1))
    for image in range(index.num_images):
        rows = np.arange(index.offsets[image], index.offsets[image + 1])
        own = np.arange(starts[image], starts[image + 1])
        if not len(own):
            continue
        boxes, scores = judged.boxes[own], judged.scores[own]
        iou = aligned_iou(boxes[:, None], index.boxes[rows].astype(float)[None])  # [d, k]
        pairs = _pairs(np.where(iou >= POOR_IOU, scores[:, None] * iou, 0))
        partners[rows[pairs[:, 1]]] = own[pairs[:, 0]]
        same = (judged.labels[own][:, None] == index.labels[rows]) & (iou >= GOOD_IOU)
        support[rows] = np.where(same, scores[:, None], 0).max(0)
        overlaps[own] = np.maximum(iou.max(1, initial=0), _with_better(boxes, pairs[:, 0]))
    return _Evidence(partners, support, overlaps)


def _pairs(weights: np.ndarray) -> np.ndarray:
    """Returns pairs (row, column), int64 [n, 2], of a matrix by falling weight above 0.

    Each row and each column is in one pair at most.
    """
    rows, columns = np.nonzero(weights)
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    pairs = []
    for k in np.argsort(-weights[rows, columns], kind="stable"):
        row, column = int(rows[k]), int(columns[k])
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _with_better(boxes: np.ndarray, explained: np.ndarray) -> np.ndarray:
    """Returns the largest IoU of each box [d, 4] with those before it that nothing explains: [d].

    The boxes are in falling order of score.
    """
    free = np.ones(len(boxes), bool)
    free[explained] = False
    iou = aligned_iou(boxes[:, None], boxes[None])
    return np.where(np.tri(len(boxes), k=-1, dtype=bool) & free, iou, 0).max(1)


def in_words(suspected: Suspects, place: int, index: DetectionIndex, judged: Outcomes) -> str:
    """Returns what is suspected of one label, as half a sentence."""
    kind = int(suspected.kinds[place])
    found = shorten(index.class_names[judged.labels[suspected.found[place]]], 60)
    what = {
        WRONG_CLASS: f"wrong class? It looks like {found}",
        MISPLACED: "badly placed box?",
        MISSING: f"missing label? It looks like {found}",
    }[kind]
    return f"{what}, suspicion {suspected.suspicion[place]:.2f}"


def suspects_csv(suspected: Suspects, index: DetectionIndex, judged: Outcomes) -> str:
    """Returns the suspects as CSV with a header, the most suspicious first, MAX_LISTED at most.

    place is the file and line of the label, where they are known. The box and label of a missing
    label are empty; what is suggested is that of the detection.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for place in range(min(len(suspected.rows), MAX_LISTED)):
        row, found = int(suspected.rows[place]), int(suspected.found[place])
        kind = KINDS[suspected.kinds[place]]
        own, suggested = ["", "", "", "", ""], ["", "", "", "", "", ""]
        if row >= 0:
            own = [index.class_names[index.labels[row]], *_rounded(index.boxes[row])]
        if found >= 0:
            name = index.class_names[judged.labels[found]]
            score = f"{math.floor(1e4 * judged.scores[found]) / 1e4:.4f}"
            suggested = [name, *_rounded(judged.boxes[found]), score]
        image = index.image_paths[suspected.images[place]]
        start = [image, _place(index, row), kind, f"{suspected.suspicion[place]:.4f}"]
        writer.writerow([*start, *own, *suggested])
    return file.getvalue()


def _rounded(box: Sequence[float] | np.ndarray) -> list[str]:
    return [f"{value:.1f}" for value in np.asarray(box, float).tolist()]


def _place(index: DetectionIndex, row: int) -> str:
    where = index.place_of_box(row) if row >= 0 else {}
    parts = (where.get("file", ""), where.get("line", 0), where.get("item", ""))
    return ":".join(str(part) for part in parts if part)
