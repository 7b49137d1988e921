"""Page of a report, one HTML file with all that it needs inside."""

import dataclasses
import importlib.resources
import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.pages import MAX_BYTES
from m2det_jax.pages.markup import count, escape, percent, printable, shorten
from m2det_jax.pages.pictures import encode
from m2det_jax.pages.shell import Toggle, checks, data_element, shell, tiles
from m2det_jax.report import analyses, sections
from m2det_jax.report.gallery import KINDS, Shot
from m2det_jax.report.outcomes import IGNORED, Outcomes
from m2det_jax.report.outcomes import KINDS as OUTCOMES
from m2det_jax.report.suspects import Suspects

_LONGEST_NAME = 60
_LINKS = {
    "advice": "What to do",
    "figures": "Figures",
    "errors": "Errors",
    "pictures": "Pictures",
    "training": "Training",
}
_TOGGLES = (Toggle("show-boxes", "boxes", True), Toggle("show-names", "names", True))
_RESERVE = 300_000


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Everything that the page shows.

    Attributes:
        name: of the run.
        facts: (label, value) pairs under the heading.
        metrics: as `metrics.scores.coco_metrics`.
        details: as `metrics.details.details`.
        index: what was evaluated.
        judged: the outcomes of the detections.
        suspected: the boxes by how likely their label is wrong.
        training: int [C], training boxes by class; None: unknown.
        history: records of the run.
        advice: (heading, sentences).
        threshold: the chosen one, a whole number of per cent.
        shots: pictures.
        notes: sentences on how the page was made.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    metrics: dict
    details: dict[str, Any]
    index: DetectionIndex
    judged: Outcomes
    suspected: Suspects
    training: np.ndarray | None
    history: Sequence[dict]
    advice: Sequence[tuple[str, str]]
    threshold: float
    shots: Sequence[Shot]
    notes: Sequence[str]


def render(report: Report) -> str:
    """Returns the page, below MAX_BYTES as UTF-8 whatever the data are.

    Classes in tables and pictures are limited, and pictures are reduced until they fit; the page
    says what it leaves out.
    """
    here = importlib.resources.files("m2det_jax.report")
    names = [shorten(printable(name), _LONGEST_NAME) for name in report.index.class_names]
    shown = _classes_of_shots(report.shots)
    parts = {
        "tiles": _tiles(report),
        "advice": "".join(f"<li><b>{escape(h)}.</b> {escape(t)}</li>" for h, t in report.advice),
        "figures": sections.figures(report.metrics, report.index, report.judged, report.training)
        + analyses.sizes(report.metrics, report.details, report.index)
        + analyses.calibration(report.details),
        "errors": sections.counts_table(report.judged, report.index, report.threshold)
        + analyses.costs(report.details, report.index)
        + sections.confusion_table(report.judged, report.index, report.threshold),
        "training": sections.training(report.history),
        "threshold": f"{report.threshold:.2f}",
        "percent": str(round(100 * report.threshold)),
        "kinds": "".join(f'<option value="{k}">{escape(t)}</option>' for k, t in KINDS.items()),
        "labels": "".join(f'<option value="{k}">{escape(names[k])}</option>' for k in shown),
        "checks": checks(_TOGGLES),
    }
    data = {
        "names": {k: names[k] for k in _named(report.shots)},
        "kinds": OUTCOMES,
        "best": round(100 * report.threshold),
        "counts": sections.counts_by_threshold(report.judged, report.index),
        "pictures": [
            {"width": s.size[0], "found": s.found, "truths": s.truths} for s in report.shots
        ],
    }
    element = data_element(data)
    used = sum(len(text.encode()) for text in [*parts.values(), element]) + _RESERVE
    frames = [_figure(i, shot, "", names) for i, shot in enumerate(report.shots)]
    uris = encode(report.shots, MAX_BYTES - used - sum(len(f.encode()) for f in frames))
    pictures = [
        _figure(i, shot, uri, names)
        for i, (shot, uri) in enumerate(zip(report.shots, uris, strict=False))
    ]
    parts["pictures"] = "".join(pictures)
    parts["pictures"] += '<p class="empty" id="none"' + (" hidden" if pictures else "")
    parts["pictures"] += ">No picture of this kind.</p>"
    parts["number"] = str(len(pictures))
    template = string.Template((here / "run.html").read_text(encoding="utf-8"))
    return shell(
        kind="Report",
        name=report.name,
        facts=report.facts,
        verdict=_verdict(report),
        links=_LINKS,
        main=template.substitute(parts),
        notes=report.notes,
        toggles=_TOGGLES,
        script=(here / "run.js").read_text(encoding="utf-8"),
        data=element,
    )


def _classes_of_shots(shots: Sequence[Shot]) -> list[int]:
    return sorted({label for shot in shots for label in shot.labels})


def _named(shots: Sequence[Shot]) -> list[int]:
    """Returns the classes whose names the pictures need."""
    found = {row[5] for shot in shots for row in shot.found}
    return sorted(found | {row[4] for shot in shots for row in shot.truths})


def _verdict(report: Report) -> str:
    ap50 = report.metrics.get("AP50", math.nan)
    if math.isnan(ap50):
        return '<p class="verdict warned"><b>Nothing to measure.</b> There are no objects.</p>'
    words = "finds nearly all objects" if ap50 >= 0.9 else "finds most objects"
    css = "fine" if ap50 >= 0.7 else "warned"
    if ap50 < 0.7:
        words = "finds many objects, with clear gaps" if ap50 >= 0.4 else "finds few objects"
    if ap50 < 0.05:
        words, css = "has learnt next to nothing", "refused"
    return (
        f'<p class="verdict {css}"><b>The detector {words}.</b> AP50 is {ap50:.3f}, AP over IoU '
        f"0.50 to 0.95 is {report.metrics['AP']:.3f} (1 is perfect).</p>"
    )


def _tiles(report: Report) -> str:
    judged, index = report.judged, report.index
    truths, right = int(judged.counted.sum()), int((judged.found >= report.threshold).sum())
    tried = int(((judged.scores >= report.threshold) & (judged.kinds != IGNORED)).sum())
    nan = math.nan
    rows = [
        (sections.score(report.metrics["AP"]), "AP", "mean over IoU 0.50 to 0.95"),
        (sections.score(report.metrics["AP50"]), "AP50", "at IoU 0.50"),
        (f"{report.threshold:.2f}", "threshold to use", "where F1 is best"),
        (percent(right / tried if tried else nan), "precision", "detections that are right, there"),
        (percent(right / truths if truths else nan), "recall", "objects that are found, there"),
        (count(index.num_images), "images", f"{count(truths)} objects to find"),
    ]
    return tiles(rows)


def _figure(place: int, shot: Shot, uri: str, names: Sequence[str]) -> str:
    width, height = shot.size
    what = " / ".join(names[label] for label in shot.labels)
    title = f"{KINDS[shot.kind]}: {what}"
    score = "" if math.isnan(shot.score) else f"{math.floor(shot.score * 10_000) / 10_000:.4f}"
    detail = shot.note or f"score {shot.score:.2f}"
    labels = " ".join(map(str, shot.labels))
    style = f"--text:{max(width, height) / 22:.1f}px"
    return (
        f'<figure class="picture" data-number="{place}" data-kind="{shot.kind}" '
        f'data-labels="{labels}" data-score="{score}">'
        f'<button type="button" class="open" aria-label="Enlarge {escape(title)}">'
        f'<span class="frame" style="aspect-ratio:{width}/{height}">'
        f'<img src="{uri}" alt="" width="{width}" height="{height}" loading="lazy">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" style="{style}" '
        f'aria-hidden="true"></svg></span></button>'
        f"<figcaption><b>{escape(title)}</b><span>{escape(detail)}</span>"
        f"<span>{escape(shorten(shot.file, 80))}</span></figcaption></figure>"
    )
