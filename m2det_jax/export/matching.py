"""Matching of two lists of detections of one picture, and reasons for what has no partner.

Two programs that compute the same in another order differ by rounding. Where a score or an overlap
lies at a limit, rounding decides whether a box is there at all. n, m numbers of detections.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from m2det_jax.detector.detector import Suppression

BOX = 0.1  # pixels between the coordinates of two partners, at most
SCORE = 1e-3  # between their scores, at most
NEAR, OVERLAP = 1e-4, 1e-3  # a score and an IoU this near to a limit can fall on either side


class Found(NamedTuple):
    """The detections of a picture: boxes [n, 4] xyxy, scores and labels [n]."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Candidates(NamedTuple):
    """All boxes of the network in a picture: boxes [A, 4] xyxy and scores [A, C]."""

    boxes: np.ndarray
    scores: np.ndarray


class Match(NamedTuple):
    """Partners of two lists, largest differences, and the reasons for boxes without a partner.

    Attributes:
        pairs: number of partners.
        box, score: largest difference of a coordinate (pixels) and of a score; 0 without partners.
        reasons: why each other box has no partner; "": no reason is known.
    """

    pairs: int
    box: float
    score: float
    reasons: list[str]


def match(first: Found, second: Found, candidates: Candidates, how: Suppression) -> Match:
    """Matches detections of one picture by two programs.

    Args:
        candidates: what the network of the first program gives, in the same pixels.
        how: the suppression of both, with the score threshold of the call.
    """
    pairs = _partners(first, second)
    rows, columns = ([pair[side] for pair in pairs] for side in (0, 1))
    box = np.abs(first.boxes[rows] - second.boxes[columns])
    score = np.abs(first.scores[rows] - second.scores[columns])
    both = Found(*(np.concatenate(field) for field in zip(first, second, strict=True)))
    taken = [*rows, *(len(first.scores) + column for column in columns)]
    alone = np.setdiff1d(np.arange(len(both.scores)), taken)
    doubts, reasons = _Doubts(both, candidates, how), dict[int, str]()
    for i in alone[np.argsort(-both.scores[alone], kind="stable")].tolist():
        other = second if i < len(first.scores) else first
        reasons[i] = doubts.reason(i, other) or doubts.follows(i, reasons)
    return Match(
        len(pairs), float(box.max(initial=0)), float(score.max(initial=0)), list(reasons.values())
    )


def _partners(first: Found, second: Found) -> list[tuple[int, int]]:
    """Returns pairs of positions, the nearest first; each box has one partner at most."""
    boxes = np.abs(first.boxes[:, None] - second.boxes[None]).max(axis=-1, initial=0)
    scores = np.abs(first.scores[:, None] - second.scores[None])
    near = (first.labels[:, None] == second.labels[None]) & (boxes <= BOX) & (scores <= SCORE)
    rows, columns = np.nonzero(near)
    order = np.argsort(boxes[rows, columns] / BOX + scores[rows, columns] / SCORE, kind="stable")
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = set(), set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken[0] and column not in taken[1]:
            pairs.append((row, column))
            taken[0].add(row)
            taken[1].add(column)
    return pairs


class _Doubts:
    """The detections of both programs, to find reasons for those without a partner."""

    def __init__(self, both: Found, candidates: Candidates, how: Suppression) -> None:
        self.both, self.scores, self.how = both, candidates.scores, how
        self.hard = how.nms == "hard"
        self.raw = [self._raw(i, candidates) for i in range(len(both.scores))]
        self.real = np.array([raw is not None for raw in self.raw], bool)

    def _raw(self, i: int, candidates: Candidates) -> float | None:
        """Returns the score that the network gives box i; None: it does not give this box."""
        scores, score = candidates.scores[:, self.both.labels[i]], self.both.scores[i]
        # Soft suppression lowers scores.
        fits = abs(scores - score) <= SCORE if self.hard else scores >= score - SCORE
        fits &= abs(candidates.boxes - self.both.boxes[i]).max(axis=1) <= BOX
        return float(scores[fits].max()) if fits.any() else None

    def reason(self, i: int, other: Found) -> str:
        """Returns why box i is not in the other list; "": for no reason of its own."""
        score, raw, how = self.both.scores[i], self.raw[i], self.how
        if raw is None:
            return ""
        threshold = float(how.score_threshold)
        floor = threshold if self.hard else float(how.soft_score_floor)
        if abs(raw - threshold) <= NEAR or abs(score - floor) <= NEAR:
            return "score at the threshold"
        if raw <= self._cut(self.both.labels[i]) + NEAR:
            return "score not above that of the last box before suppression"
        if any(score <= last + NEAR for last in self._last_scores(i, other)):
            return "score not above that of the last detection"
        rivals, overlaps = self.rivals(i)
        limit = how.iou_threshold if self.hard else how.soft_iou_threshold
        if how.nms != "soft_gaussian" and (rivals & (abs(overlaps - limit) <= OVERLAP)).any():
            return "overlap at the threshold"
        over = rivals & (overlaps > (limit if self.hard else 0))
        if (over & (abs(self.both.scores - score) <= NEAR)).any():
            return "same score as a box that it overlaps"
        return ""

    def follows(self, i: int, reasons: dict[int, str]) -> str:
        """Returns the reason of a box that overlaps one with a higher score that has a reason."""
        rivals, overlaps = self.rivals(i)
        over = rivals & (overlaps > (self.how.iou_threshold if self.hard else 0.0))
        return "overlaps such a box" if any(over[j] for j, why in reasons.items() if why) else ""

    def rivals(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which other boxes can suppress box i, bool [n], and the overlaps with all."""
        rivals = self.real & (np.arange(len(self.real)) != i)
        if not self.how.class_agnostic:
            rivals &= self.both.labels == self.both.labels[i]
        return rivals, _overlaps(self.both.boxes[i], self.both.boxes)

    def _cut(self, label: int) -> float:
        """Returns the lowest score that takes part in the suppression; -inf: all do."""
        scores, count = self.scores.ravel(), self.how.pre_nms_top_k
        if not self.hard and not self.how.class_agnostic:
            scores, count = self.scores[:, label], self.how.soft_candidates
        return float(np.partition(scores, -count)[-count]) if count < scores.size else -np.inf

    def _last_scores(self, i: int, other: Found) -> Iterator[float]:
        """Yields the lowest scores of a list that cannot take one more box."""
        if len(other.scores) >= self.how.max_detections:
            yield float(other.scores.min())
        of_class = other.scores[other.labels == self.both.labels[i]]
        if self.how.max_per_class and len(of_class) >= self.how.max_per_class:
            yield float(of_class.min())


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the IoU [n] of a box with boxes [n, 4]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    own = np.maximum(box[2:] - box[:2], 0).prod()
    return shared / np.maximum(areas + own - shared, 1e-12)
