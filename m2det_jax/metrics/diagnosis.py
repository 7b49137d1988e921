"""Diagnosis of detections: what each kind of error costs in AP (TIDE), and calibration of scores.

hotcoco computes both. The kinds are those of TIDE (Bolya et al., 2020, "TIDE: A General Toolbox for
Identifying Object Detection Errors"): an error has one kind, by its largest IoU with the objects of
its image.
"""

import math
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.detections import ImageDetections, part_of
from m2det_jax.metrics.scores import Ranked, by_hotcoco, without_ignored

# {name in the JSON: (hotcoco's name, meaning)}
COSTS = {
    "wrong_class": ("Cls", "well placed on an object of another class"),
    "poor_box": ("Loc", "IoU 0.1 to 0.5 with an object of its class"),
    "wrong_class_and_poor_box": ("Both", "IoU 0.1 to 0.5 with an object of another class"),
    "duplicate": ("Dupe", "on an object that a better detection has"),
    "background": ("Bkg", "IoU below 0.1 with all objects"),
    "missed": ("Miss", "objects that no detection, right or wrong, is about"),
}
BINS = 10
MOST_DETECTIONS = 2_000_000  # hotcoco needs half a GiB for a million of them


def error_costs(index: DetectionIndex, detections: Sequence[ImageDetections]) -> dict[str, Any]:
    """Returns how much AP50 each kind of error costs.

    All detections count, whatever their score, as in AP; so there are more errors than at the
    threshold that is used. The costs do not sum to what is missing to 1: one error may hide
    another. hotcoco cannot ignore difficult objects; they are left out first, with the detections
    that point at them or at a region. With more than MOST_DETECTIONS every second, third, ... image
    is taken.

    Returns:
        {kind: {"errors": how many, "AP50_lost": how much AP50 rises without them}} for the kinds of
        COSTS. false_positives and false_negatives: the AP50 that is lost by all wrong detections,
        and by all objects that are not found. images: how many were taken. Costs are NaN without
        objects.
    """
    index, detections = _few_enough(index, detections)
    if index.difficult.any():
        index, detections = without_ignored(index, detections)
    totals: dict[str, Any] = {"images": index.num_images}
    if not len(index.labels):
        nothing = {"errors": 0, "AP50_lost": math.nan}
        totals |= {"false_positives": math.nan, "false_negatives": math.nan}
        return {kind: dict(nothing) for kind in COSTS} | totals
    found = by_hotcoco(index, detections).tide_errors(pos_thr=0.5, bg_thr=0.1)
    costs = {
        kind: {"errors": int(found["counts"][name]), "AP50_lost": float(found["delta_ap"][name])}
        for kind, (name, _) in COSTS.items()
    }
    totals["false_positives"] = float(found["delta_ap"]["FP"])
    totals["false_negatives"] = float(found["delta_ap"]["FN"])
    return costs | totals


def _few_enough(
    index: DetectionIndex, detections: Sequence[ImageDetections]
) -> tuple[DetectionIndex, Sequence[ImageDetections]]:
    """Returns every n-th image, with the least n for which there are few enough detections."""
    total = sum(len(found.scores) for found in detections)
    step = -(-total // MOST_DETECTIONS)
    if step <= 1:
        return index, detections
    return part_of(index, detections, range(0, index.num_images, step))


def calibration(ranked: Ranked) -> dict[str, Any]:
    """Returns how well scores tell the share of detections that are right.

    Args:
        ranked: that of `scores.rank`: what is right at its IoU, and what does not count.

    Returns:
        ECE: the mean difference of score and precision over the bins, each weighted by its
        detections. MCE: the largest difference of a bin. bins: [{from, to, detections, score,
        precision}], BINS of equal width from 0 to 1; score is the mean of the bin. NaN without
        detections.
    """
    curve = hotcoco.metrics.calibration_curve(ranked.scores, ranked.hits, n_bins=BINS)
    ece, mce = hotcoco.metrics.calibration_error(ranked.scores, ranked.hits, n_bins=BINS)
    none = {"score": math.nan, "precision": math.nan}
    bins = [
        {"from": float(one["bin_lower"]), "to": float(one["bin_upper"]), "detections": one["count"]}
        | (
            {"score": float(one["avg_confidence"]), "precision": float(one["avg_accuracy"])}
            if one["count"]
            else none
        )
        for one in curve
    ]
    if not len(ranked.scores):
        ece = mce = math.nan
    return {"ECE": float(ece), "MCE": float(mce), "bins": bins}


def format_diagnosis(costs: dict[str, Any], calibrated: dict[str, Any]) -> str:
    """Returns two lines of text: what errors cost, the most costly kind first; and calibration."""
    kinds = sorted(COSTS, key=lambda kind: -np.nan_to_num(costs[kind]["AP50_lost"]))
    parts = [
        f"{kind.replace('_', ' ')} {_number(costs[kind]['AP50_lost'])} ({costs[kind]['errors']})"
        for kind in kinds
    ]
    errors = f"ECE {_number(calibrated['ECE'])}, MCE {_number(calibrated['MCE'])}"
    return f"AP50 lost by errors: {', '.join(parts)}\ncalibration of scores: {errors}"


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"
