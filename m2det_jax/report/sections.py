"""Sections of a report: figures, curves, counts and confusion, as HTML."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.scores import COCO_FIGURES
from m2det_jax.pages import plots
from m2det_jax.pages.markup import count, escape, percent, shorten, table
from m2det_jax.pages.tables import MAX_CLASSES
from m2det_jax.report.outcomes import CORRECT, IGNORED, KINDS, Outcomes, confusion, curve

_PLOTTED, _COUNTED, _CROSSED = 12, 100, 20  # classes in plots, counts and the confusion matrix
STEPS = np.arange(101) / 100  # thresholds of the slider


def figures(
    metrics: dict[str, Any],
    index: DetectionIndex,
    judged: Outcomes,
    training: np.ndarray | None,
) -> str:
    """Returns the 12 figures in words, the table of classes and the precision-recall curves."""
    rows = [
        (escape(name), score(metrics[name]), escape(meaning))
        for name, meaning in COCO_FIGURES.items()
    ]
    headings = ("Figure", "Value", "Meaning")
    text = table(headings, rows, caption="COCO's figures, from 0 to 1", css="stack")
    order = most_objects(index)[:_PLOTTED]
    plotted = [_pr_plot("All classes", curve(judged, index))]
    plotted += [_pr_plot(_short(index, k), curve(judged, index, k)) for k in order]
    if len(index.class_names) == 1:
        plotted = plotted[:1]
    more = len(index.class_names) - len(order)
    note = f"<p>Curves of the {count(more)} classes with fewer objects are not drawn.</p>"
    return (
        f"{text}<h3>Classes</h3>{_classes(metrics, index, judged, training)}"
        "<h3>Precision and recall</h3><p>From left to right the threshold falls: more objects are "
        f'found, and more detections are wrong.</p><div class="plots">{"".join(plotted)}</div>'
        f"{note if more else ''}"
    )


def score(value: float, digits: int = 3) -> str:
    """Returns a figure between 0 and 1 with a fixed number of digits, or a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def most_objects(index: DetectionIndex) -> list[int]:
    """Returns the classes, those with the most objects first."""
    counts = np.bincount(index.labels, minlength=len(index.class_names))
    return np.argsort(-counts, kind="stable").tolist()


def _short(index: DetectionIndex, label: int) -> str:
    return shorten(index.class_names[label], 60)


def _pr_plot(name: str, found: Any) -> str:
    title = name
    if not math.isnan(found.threshold):
        title += f": best F1 {found.f1:.2f} at {found.threshold:.2f}"
    return plots.lines(
        [("precision", found.recall, found.precision)],
        title=title, axis="recall", value="precision", limits=(0, 1), top=1.0,
    )  # fmt: skip


_COLUMNS = ("Class", "Training", "Evaluated", "AP", "AP50", "Best F1", "At score", "Precision",
            "Recall")  # fmt: skip


def _classes(
    metrics: dict[str, Any],
    index: DetectionIndex,
    judged: Outcomes,
    training: np.ndarray | None,
) -> str:
    body = []
    order = most_objects(index)[:MAX_CLASSES]
    for k in order:
        found, own = curve(judged, index, k), metrics["per_class"][index.class_names[k]]
        boxes = math.nan if training is None else float(training[k])
        values = [boxes, float(found.truths), own["AP"], own["AP50"], found.f1, found.threshold]
        texts = ["–" if math.isnan(v) else count(int(v)) for v in values[:2]]
        texts += [score(v) for v in values[2:4]] + [score(v, 2) for v in values[4:]]
        values += [found.precision_there, found.recall_there]
        texts += [percent(v) for v in values[6:]]
        cells = "".join(
            f'<td data-label="{name}" data-value="{-1 if math.isnan(v) else v}">{t}</td>'
            for name, v, t in zip(_COLUMNS[1:], values, texts, strict=True)
        )
        body.append(f'<tr><th scope="row">{escape(_short(index, k))}</th>{cells}</tr>')
    head = "".join(
        f'<th scope="col"><button type="button" class="sort">{c}</button></th>' for c in _COLUMNS
    )
    more = len(index.class_names) - len(order)
    note = f"<p>The {count(more)} rarest classes are not listed.</p>" if more else ""
    return (
        '<div class="scroll"><table class="classes" id="classes-table"><caption class="hidden">'
        f"Classes</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        f"</div>{note}"
    )


def counts_by_threshold(judged: Outcomes, index: DetectionIndex) -> list[dict[str, Any]]:
    """Returns the rows of the table of counts for every threshold of the slider.

    The first is of all classes, the others of the classes with the most objects: {"found": one list
    of 101 numbers for each kind that counts, "truths": objects to find}.
    """
    size = len(index.class_names)
    steps = np.searchsorted(STEPS, judged.scores, side="right") - 1
    cells = np.zeros((size, len(KINDS), len(STEPS)), np.int64)
    fine = steps >= 0
    np.add.at(cells, (judged.labels[fine], judged.kinds[fine], steps[fine]), 1)
    cells = cells[:, :IGNORED, ::-1].cumsum(-1)[..., ::-1]
    truths = np.bincount(index.labels[judged.counted], minlength=size)
    rows = [{"found": cells.sum(0).tolist(), "truths": int(truths.sum())}]
    return rows + [
        {"found": cells[k].tolist(), "truths": int(truths[k])}
        for k in most_objects(index)[:_COUNTED]
    ]


def counts_table(judged: Outcomes, index: DetectionIndex, threshold: float) -> str:
    """Returns the outcomes by class at a threshold; the script counts them anew."""
    step = round(100 * threshold)
    order = most_objects(index)[:_COUNTED]
    names = ["All classes", *(_short(index, k) for k in order)]
    body = []
    for place, row in enumerate(counts_by_threshold(judged, index)):
        numbers = [kind[step] for kind in row["found"]]
        right, tried, truths = numbers[CORRECT], sum(numbers), row["truths"]
        cells = [count(n) for n in [*numbers, truths - right]]
        cells.append(percent(right / tried if tried else math.nan))
        cells.append(percent(right / truths if truths else math.nan))
        text = "".join(f"<td>{cell}</td>" for cell in cells)
        head = f'<th scope="row">{escape(names[place])}</th>'
        body.append(f'<tr data-row="{place}">{head}{text}</tr>')
    columns = ["Class", *(k.capitalize() for k in KINDS[:IGNORED]), "Missed", "Precision", "Recall"]
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="Outcomes by class">'
        '<table class="coverage" id="counts-table"><caption>Detections by outcome, and missed '
        f"objects</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        "</div><p>Correct: overlaps a free object of its class with IoU 0.5 or more. Poor box: IoU "
        "from 0.1 to 0.5. Wrong class: lies well on an object of another class. Duplicate: lies on "
        "an object that a better detection has. Background: none of these, a false alarm.</p>"
    )


def confusion_table(judged: Outcomes, index: DetectionIndex, threshold: float) -> str:
    """Returns the confusion matrix of the classes with the most objects, with background."""
    matrix, size = confusion(judged, index, threshold), len(index.class_names)
    chosen = [*most_objects(index)[:_CROSSED], size]
    names = {k: _short(index, k) for k in chosen[:-1]}
    head = "".join(
        f'<th scope="col">{escape(names.get(k, "missed"))}</th>' for k in chosen
    )  # fmt: skip
    body = []
    for row in chosen:
        whole = max(int(matrix[row].sum()), 1)
        cells = "".join(
            f'<td style="--share:{matrix[row, k] / whole:.3f}">{count(int(matrix[row, k]))}</td>'
            for k in chosen[: len(chosen) - (row == size)]
        )
        cells += "<td></td>" if row == size else ""
        body.append(f'<tr><th scope="row">{escape(names.get(row, "background"))}</th>{cells}</tr>')
    more = size + 1 - len(chosen)
    note = f"<p>{count(more)} classes with fewer objects are not in the matrix.</p>" if more else ""
    return (
        '<h3>Confusion</h3><div class="scroll" tabindex="0" role="group" aria-label="Confusion">'
        f'<table class="matrix"><caption>Labelled as (row), detected as (column), at '
        f'{threshold:.2f}</caption><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def training(history: Sequence[dict]) -> str:
    """Returns the curves of loss, learning rate and AP."""
    groups = (
        ("Loss", "loss", (("training", "loss"), ("validation", "val_loss"))),
        ("Learning rate", "rate", (("learning rate", "learning_rate"),)),
        ("Average precision", "AP", (("AP", "val_AP"), ("AP50", "val_AP50"))),
    )
    drawn = []
    for title, value, names in groups:
        series = [(label, *_series(history, key)) for label, key in names]
        series = [one for one in series if len(one[1])]
        if series:
            drawn.append(plots.lines(series, title=title, axis="step", value=value))
    if not drawn:
        return '<p class="empty">The run has no history.</p>'
    return f'<div class="plots">{"".join(drawn)}</div>'


def _series(history: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(r["step"], r[key]) for r in history if isinstance(r.get(key), int | float)]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return steps, values
