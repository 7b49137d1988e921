"""Page of a comparison, one HTML file with all that it needs inside."""

import dataclasses
import importlib.resources
import math
import string
from collections.abc import Sequence

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.bootstrap import FIGURES, SIZES, Difference, Differences
from m2det_jax.metrics.details import SIZES as AREAS
from m2det_jax.pages import MAX_BYTES
from m2det_jax.pages.markup import count, escape, percent, printable, shorten, table
from m2det_jax.pages.pictures import encode
from m2det_jax.pages.shell import Toggle, checks, shell, tiles
from m2det_jax.pages.tables import MAX_CLASSES
from m2det_jax.report.comparison.differences import (
    ABOUT,
    FAR,
    KINDS,
    NEAR,
    Shot,
    Side,
    alarms_of_one,
    found_by_one,
)
from m2det_jax.report.comparison.words import interval, sentences, signed, verdict
from m2det_jax.report.outcomes import BACKGROUND, CORRECT, IGNORED
from m2det_jax.report.outcomes import KINDS as OUTCOMES

_LONGEST_NAME = 60
_RESERVE = 300_000
_LINKS = {
    "changes": "What changed",
    "figures": "Figures",
    "objects": "Objects and errors",
    "pictures": "Pictures",
}
_TOGGLES = (
    Toggle("show-boxes", "objects", True),
    Toggle("show-a", "A", True),
    Toggle("show-b", "B", True),
    Toggle("show-names", "names", True),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that the page shows.

    Attributes:
        names: of the two runs.
        facts: (label, value) pairs under the heading.
        index: what was evaluated.
        differences: as `metrics.bootstrap.compare` gives them.
        sides: A and B.
        shots: pictures.
        notes: sentences on how the page was made.
    """

    names: tuple[str, str]
    facts: Sequence[tuple[str, str]]
    index: DetectionIndex
    differences: Differences
    sides: tuple[Side, Side]
    shots: Sequence[Shot]
    notes: Sequence[str]


def render(contents: Comparison) -> str:
    """Returns the page, below MAX_BYTES as UTF-8 whatever the data are.

    Classes in tables and pictures are limited, and pictures are reduced until they fit.
    """
    here = importlib.resources.files("m2det_jax.report.comparison")
    names = [shorten(printable(name), _LONGEST_NAME) for name in contents.index.class_names]
    said = sentences(contents.differences, contents.index.class_names)
    kinds = [kind for kind in KINDS if any(shot.kind == kind for shot in contents.shots)]
    shown = sorted({shot.label for shot in contents.shots})
    parts = {
        "tiles": _tiles(contents),
        "changes": "".join(f"<li><b>{escape(h)}.</b> {escape(t)}</li>" for h, t in said),
        "figures": _figures(contents, names),
        "objects": _objects(contents) + _errors(contents.sides),
        "kinds": "".join(f'<option value="{k}">{escape(KINDS[k])}</option>' for k in kinds),
        "labels": "".join(f'<option value="{k}">{escape(names[k])}</option>' for k in shown),
        "checks": checks(_TOGGLES),
    }
    used = sum(len(text.encode()) for text in parts.values()) + _RESERVE
    frames = [_figure(shot, "", names) for shot in contents.shots]
    uris = encode(contents.shots, MAX_BYTES - used - sum(len(f.encode()) for f in frames))
    pictures = [_figure(shot, uri, names) for shot, uri in zip(contents.shots, uris, strict=False)]
    notes = list(contents.notes)
    if left_out := len(contents.shots) - len(pictures):
        notes.append(f"{left_out} pictures did not fit into the page and are left out.")
    parts |= {"pictures": "".join(pictures), "number": str(len(pictures))}
    template = string.Template((here / "compare.html").read_text(encoding="utf-8"))
    css, words = verdict(contents.differences["all"][0])
    return shell(
        kind="Comparison",
        name=" against ".join(contents.names),
        facts=contents.facts,
        verdict=f'<p class="verdict {css}"><b>{words}</b> AP: {escape(said[0][1])}</p>',
        links=_LINKS,
        main=template.substitute(parts),
        notes=notes,
        toggles=_TOGGLES,
        script=(here / "compare.js").read_text(encoding="utf-8"),
        style=(here / "compare.css").read_text(encoding="utf-8"),
    )


def _tiles(contents: Comparison) -> str:
    only_a, only_b = found_by_one(*contents.sides)
    everything = int(contents.sides[0].judged.counted.sum())
    rows = [
        (signed(found.a - found.b), f"{figure}, A - B", interval(found))
        for figure, found in zip(FIGURES, contents.differences["all"], strict=True)
    ]
    rows += [
        (count(len(only_a)), "objects that only A finds", f"of {count(everything)}"),
        (count(len(only_b)), "objects that only B finds", f"of {count(everything)}"),
        (count(contents.index.num_images), "images", "the same for both"),
    ]
    return tiles(rows)


def _figures(contents: Comparison, names: Sequence[str]) -> str:
    """Returns the tables of figures, by size and by class."""
    differences, index = contents.differences, contents.index
    counted = np.bincount(
        index.labels[contents.sides[0].judged.counted], minlength=len(index.class_names)
    )
    largest = max((_extent(found[0]) for found in differences.values()), default=0.0) or 1.0
    areas = index.areas[contents.sides[0].judged.counted]
    numbers = {"all": len(areas)}
    numbers |= {s: int(((areas >= low) & (areas < high)).sum()) for s, (low, high) in AREAS.items()}
    sizes = [
        _row("all objects" if size == "all" else size, numbers[size], differences[size], largest)
        for size in SIZES
    ]
    order = sorted(range(len(names)), key=lambda k: _sorted_by(differences[k][0]))
    listed = order[:MAX_CLASSES]
    classes = [_row(names[k], int(counted[k]), differences[k], largest) for k in listed]
    more = len(order) - len(listed)
    note = f"<p>{count(more)} classes between are not listed.</p>" if more else ""
    return (
        f"{_compared('By size', sizes)}<h3>Classes</h3><p>Those at which A is better come first."
        f"</p>{_compared('By class', classes)}{note}"
    )


def _sorted_by(found: Difference) -> float:
    """Returns the place in a table: A's gains first, losses next, classes without objects last."""
    return math.inf if math.isnan(found.a) else found.b - found.a


def _extent(found: Difference) -> float:
    known = [abs(v) for v in (found.a - found.b, found.low, found.high) if not math.isnan(v)]
    return max(known, default=0.0)


def _compared(caption: str, rows: Sequence[str]) -> str:
    groups = "".join(
        f'<th scope="colgroup" colspan="{4 if name == "AP" else 3}">{name}</th>' for name in FIGURES
    )
    heads = ["A", "B", "A - B", "interval"] + ["A", "B", "A - B"] * 2
    cells = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{caption}">'
        f'<table class="compared"><caption>{caption}</caption><thead>'
        f'<tr><th scope="col" rowspan="2">Group</th><th scope="col" rowspan="2">Objects</th>'
        f"{groups}</tr><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(
    name: str, objects: int, found: tuple[Difference, Difference, Difference], largest: float
) -> str:
    cells = [f"<td>{count(objects)}</td>"]
    for place, one in enumerate(found):
        css = {1: "better", -1: "worse", 0: ""}[one.sign]
        small = "" if math.isnan(one.a) else f"<small>{interval(one)}</small>"
        cells += [f"<td>{_score(one.a)}</td><td>{_score(one.b)}</td>"]
        cells.append(f'<td><span class="{css}">{signed(one.a - one.b)}</span>{small}</td>')
        if not place:
            cells.append(f"<td>{_forest(one, largest)}</td>")
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'


def _score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _forest(found: Difference, largest: float) -> str:
    """Returns a line from the low to the high end of an interval, with 0 in the middle."""
    if math.isnan(found.low):
        return ""

    def place(value: float) -> float:
        return round(50 + 48 * value / largest, 1)

    middle = place(found.a - found.b)
    return (
        '<svg class="forest" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="zero" d="M50 0V10"/>'
        f'<path class="range" d="M{place(found.low)} 5H{place(found.high)}"/>'
        f'<path class="dot" d="M{middle} 1V9"/></svg>'
    )


def _objects(contents: Comparison) -> str:
    a, b = contents.sides
    counted = a.judged.counted
    whole = int(counted.sum())
    numbers = {
        "both find": int((counted & a.finds & b.finds).sum()),
        "only A finds": len(found_by_one(a, b)[0]),
        "only B finds": len(found_by_one(a, b)[1]),
        "neither finds": int((counted & ~a.finds & ~b.finds).sum()),
    }
    rows = [
        (name, count(number), percent(number / whole if whole else math.nan))
        for name, number in numbers.items()
    ]
    return table(("Objects that", "Number", "Share"), rows, caption="Objects", css="coverage")


def _errors(sides: tuple[Side, Side]) -> str:
    tallies = [
        np.bincount(side.judged.kinds[side.shown], minlength=len(OUTCOMES)) for side in sides
    ]
    own = [len(alarms_of_one(*pair)) for pair in (sides, sides[::-1])]
    order = [CORRECT, *(k for k in range(len(OUTCOMES)) if k not in (CORRECT, IGNORED))]
    rows = [
        (OUTCOMES[k], *(count(int(tally[k])) for tally in tallies),
         f"{int(tallies[0][k] - tallies[1][k]):+,}")
        for k in order
    ]  # fmt: skip
    rows.append(
        (f"{OUTCOMES[BACKGROUND]}, where the other has none", count(own[0]), count(own[1]),
         f"{own[0] - own[1]:+,}")
    )  # fmt: skip
    thresholds = " and ".join(
        f"{name} from a score of {side.threshold:.2f}"
        for name, side in zip("AB", sides, strict=True)
    )
    return (
        table(("Detections", "A", "B", "A - B"), rows, caption="Detections", css="coverage")
        + f"<p>Each has its own threshold, the one with its best F1: {thresholds}. "
        "The outcomes are those of the report.</p>"
    )


def _figure(shot: Shot, uri: str, names: Sequence[str]) -> str:
    width, height = shot.size
    title = f"{KINDS[shot.kind]}: {names[shot.label]}"
    style = f"--text:{max(width, height) / 22:.1f}px"
    return (
        f'<figure class="picture" data-kind="{shot.kind}" data-label="{shot.label}">'
        f'<button type="button" class="open" aria-label="Enlarge {escape(title)}">'
        f'<span class="frame" style="aspect-ratio:{width}/{height}">'
        f'<img src="{uri}" alt="" width="{width}" height="{height}" loading="lazy">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" style="{style}" '
        f'aria-hidden="true">{_overlay(shot, names)}</svg></span></button>'
        f"<figcaption><b>{escape(title)}</b><span>{escape(shot.detail)}</span>"
        f"<span>{escape(shorten(shot.file, 80))}</span></figcaption></figure>"
    )


def _overlay(shot: Shot, names: Sequence[str]) -> str:
    """Returns the boxes of a picture: objects, then the layers of A and of B."""
    truths = "".join(
        _box("truth", row, row[5], f"object: {names[row[4]]}") for row in reversed(shot.truths)
    )
    layers = [f'<g class="layer">{truths}</g>']
    for letter, rows in zip("ab", shot.found, strict=True):
        boxes = "".join(
            _box(f"found-box of-{letter}", row, row[6],
                 f"{letter.upper()}: {names[row[4]]} {row[5]:.2f}")
            for row in reversed(rows)
        )  # fmt: skip
        texts = "".join(
            _name(letter, row, shot.size[0], names) for row in reversed(rows) if row[6] != FAR
        )
        layers.append(f'<g class="layer-{letter}">{boxes}{texts}</g>')
    return "".join(layers)


def _box(css: str, row: Sequence, weight: int, title: str) -> str:
    x1, y1, x2, y2 = row[:4]
    place = f'x="{x1:g}" y="{y1:g}" width="{max(x2 - x1, 1):.4g}" height="{max(y2 - y1, 1):.4g}"'
    more = {FAR: " far", NEAR: "", ABOUT: " focus"}[weight]
    return (
        f'<rect class="under{more}" {place}/>'
        f'<rect class="{css}{more}" {place}><title>{escape(title)}</title></rect>'
    )


def _name(letter: str, row: Sequence, width: int, names: Sequence[str]) -> str:
    """Returns class and score of a detection: A's at the top of its box, B's at the bottom."""
    right = row[0] > 0.6 * width
    x, end = (row[2], ' text-anchor="end"') if right else (row[0], "")
    y, dy = (row[1], 0.95) if letter == "a" else (row[3], -0.25)
    text = f"{letter.upper()} {names[row[4]]} {100 * row[5]:.0f}%"
    return f'<text class="name-{letter}" x="{x:g}" y="{y:g}" dy="{dy}em"{end}>{escape(text)}</text>'
