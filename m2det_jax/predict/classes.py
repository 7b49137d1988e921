"""Classes of prediction: which are kept, and from which score on."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from m2det_jax.errors import InputError
from m2det_jax.metrics.detections import ImageDetections


@dataclasses.dataclass(frozen=True, eq=False)
class Limits:
    """The lowest score of each class.

    Attributes:
        scores: float64 [C], 0..1; infinity: the class is left out.
    """

    scores: np.ndarray

    @property
    def lowest(self) -> float:
        """The lowest of all: what the network's detections need."""
        return float(self.scores.min())

    def of(self, found: ImageDetections) -> ImageDetections:
        """Returns the detections that are kept, in their order."""
        kept = np.asarray(found.scores) >= self.scores[np.asarray(found.labels, np.int64)]
        return dataclasses.replace(
            found, boxes=found.boxes[kept], scores=found.scores[kept], labels=found.labels[kept]
        )


def read_limits(
    threshold: float,
    class_thresholds: Sequence[str],
    classes: Sequence[str],
    class_names: Sequence[str],
) -> Limits:
    """Returns the limits that flags ask for.

    Args:
        threshold: lowest score of all classes that `class_thresholds` does not name, 0..1.
        class_thresholds: NAME=SCORE of some classes.
        classes: names of the classes to keep, one or several with commas between; (): all.
        class_names: all classes.

    Raises:
        InputError: if there is no such class, or a score is none.
    """
    scores = np.full(len(class_names), float(threshold))
    for text in class_thresholds:
        name, equals, number = text.rpartition("=")
        if not equals:
            raise InputError(f"--class_threshold {text}: give NAME=SCORE, such as dog=0.6")
        label = _label(name, class_names, "--class_threshold")
        scores[label] = _score(number, text)
    names = [name for text in classes for name in _names(text, class_names)]
    kept = [_label(name, class_names, "--classes") for name in names]
    if kept:
        scores[np.setdiff1d(np.arange(len(scores)), kept)] = np.inf
    return Limits(scores)


def _names(text: str, class_names: Sequence[str]) -> list[str]:
    return [text] if text in class_names else text.split(",")


def _label(name: str, class_names: Sequence[str], flag: str) -> int:
    if name not in class_names:
        known = ", ".join(class_names[:20]) + ", ..." * (len(class_names) > 20)
        raise InputError(f"{flag} {name}: the detector has no such class; it has {known}")
    return list(class_names).index(name)


def _score(number: str, text: str) -> float:
    try:
        score = float(number)
    except ValueError:
        score = np.nan
    if not 0 <= score <= 1:  # NaN is not, either
        raise InputError(f"--class_threshold {text}: a score from 0 to 1 expected, got {number}")
    return score
