"""Advice of a report, in words: what to do next, from counts and curves."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from m2det_jax.metrics.diagnosis import COSTS
from m2det_jax.pages.markup import count, percent, shorten
from m2det_jax.report.outcomes import BACKGROUND, CORRECT, DUPLICATE, POOR, WRONG

FEW_BOXES = 100  # of a class in training
_RISE, _FALL = 0.005, 0.02  # of AP, as a share of 1
_NAMED = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What advice is given from.

    Attributes:
        names: C class names.
        training: int [C], boxes in training; None: unknown.
        truths: int [C], objects that were evaluated.
        ap50: float [C], NaN without objects.
        reached: bool [K], whether an anchor reaches each of the evaluated boxes.
        labels: int [K], their classes.
        history: records of the run.
        step: of the checkpoint.
        threshold, f1: the best ones of all classes together; NaN: there are none.
        counts: int [C, kinds] at that threshold.
        missed: truths that are missed at it.
        confused: int [C + 1, C + 1], as outcomes.confusion.
        details: as metrics.details.details.
        suspected: how many likely label errors of each kind there are, by name.
    """

    names: Sequence[str]
    training: np.ndarray | None
    truths: np.ndarray
    ap50: np.ndarray
    reached: np.ndarray
    labels: np.ndarray
    history: Sequence[dict]
    step: int
    threshold: float
    f1: float
    counts: np.ndarray
    missed: int
    confused: np.ndarray
    details: dict[str, Any]
    suspected: dict[str, int]


def advice(facts: Facts) -> list[tuple[str, str]]:
    """Returns (heading, sentences), the most useful first."""
    parts = (
        _threshold, _length, _labels, _examples, _anchors, _errors, _costs, _scores, _confusions,
    )  # fmt: skip
    return [(heading, text) for part in parts for heading, text in part(facts)]


def _threshold(facts: Facts) -> list[tuple[str, str]]:
    if math.isnan(facts.threshold) or facts.f1 == 0:
        return [("Threshold", "No detection is correct, so no threshold can be named. Check the "
                 "data with m2det check, and train longer.")]  # fmt: skip
    return [
        ("Threshold", f"Show detections with a score of {facts.threshold:.2f} or more: there "
         f"precision and recall are in the best balance (F1 {facts.f1:.2f}). Take a higher one if "
         "false alarms cost more than misses, a lower one if misses cost more.")
    ]  # fmt: skip


def _length(facts: Facts) -> list[tuple[str, str]]:
    points = [(r["step"], r["val_AP"]) for r in facts.history if "val_AP" in r]
    points = [(step, ap) for step, ap in points if math.isfinite(ap)]
    if len(points) < 3:
        text = "The history has fewer than three evaluations, so it cannot show whether AP still"
        return [
            ("Length of training", f"{text} rises. Evaluate more often (config.eval.every_epochs).")
        ]
    steps, values = np.array(points).T
    best = int(values.argmax())
    early = values[steps <= 0.75 * steps[-1]]
    before = early.max() if len(early) else values[0]
    if values[-1] < values[best] - _FALL:
        text = f"AP was best at step {steps[best]:.0f} ({values[best]:.3f}) and fell to "
        text += f"{values[-1]:.3f}. Use --checkpoint best, or train for fewer steps."
    elif values[best] > before + _RISE:
        text = f"AP still rose in the last quarter, from {before:.3f} to {values[best]:.3f}. "
        text += "Train longer."
    else:
        text = f"AP did not rise in the last quarter (best {values[best]:.3f}). Longer training "
        text += "alone will help little: more data or a larger experiment may."
    return [("Length of training", text)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(shorten(name, 60) for name in names[:_NAMED]) + more


def _examples(facts: Facts) -> list[tuple[str, str]]:
    found = []
    if facts.training is not None:
        few = np.flatnonzero(facts.training < FEW_BOXES)
        few = few[np.argsort(facts.training[few], kind="stable")]
        if len(few):
            names = [f"{facts.names[k]} ({count(int(facts.training[k]))})" for k in few.tolist()]
            text = f"Fewer than {FEW_BOXES} training boxes: {_listed(names)}. Add images of them."
            found.append(("Few examples", text))
    empty = np.flatnonzero(facts.truths == 0)
    if len(empty):
        names = [facts.names[k] for k in empty.tolist()]
        text = f"No object was evaluated of {_listed(names)}: nothing is known of how well they "
        found.append(("Not evaluated", text + "are found. Add some to the validation set."))
    known = np.flatnonzero(np.isfinite(facts.ap50) & (facts.truths > 0))
    if len(known) > 1:
        worst = known[facts.ap50[known].argmin()]
        text = f"{shorten(facts.names[worst], 60)} has the lowest AP50, {facts.ap50[worst]:.2f}. "
        found.append(("Weakest class", text + "Look at its pictures below first."))
    return found


def _anchors(facts: Facts) -> list[tuple[str, str]]:
    if not len(facts.reached):
        return []
    share = float(facts.reached.mean())
    classes = [
        (float(facts.reached[facts.labels == k].mean()), name)
        for k, name in enumerate(facts.names)
        if (facts.labels == k).any()
    ]
    low = [f"{name} ({percent(s)})" for s, name in sorted(classes) if s < 0.9]
    text = f"Anchors reach {percent(share)} of the evaluated boxes. "
    if not low:
        return [("Anchors", text + "No class falls below 90 %.")]
    text += f"Below 90 %: {_listed(low)}. Run m2det check --fit_anchors, or train at a larger "
    return [("Anchors", text + "config.data.image_size.")]


_REMEDIES = {
    POOR: ("boxes that lie badly", "check how tight the labels are, and train longer"),
    WRONG: ("right boxes with the wrong class", "look whether the labels of these classes agree"),
    DUPLICATE: ("second boxes of one object", "lower config.eval.iou_threshold"),
    BACKGROUND: (
        "false alarms on the background",
        "look at the pictures: some may be objects without a label; else add images like them "
        "without objects",
    ),
}


def _errors(facts: Facts) -> list[tuple[str, str]]:
    totals = facts.counts.sum(0)
    wrong = {kind: int(totals[kind]) for kind in _REMEDIES}
    found = []
    if sum(wrong.values()):
        kind = max(wrong, key=wrong.__getitem__)
        what, remedy = _REMEDIES[kind]
        text = f"At this threshold {count(sum(wrong.values()))} of "
        text += f"{count(sum(wrong.values()) + int(totals[CORRECT]))} detections are wrong. Most "
        text += f"of these ({count(wrong[kind])}) are {what}: {remedy}."
        found.append(("Main kind of error", text))
    if facts.missed:
        text = f"{count(facts.missed)} of {count(int(facts.truths.sum()))} objects are missed at "
        found.append(("Misses", text + "this threshold."))
    return found


_COSTLY = 0.01  # of AP50
_COST_REMEDIES = {
    "wrong_class": "Look whether the labels of these classes agree",
    "poor_box": "Check how tight the labels are, and train longer",
    "wrong_class_and_poor_box": "Look at the pictures of wrong classes and of poor boxes",
    "duplicate": "Lower config.eval.iou_threshold",
    "background": "Look whether some are objects without a label",
    "missed": "Look at the misses: more images like them help, or a larger config.data.image_size",
}


def _costs(facts: Facts) -> list[tuple[str, str]]:
    lost = {kind: facts.details["error_costs"][kind]["AP50_lost"] for kind in COSTS}
    kind = max(lost, key=lambda name: np.nan_to_num(lost[name]))
    if not lost[kind] > _COSTLY:
        return []
    text = f"Without the errors of the kind {kind.replace('_', ' ')} AP50 would be "
    text += f"{lost[kind]:.3f} higher, more than without any other kind. {_COST_REMEDIES[kind]}."
    return [("Most costly errors", text)]


_FAR = 0.1  # between score and precision


def _scores(facts: Facts) -> list[tuple[str, str]]:
    bins = [
        one
        for one in facts.details["calibration"]["bins"]
        if one["detections"] and one["to"] > facts.threshold
    ]
    if not bins:
        return []
    weights = [one["detections"] for one in bins]
    said, right = (
        float(np.average([one[key] for one in bins], weights=weights))
        for key in ("score", "precision")
    )
    if abs(right - said) < _FAR:
        return []
    side = "low" if right > said else "high"
    text = f"Above the threshold the mean score is {said:.2f}, and {percent(right)} of the "
    text += f"detections are right: scores are too {side} to be read as probabilities. "
    return [("Scores", text + "Order by them, and look at Calibration for what they mean.")]


def _labels(facts: Facts) -> list[tuple[str, str]]:
    number = sum(facts.suspected.values())
    if not number:
        return []
    kinds = ", ".join(f"{count(n)} {kind}" for kind, n in facts.suspected.items() if n)
    text = f"The detector contradicts {count(number)} labels ({kinds}). Look at the likely label "
    text += (
        "errors among the pictures, mend those that are wrong, and evaluate again. suspects.csv "
    )
    return [("Labels", text + "beside this page lists all boxes, the most suspicious first.")]


def _confusions(facts: Facts) -> list[tuple[str, str]]:
    matrix = facts.confused[:-1, :-1].copy()
    np.fill_diagonal(matrix, 0)
    if not matrix.size or not matrix.max():
        return []
    true, said = divmod(int(matrix.argmax()), matrix.shape[1])
    text = f"{shorten(facts.names[true], 60)} is most often taken for "
    times = int(matrix[true, said])
    text += f"{shorten(facts.names[said], 60)}: {count(times)} time{'' if times == 1 else 's'}."
    return [("Confused classes", text)]
