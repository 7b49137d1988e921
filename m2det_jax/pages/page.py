"""Page of a check, one HTML file with all that it needs inside, and its summary as text."""

import importlib.resources
import string
from collections.abc import Sequence

from m2det_jax.pages.contents import SEVERITIES, Contents, Picture, Remark
from m2det_jax.pages.markup import count, escape, percent, printable, shorten
from m2det_jax.pages.pictures import encode, figure
from m2det_jax.pages.tables import (
    MAX_ROWS,
    classes_table,
    coverage_table,
    findings_table,
    fit_section,
    groups_table,
    listed,
)

MAX_BYTES = 20_000_000
_EXAMPLES = 3  # of each group in the summary
_RESERVE = 200_000  # for the frame of each picture, whose number of boxes is limited


def render_page(contents: Contents) -> str:
    """Returns the page, below MAX_BYTES as UTF-8 whatever the data set is.

    Findings and classes are listed up to fixed numbers, pictures are reduced and then left out
    until they fit; the page says what it leaves out.
    """
    package = importlib.resources.files("m2det_jax.pages")
    template = string.Template((package / "template.html").read_text(encoding="utf-8"))
    sections = {
        "style": (package / "report.css").read_text(encoding="utf-8"),
        "script": "".join(
            (package / name).read_text(encoding="utf-8") for name in ("report.js", "common.js")
        ),
        "name": escape(contents.name),
        "facts": _facts(contents),
        "verdict": _verdict(contents),
        "tiles": _tiles(contents),
        "findings": _findings(contents),
        "anchors": _anchors(contents),
        "distributions": _figures(contents, "Distributions"),
        "classes": classes_table(contents.classes),
    }
    used = sum(len(text.encode()) for text in sections.values()) + _RESERVE
    augmented, n_augmented = _gallery(contents.augmented, (MAX_BYTES - used) // 3)
    pictures, n_pictures = _gallery(contents.pictures, MAX_BYTES - used - len(augmented.encode()))
    notes = list(contents.notes)
    for what, shown, chosen in (
        ("pictures", n_pictures, contents.pictures),
        ("augmented samples", n_augmented, contents.augmented),
    ):
        if shown < len(chosen):
            notes.append(
                f"{len(chosen) - shown} {what} did not fit into the page and are left out."
            )
    sections |= {
        "pictures": pictures,
        "augmented": augmented,
        "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
    }
    return template.substitute(sections)


def _facts(contents: Contents) -> str:
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in contents.facts
    )


def _verdict(contents: Contents) -> str:
    totals = dict.fromkeys(SEVERITIES, 0)
    for group in contents.groups:
        totals[group.severity] += group.count
    text = "Training would refuse this data." if contents.refused else "Training would start."
    parts = [
        f"{count(number)} {name}{'' if number == 1 else 's'}" for name, number in totals.items()
    ]
    css = "refused" if contents.refused else "warned" if totals["warning"] else "fine"
    return f'<p class="verdict {css}"><b>{text}</b> {", ".join(parts)}.</p>'


def _tiles(contents: Contents) -> str:
    return "".join(
        f"<li><b>{escape(value)}</b><span>{escape(label)}</span><small>{escape(detail)}</small></li>"
        for value, label, detail in contents.tiles
    ).replace(" %", "&nbsp;%")


def _findings(contents: Contents) -> str:
    if not contents.groups:
        return '<p class="empty">Nothing was found.</p>'
    total = sum(group.count for group in contents.groups)
    titles = {group.kind: group.title for group in contents.groups}
    kinds = "".join(
        f'<option value="{escape(kind)}">{escape(title)}</option>' for kind, title in titles.items()
    )
    severities = "".join(
        f'<label class="check"><input type="checkbox" name="severity" value="{name}" checked>'
        f"{name}s</label>"
        for name in SEVERITIES
    )
    rows, table = _fitting_table(contents, titles)
    part = ""
    if len(rows) < total:
        part = (
            f"<p>{count(len(rows))} of {count(total)} findings are listed here, some of every "
            "kind; findings.json beside this page has them all.</p>"
        )
    return (
        f"{groups_table(contents.groups)}{part}"
        '<form class="filters" id="filters" role="search" aria-label="Filter the findings">'
        f'<label>Kind<select name="kind"><option value="">all kinds</option>{kinds}</select>'
        "</label>"
        '<label>Text<input type="search" name="text" placeholder="file, class, number"></label>'
        f'<fieldset><legend class="hidden">Severity</legend>{severities}</fieldset>'
        '<button type="reset">Reset</button>'
        f'<output id="shown" aria-live="polite">{count(len(rows))} shown</output></form>'
        f"{table}"
        '<button type="button" id="more" hidden>Show more</button>'
    )


def _fitting_table(contents: Contents, titles: dict[str, str]) -> tuple[list[Remark], str]:
    """Returns the findings that a third of the page has room for, and their table."""
    limit = MAX_ROWS
    while True:
        rows = listed(contents.findings, limit)
        table = findings_table(rows, titles)
        if len(table.encode()) <= MAX_BYTES // 3 or limit == 1:
            return rows, table
        limit = -(-limit // 2)


def _anchors(contents: Contents) -> str:
    tables = "".join(coverage_table(name, rows) for name, rows in contents.coverage.items())
    fit = fit_section(contents.fit) if contents.fit else ""
    return (
        f"<p>A box is <b>reached</b> if an anchor overlaps it with an IoU of "
        f"{contents.threshold:g} or more (config.anchors.positive_threshold). A box that none "
        "reaches is not lost: its best anchor is forced to learn it, but it learns from that one "
        "alone. Measured on whole images at the network's input size; augmentation moves sizes "
        f"further.</p>{_figures(contents, 'Anchors')}<div class='tables'>{tables}</div>{fit}"
    )


def _figures(contents: Contents, heading: str) -> str:
    return f'<div class="plots">{"".join(contents.figures.get(heading, ()))}</div>'


def _gallery(pictures: Sequence[Picture], budget: int) -> tuple[str, int]:
    """Returns the figures that fit, and how many they are."""
    frames = [figure(picture, "") for picture in pictures]
    uris = encode(pictures, budget - sum(len(frame.encode()) for frame in frames))
    shown = [figure(picture, uri) for picture, uri in zip(pictures, uris, strict=False)]
    if not shown:
        return '<p class="empty">No picture to show.</p>', 0
    return "".join(shown), len(shown)


def render_summary(contents: Contents) -> str:
    """Returns what the terminal shows: findings by kind, anchor coverage and fitted anchors."""
    lines = [f"Data check: {contents.name}", ""]
    lines += [f"  {label:<26} {value:>12}  {detail}" for value, label, detail in contents.tiles]
    for group in contents.groups:
        lines += ["", f"{group.severity}: {group.title}: {count(group.count)}"]
        lines.append(f"  {group.effect}")
        examples = [
            f for f in contents.findings if (f.kind, f.effect) == (group.kind, group.effect)
        ]
        lines += [f"  - {_one_line(finding)}" for finding in examples[:_EXAMPLES]]
        if group.count > _EXAMPLES:
            lines.append(f"  ... and {count(group.count - _EXAMPLES)} more")
    for caption, rows in contents.coverage.items():
        lines += ["", caption]
        width = max((len(printable(row.name)) for row in rows), default=0)
        for row in rows:
            share = row.covered / row.boxes if row.boxes else float("nan")
            lines.append(
                f"  {printable(row.name):<{width}}  {count(row.boxes):>10} boxes"
                f"  {percent(share):>8} reached  mean best IoU {row.mean_iou:.2f}"
            )
    lines += _fit_lines(contents)
    return "\n".join(lines)


def _fit_lines(contents: Contents) -> Sequence[str]:
    fit = contents.fit
    if fit is None:
        return []
    lines = ["", "Anchors fitted to the training boxes"]
    for split, (share, mean) in fit.before.items():
        after = fit.after[split]
        lines.append(
            f"  {split}: reached {percent(share)} before, {percent(after[0])} after; "
            f"mean best IoU {mean:.3f} before, {after[1]:.3f} after"
        )
    if not fit.better:
        return [*lines, "  nothing better than the config's anchors was found: keep them"]
    return [*lines, *(f"  {line}" for line in fit.lines)]


def _one_line(remark: Remark) -> str:
    parts = [part for part in (remark.where, remark.image) if part]
    text = f"{': '.join(parts)}: {remark.what}" if parts else remark.what
    if remark.remedy:
        text += f"; {remark.remedy}"
    return shorten(printable(text), 400)
