"""Label errors that a trained detector finds: errors are planted, ranked, and counted.

    python -m benchmarks.label_errors --workdir runs/mine [--csv val.csv --classes classes.csv]

The run is trained on clean labels. In its validation set, or in --csv, 5 % of the boxes get another
class, another 5 % are moved by a quarter to half of their sides in a random direction, and another
5 % are left out. Each seed writes such a file, evaluates it, and ranks its labels by suspicion
(`m2det_jax/report/suspects.py`): all labelled boxes, and all detections that no label explains, in
one list. Printed is the share of each kind that stands in the first part of this list, in three
readings of "the first 10 %":

- boxes: as many entries as 10 % of the labelled boxes;
- clean: the same, but without entries that are in the first 10 % with the clean labels, too. What a
  data set itself lacks takes places from what is planted;
- list: 10 % of the whole list.

A planted error counts as found if the box itself is listed; one that is left out, if a detection
that overlaps it with IoU 0.5 or more is. Aimed at: half of each kind.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import timing
from m2det_jax import runtime
from m2det_jax.data import DetectionIndex
from m2det_jax.data.formats.csv_boxes import write_csv
from m2det_jax.datasets.evaluation import DataChoice, read_data
from m2det_jax.detector.evaluation import only_read
from m2det_jax.inference.evaluation import evaluate_restored
from m2det_jax.ops.coverage import aligned_iou
from m2det_jax.report.outcomes import Outcomes, outcomes
from m2det_jax.report.suspects import Suspects, suspects
from m2det_jax.trained import Restored, restore

FIRST, PLANTED = 0.1, 0.05
READINGS = ("boxes", "clean", "list")
KINDS = ("wrong class", "moved", "left out")


class Planted(NamedTuple):
    """Labels with errors.

    Attributes:
        index: the labels.
        rows: int64 [K], the row that each box has in the clean index.
        swapped, moved: int64, rows of the index.
        left_out: int64, rows of the clean index.
    """

    index: DetectionIndex
    rows: np.ndarray
    swapped: np.ndarray
    moved: np.ndarray
    left_out: np.ndarray


def plant(clean: DetectionIndex, seed: int, share: float = PLANTED) -> Planted:
    """Plants errors in labels: three disjoint shares of the boxes, one for each kind."""
    rng = np.random.default_rng(seed)
    count = round(share * len(clean.labels))
    drawn = rng.permutation(len(clean.labels))
    swapped, moved, left_out = (np.sort(drawn[k * count : (k + 1) * count]) for k in range(3))
    labels, boxes, classes = clean.labels.copy(), clean.boxes.copy(), len(clean.class_names)
    labels[swapped] = (labels[swapped] + rng.integers(1, classes, count)) % classes
    owners = np.repeat(np.arange(clean.num_images), clean.counts)
    for row in moved:
        boxes[row] = move(boxes[row], clean.sizes[owners[row]], rng)
    rows = np.delete(np.arange(len(labels)), left_out)
    index = dataclasses.replace(
        clean, boxes=boxes[rows], labels=labels[rows], difficult=clean.difficult[rows], areas=None,
        offsets=np.searchsorted(rows, clean.offsets).astype(np.int64), places=None,
    )  # fmt: skip
    new = np.searchsorted(rows, swapped), np.searchsorted(rows, moved)
    return Planted(index, rows, *new, left_out)


def move(box: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves a box [4] by a quarter to half of its sides; where it can, it stays in the image."""
    for _ in range(100):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5)
        step = length * np.array([np.cos(angle), np.sin(angle)]) * (box[2:] - box[:2])
        moved = box + np.tile(step, 2)
        if (moved[:2] >= 0).all() and (moved[2:] <= size).all():
            break
    return np.clip(moved, 0, np.tile(size, 2)).astype(np.float32)


def ranked(
    restored: Restored, workdir: pathlib.Path, choice: DataChoice
) -> tuple[DetectionIndex, Outcomes, Suspects]:
    """Evaluates a data set and ranks its labels."""
    index, _ = read_data(choice, restored, workdir)
    _, detections = evaluate_restored(restored, index, 0, "config.eval.batch_size")
    index, detections = only_read(index, detections)
    judged = outcomes(index, detections)
    return index, judged, suspects(index, judged)


def first_of(found: Suspects, num_boxes: int) -> tuple[set[int], set[int]]:
    """Returns rows and detections of the first entries, as many as 10 % of the boxes."""
    first = slice(0, round(FIRST * num_boxes))
    missing = found.rows[first] < 0
    return set(found.rows[first][~missing].tolist()), set(found.found[first][missing].tolist())


def shares(
    planted: Planted,
    clean: DetectionIndex,
    judged: Outcomes,
    found: Suspects,
    known: tuple[set[int], set[int]],
) -> dict[str, list[float]]:
    """Returns the share of each kind that is found, by reading.

    Args:
        known: that of `first_of` with the clean labels.
    """
    touched = set(planted.swapped.tolist()) | set(planted.moved.tolist())
    own = [
        (int(planted.rows[row]) in known[0] and row not in touched)
        if row >= 0
        else detection in known[1]
        for row, detection in zip(found.rows.tolist(), found.found.tolist(), strict=True)
    ]
    places, length = np.arange(len(own)), round(FIRST * len(planted.index.labels))
    lists = {
        "boxes": places[:length],
        "clean": places[~np.array(own)][:length],
        "list": places[: round(FIRST * len(places))],
    }
    return {name: _found(planted, clean, judged, found, some) for name, some in lists.items()}


def _found(
    planted: Planted,
    clean: DetectionIndex,
    judged: Outcomes,
    found: Suspects,
    places: np.ndarray,
) -> list[float]:
    rows = found.rows[places]
    detections = found.found[places][rows < 0]
    owners = np.repeat(np.arange(clean.num_images), clean.counts)
    gone = clean.boxes[planted.left_out].astype(float)
    near = aligned_iou(gone[:, None], judged.boxes[detections][None]) >= 0.5
    near &= owners[planted.left_out][:, None] == judged.images[detections]
    return [
        float(np.isin(planted.swapped, rows).mean()),
        float(np.isin(planted.moved, rows).mean()),
        float(near.any(1).mean()),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these command line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a trained run")
    parser.add_argument("--csv", default="", help="clean labels; default: the validation set")
    parser.add_argument("--classes", default="", help="class file of --csv")
    parser.add_argument("--rounds", type=int, default=5, help="seeds from 0, one a round")
    args = parser.parse_args(argv)
    timing.print_machine()
    restored = restore(args.workdir)
    choice = DataChoice(csv=args.csv, classes=args.classes)
    with runtime.expected_warnings_left_out(), tempfile.TemporaryDirectory() as folder:
        clean, judged, found = ranked(restored, args.workdir, choice)
        known, results = first_of(found, len(clean.labels)), []
        for seed in range(args.rounds):
            planted, path = plant(clean, seed), f"{folder}/{seed}.csv"
            write_csv(planted.index, path)
            _, judged, found = ranked(restored, args.workdir, DataChoice(csv=path))
            results.append(shares(planted, clean, judged, found, known))
    print(f"{len(clean.labels)} boxes, {round(PLANTED * len(clean.labels))} errors of each kind")
    for reading in READINGS:
        print_shares(reading, [one[reading] for one in results])


def print_shares(reading: str, values: Iterable[Sequence[float]]) -> None:
    """Prints the mean share of each kind, with the lowest of the rounds."""
    table = np.array(list(values))
    text = ", ".join(
        f"{kind} {mean:.2f} (lowest {low:.2f})"
        for kind, mean, low in zip(KINDS, table.mean(0), table.min(0), strict=True)
    )
    timing.print_figure(f"first 10 %, {reading}", text)


if __name__ == "__main__":
    main()
