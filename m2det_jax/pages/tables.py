"""Tables of the page: findings, classes, anchor coverage."""

import collections
import math
from collections.abc import Collection, Sequence

from m2det_jax.pages.contents import SEVERITIES, SPLITS, ClassRow, CoverageRow, Fit, Group, Remark
from m2det_jax.pages.markup import count, escape, number, percent, shorten, table

MAX_ROWS = 3000  # findings listed, of all kinds
MAX_CLASSES = 1500


def listed(findings: Sequence[Remark], limit: int = MAX_ROWS) -> list[Remark]:
    """Returns the findings to list: at most `limit`, errors first, every kind with its share."""
    findings = sorted(findings, key=lambda f: SEVERITIES.index(f.severity))
    share = _share(collections.Counter((f.kind, f.effect) for f in findings).values(), limit)
    taken: dict[tuple[str, str], int] = {}
    rows = []
    for finding in findings:
        key = (finding.kind, finding.effect)
        taken[key] = taken.get(key, 0) + 1
        if taken[key] <= share:
            rows.append(finding)
    return rows


def _share(counts: Collection[int], limit: int) -> int:
    """Returns how many of each kind fit: large kinds get what small ones leave over."""
    left = share = limit
    for kinds, found in zip(range(len(counts), 0, -1), sorted(counts), strict=True):
        share = left // kinds
        if found > share:
            return share
        left -= found
    return max(share, *counts, 0)


def groups_table(groups: Sequence[Group]) -> str:
    """Returns the overview; each kind is a button that the script makes a filter."""
    rows = [
        (
            f'<button type="button" class="link" data-show="{escape(g.kind)}">'
            f"{escape(g.title)}</button>",
            _badge(g.severity),
            count(g.count),
            escape(g.effect),
        )
        for g in groups
    ]
    headings = ("Finding", "Severity", "Count", "What training does")
    return table(headings, rows, caption="Findings by kind", css="groups stack")


def findings_table(findings: Sequence[Remark], titles: dict[str, str]) -> str:
    """Returns the list; its rows carry the values that the page's filters compare."""
    rows = []
    for f in findings:
        cells = [
            ("Severity", _badge(f.severity)),
            ("Kind", escape(titles[f.kind])),
            ("Where", f'<span class="path">{_breakable(f.where)}</span>'),
            ("Image", f'<span class="path">{_breakable(f.image)}</span>'),
            ("Finding", escape(shorten(f.what)) + _remedy(f.remedy)),
        ]
        text = "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in cells if cell)
        rows.append(
            f'<tr data-kind="{escape(f.kind)}" data-severity="{escape(f.severity)}" '
            f'data-split="{escape(f.split)}">{text}</tr>'
        )
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Severity", "Kind", "Where", "Image", "Finding")
    )
    return (
        '<div class="scroll"><table class="findings stack" id="findings-table">'
        f'<caption class="hidden">All findings</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def classes_table(classes: Sequence[ClassRow]) -> str:
    """Returns the classes, most boxes first; the script sorts by the other columns."""
    rows = sorted(classes, key=lambda c: -c.train - c.val)[:MAX_CLASSES]
    largest = max((row.train for row in rows), default=1) or 1
    body = []
    for row in rows:
        bar = f'<span class="bar" style="--share:{row.train / largest:.4f}"></span>'
        cells = [
            (row.train, bar + count(row.train)),
            (row.val, count(row.val)),
            (row.images, count(row.images)),
            (row.median_side, number(row.median_side)),
            (row.coverage, percent(row.coverage)),
        ]
        text = "".join(
            f'<td data-label="{name}" data-value="{-1 if math.isnan(value) else value}">{cell}</td>'
            for name, (value, cell) in zip(_CLASS_COLUMNS[1:], cells, strict=True)
        )
        body.append(f'<tr><th scope="row">{escape(shorten(row.name, 80))}</th>{text}</tr>')
    head = "".join(
        f'<th scope="col"><button type="button" class="sort">{name}</button></th>'
        for name in _CLASS_COLUMNS
    )
    more = len(classes) - len(rows)
    note = f"<p>The {count(more)} rarest classes are not listed.</p>" if more else ""
    return (
        '<div class="scroll"><table class="classes" id="classes-table">'
        f'<caption class="hidden">Classes</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{note}"
    )


_CLASS_COLUMNS = ("Class", "Training", "Validation", "Images", "Median side, px", "Reached")


def coverage_table(caption: str, rows: Sequence[CoverageRow]) -> str:
    """Returns boxes, and the share of them that an anchor reaches, by group."""
    body = []
    for row in rows:
        share = row.covered / row.boxes if row.boxes else float("nan")
        missed = row.boxes - row.covered
        body.append(
            (escape(row.name), count(row.boxes), percent(share), count(missed),
             f"{row.mean_iou:.2f}" if row.boxes else "–")
        )  # fmt: skip
    headings = ("Boxes", "Number", "Reached", "Not reached", "Mean best IoU")
    return table(headings, body, caption=caption, css="coverage")


def fit_section(fit: Fit) -> str:
    """Returns the outcome of --fit_anchors."""
    rows = []
    for split, (share, mean) in fit.before.items():
        after = fit.after[split]
        means = f"{mean:.3f}", f"{after[1]:.3f}"
        rows.append((SPLITS[split], percent(share), percent(after[0]), *means))
    headings = ("Boxes", "Reached now", "Reached fitted", "Mean best IoU now", "Fitted")
    text = "The fitted anchors reach more. Add to the command line, or write into the experiment:"
    if not fit.better:
        text = "Fitting found nothing better than the anchors of the config: keep them. It tried:"
    lines = escape(" \\\n".join(fit.lines)).replace("\\n", "\n")
    return (
        f"<h3>Fitted anchors</h3><p>{text}</p><pre tabindex='0'><code>{lines}</code></pre>"
        + table(headings, rows, caption="Coverage before and after", css="coverage")
    )


def _badge(severity: str) -> str:
    return f'<span class="badge {escape(severity)}">{escape(severity)}</span>'


def _remedy(text: str) -> str:
    return f'<span class="remedy">{escape(shorten(text))}</span>' if text else ""


def _breakable(path: str) -> str:
    """Returns a path that may be broken after each of its folders."""
    return escape(shorten(path)).replace("/", "/<wbr>")
