"""Analyses of a report: what errors cost, calibration of scores, AP by size and class, as HTML."""

from typing import Any

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.details import SIZES
from m2det_jax.metrics.diagnosis import COSTS
from m2det_jax.pages import plots
from m2det_jax.pages.markup import count, escape, shorten, table
from m2det_jax.report.sections import most_objects, score

_LISTED = 100  # classes


def costs(details: dict[str, Any], index: DetectionIndex) -> str:
    """Returns the table of what each kind of error costs in AP50, the most costly first."""
    found = details["error_costs"]
    kinds = sorted(COSTS, key=lambda kind: -np.nan_to_num(found[kind]["AP50_lost"]))
    rows = [
        (
            escape(kind.replace("_", " ").capitalize()),
            score(found[kind]["AP50_lost"]),
            count(found[kind]["errors"]),
            escape(COSTS[kind][1]),
        )
        for kind in kinds
    ]
    text = table(
        ("Kind", "AP50 lost", "Errors", "Meaning"),
        rows,
        caption="What each kind of error costs (TIDE)",
        css="stack",
    )
    note = ""
    if found["images"] < index.num_images:
        note = f" {count(found['images'])} images were taken, evenly, to save memory."
    return (
        f"<h3>What errors cost</h3>{text}<p>AP50 lost: how much AP50 rises if the errors of this "
        "kind alone are mended. All detections count here, as in AP, whatever their score. All "
        f"wrong detections together cost {score(found['false_positives'])}, all objects that are "
        f"not found {score(found['false_negatives'])}. One error may hide another: the numbers do "
        f"not add up.{note}</p>"
    )


def calibration(details: dict[str, Any]) -> str:
    """Returns the reliability diagram and its numbers."""
    found = details["calibration"]
    used = [one for one in found["bins"] if one["detections"]]
    if not used:
        return "<h3>Calibration</h3><p>There are no detections.</p>"
    diagonal = np.array([0.0, 1.0])
    x, y = (np.array([one[name] for one in used]) for name in ("score", "precision"))
    drawn = plots.lines(
        [("precision", x, y), ("perfect", diagonal, diagonal)],
        title="Reliability: precision by score", axis="score", value="precision",
        limits=(0, 1), top=1.0,
    )  # fmt: skip
    rows = [
        (
            f"{one['from']:.1f} to {one['to']:.1f}",
            count(one["detections"]),
            score(one["score"], 2),
            score(one["precision"], 2),
        )
        for one in used
    ]
    columns = ("Score", "Detections", "Mean score", "Precision")
    numbers = table(columns, rows, caption="Detections by score", css="coverage")
    return (
        f'<h3>Calibration</h3><div class="tables"><div>{drawn}</div><div>{numbers}</div></div>'
        "<p>Above the diagonal a detection is right more often than its score says, below it less "
        f"often. Expected calibration error (ECE) {score(found['ECE'])}: the mean distance, "
        f"weighted by detections. Largest one (MCE) {score(found['MCE'])}. A detection is right at "
        "IoU 0.5.</p>"
    )


def sizes(metrics: dict[str, Any], details: dict[str, Any], index: DetectionIndex) -> str:
    """Returns the table of AP by class and size of the objects."""
    own = {
        size: np.bincount(
            index.labels[~index.difficult & (index.areas >= low) & (index.areas < high)],
            minlength=len(index.class_names),
        )
        for size, (low, high) in SIZES.items()
    }
    order = most_objects(index)[:_LISTED]
    whole = [_share(metrics[f"AP_{size}"], int(own[size].sum())) for size in SIZES]
    rows = [("All classes", *whole)]
    for k in order:
        one = details["class_details"][index.class_names[k]]
        cells = [_share(one[f"AP_{size}"], int(own[size][k])) for size in SIZES]
        rows.append((escape(shorten(index.class_names[k], 60)), *cells))
    headings = ("Class", "Small: below 32 x 32 px", "Medium", "Large: above 96 x 96 px")
    text = table(headings, rows, caption="AP by size, and objects", css="stack")
    more = len(index.class_names) - len(order)
    note = f"<p>{count(more)} classes with fewer objects are not listed.</p>" if more else ""
    return f"<h3>AP by size and class</h3>{text}{note}"


def _share(value: float, objects: int) -> str:
    if not objects:
        return "–"
    return f"{score(value)} <small>of {count(objects)}</small>"
