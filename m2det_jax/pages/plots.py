"""Small plots as inline SVG, readable by people with and without sight.

Colours are classes of the page's style sheet. Positions are in units of the view box.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from m2det_jax.pages.markup import count, escape, number

_WIDTH, _HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 372, 14, 172
_IDS = itertools.count()


def histogram(
    edges: np.ndarray,
    counts: np.ndarray,
    *,
    title: str,
    axis: str,
    unit: str = "",
    ticks: Sequence[float],
    parts: Sequence[tuple[str, str]] = (("boxes", "plain"),),
    mark: tuple[float, str] | None = None,
    label: Callable[[float], str] = number,
) -> str:
    """Returns a figure of bars of equal width, one a bin, parts stacked.

    Args:
        edges: [n + 1], rising; the axis is linear in the number of the edge.
        counts: [n] or [n, parts].
        axis: what the values are.
        unit: of the values.
        ticks: values written under the axis.
        parts: (name, style class) of each part, from the bottom.
        mark: a value with a line of its own, and its text.
        label: turns a value into text.
    """
    counts = np.asarray(counts).reshape(len(edges) - 1, -1)
    top = _nice_ceiling(int(counts.sum(axis=1).max(initial=0)))
    width = (_RIGHT - _LEFT) / len(counts)

    def x_of(value: float) -> float:
        return _LEFT + width * float(np.interp(value, edges, np.arange(len(edges))))

    bars = []
    for i, row in enumerate(counts):
        if not row.sum():
            continue
        amounts = ", ".join(f"{count(int(n))} {name}" for n, (name, _) in zip(row, parts) if n)  # noqa: B905
        span = f"{label(edges[i])} to {label(edges[i + 1])}{unit and ' ' + unit}"
        bars.append(f"<g><title>{escape(f'{span}: {amounts}')}</title>")
        base = 0
        for amount, (_, css) in zip(row.tolist(), parts, strict=False):
            height = (_BOTTOM - _TOP) * amount / top
            y = _BOTTOM - (_BOTTOM - _TOP) * (base + amount) / top
            bars.append(
                f'<rect class="{css}" x="{_LEFT + i * width + 0.5:.1f}" y="{y:.1f}" '
                f'width="{max(width - 1, 0.5):.1f}" height="{height:.1f}"/>'
            )
            base += amount
        bars.append("</g>")
    if mark is not None:
        bars.append(_mark(x_of(mark[0]), mark[1]))
    inside = _y_axis(top) + _x_axis([(x_of(t), label(t)) for t in ticks], axis, unit)
    rows = [
        (f"{label(edges[i])} to {label(edges[i + 1])}", [count(int(n)) for n in row])
        for i, row in enumerate(counts)
        if row.sum()
    ]
    return _figure(title, inside + "".join(bars), parts, _data_table(axis, unit, parts, rows))


def scatter(
    shapes: np.ndarray,
    covered: np.ndarray,
    anchors: np.ndarray,
    *,
    title: str,
    largest: float,
) -> str:
    """Returns a figure of box widths and heights, and of the anchors' shapes, logarithmic.

    Args:
        shapes: (width, height) of the boxes [n, 2], pixels.
        covered: bool [n].
        anchors: (width, height) of the different anchors [m, 2].
        largest: end of both axes, pixels.
    """
    low, high = np.log(4.0), np.log(max(largest, 8.0))

    def positions(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = (np.log(np.clip(points, 4, np.exp(high))) - low) / (high - low)
        return (
            _LEFT + (_RIGHT - _LEFT) * share[:, 0],
            _BOTTOM - (_BOTTOM - _TOP) * share[:, 1],
        )

    paths = []
    for css, chosen in (("covered", covered), ("forced", ~covered)):
        x, y = positions(shapes[chosen].reshape(-1, 2))
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True))
        paths.append(f'<path class="dots {css}" d="{dots}"/>')
    x, y = positions(anchors.reshape(-1, 2))
    crosses = "".join(f"M{a - 3:.1f} {b:.1f}h6m-3 -3v6" for a, b in zip(x, y, strict=True))
    paths.append(f'<path class="crosses" d="{crosses}"/>')
    ticks = [t for t in (4, 8, 16, 32, 64, 128, 256, 512, 1024) if t <= largest]
    at = positions(np.array([[t, t] for t in ticks], float))
    grid = "".join(
        f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
        f'<text class="tick" x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{tick}</text>'
        for y, tick in zip(at[1], ticks, strict=True)
    )
    grid += f'<text class="tick" x="{_LEFT + 4}" y="{_TOP + 1}">height, pixels</text>'
    axis = _x_axis(list(zip(at[0].tolist(), map(str, ticks), strict=True)), "width", "pixels")
    parts = [("anchor reaches it", "covered"), ("none does", "forced"), ("anchor shapes", "cross")]
    return _figure(title, grid + axis + "".join(paths), parts, "")


def lines(
    series: Sequence[tuple[str, np.ndarray, np.ndarray]],
    *,
    title: str,
    axis: str,
    value: str,
    limits: tuple[float, float] | None = None,
    top: float | None = None,
) -> str:
    """Returns a figure of at most 4 lines from 0 upwards, told apart by colour and by dashes.

    Points that are not finite are left out. At most 400 points of a line are drawn, and 60 are in
    the table.

    Args:
        series: (name, x [n], y [n]) of each line.
        axis, value: what x and y are.
        limits: ends of the x axis; None: those of the points.
        top: end of the y axis; None: the largest value.
    """
    kept = []
    for name, x, y in series:
        x, y = np.asarray(x, float), np.asarray(y, float)
        fine = np.isfinite(x) & np.isfinite(y)
        kept.append((name, x[fine], y[fine]))
    every_x = np.concatenate([x for _, x, _ in kept])
    every_y = np.concatenate([y for _, _, y in kept])
    low, high = limits or (every_x.min(initial=np.inf), every_x.max(initial=-np.inf))
    if not low < high:
        low, high = (low - 1, low + 1) if low == high else (0.0, 1.0)
    top = top or float(every_y.max(initial=0)) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_RIGHT - _LEFT) * (x - low) / (high - low),
            _BOTTOM - (_BOTTOM - _TOP) * min(max(y / top, 0), 1),
        )

    grid = "".join(
        f'<path class="grid" d="M{_LEFT} {place(low, v)[1]:.1f}H{_RIGHT}"/>'
        f'<text class="tick" x="{_LEFT - 5}" y="{place(low, v)[1] + 3.5:.1f}" text-anchor="end">'
        f"{_tick(v)}</text>"
        for v in (0, top / 2, top)
    )
    grid += f'<text class="tick" x="{_LEFT + 4}" y="{_TOP - 4}">{escape(value)}</text>'
    ticks = [(place(v, 0)[0], f"{v:.4g}") for v in np.linspace(low, high, 5)]
    ticks = [(min(x, _WIDTH - 3.2 * len(text)), text) for x, text in ticks]
    paths, rows = [], []
    for i, (_, x, y) in enumerate(kept):
        some = np.unique(np.linspace(0, max(len(x) - 1, 0), min(len(x), 400)).astype(int))
        points = [place(a, b) for a, b in zip(x[some], y[some], strict=True)]
        text = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        paths.append(f'<polyline class="line line{i}" points="{text}"/>')
        if len(points) <= 12:
            paths += [
                f'<circle class="line{i}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points
            ]
        for j in np.unique(np.linspace(0, max(len(x) - 1, 0), min(len(x), 60)).astype(int)):
            cells = ["" if k != i else f"{y[j]:.4g}" for k in range(len(kept))]
            rows.append((x[j], cells))
    merged: dict[float, list[str]] = {}
    for x_value, cells in rows:
        have = merged.setdefault(float(x_value), [""] * len(kept))
        merged[float(x_value)] = [a or b for a, b in zip(have, cells, strict=True)]
    parts = [(name, f"line{i}") for i, (name, _, _) in enumerate(kept)]
    numbers = _data_table(axis, "", parts, [(f"{x:.6g}", merged[x]) for x in sorted(merged)])
    return _figure(title, grid + _x_axis(ticks, axis, "") + "".join(paths), parts, numbers)


def _figure(title: str, inside: str, parts: Sequence[tuple[str, str]], details: str) -> str:
    name = f"plot{next(_IDS)}"
    legend = ""
    if len(parts) > 1:
        keys = (f'<li><i class="{css}"></i>{escape(text)}</li>' for text, css in parts)
        legend = f'<ul class="legend">{"".join(keys)}</ul>'
    return (
        f'<figure class="plot"><figcaption id="{name}">{escape(title)}</figcaption>{legend}'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{name}">{inside}</svg>'
        f"{details}</figure>"
    )


def _data_table(axis: str, unit: str, parts: Sequence[tuple[str, str]], rows: list) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text, _ in parts)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells[: len(parts)])
        + "</tr>"
        for first, cells in rows
    )
    heading = escape(f"{axis}{unit and ', ' + unit}")
    return (
        f'<details><summary>Numbers</summary><table><thead><tr><th scope="col">{heading}</th>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></details>"
    )


def _x_axis(ticks: Sequence[tuple[float, str]], axis: str, unit: str) -> str:
    text = "".join(
        f'<path class="axis" d="M{x:.1f} {_BOTTOM}v4"/>'
        f'<text class="tick" x="{x:.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{escape(t)}</text>'
        for x, t in ticks
    )
    name = escape(f"{axis}{unit and ', ' + unit}")
    middle = (_LEFT + _RIGHT) / 2
    return (
        f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>{text}'
        f'<text class="name" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{name}</text>'
    )


def _y_axis(top: int) -> str:
    parts = []
    for value in sorted({0, top // 2, top}):
        y = _BOTTOM - (_BOTTOM - _TOP) * value / top
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
            f'<text class="tick" x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">'
            f"{_short(value)}</text>"
        )
    return "".join(parts)


def _mark(x: float, text: str) -> str:
    return (
        f'<path class="mark" d="M{x:.1f} {_TOP - 4}V{_BOTTOM}"/>'
        f'<text class="marktext" x="{x + 4:.1f}" y="{_TOP + 4}">{escape(text)}</text>'
    )


def _tick(value: float) -> str:
    """Returns a value in few letters: 0.9, 0.00089 as 8.9e-4."""
    if value and value < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _nice_ceiling(value: int) -> int:
    """Returns the least of 2, 3, 4, 5, 6, 8, 10, 20, 30, ... that is not below value."""
    return next(
        step * 10**power for power in itertools.count() for step in (2, 3, 4, 5, 6, 8, 10)
        if step * 10**power >= value
    )  # fmt: skip


def _short(value: int) -> str:
    for limit, letter in ((10**6, "M"), (10**4, "k")):
        if value >= limit:
            return f"{number(value / (10**6 if letter == 'M' else 1000))}{letter}"
    return count(value)
