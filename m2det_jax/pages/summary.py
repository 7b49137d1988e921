"""What the terminal shows of a check."""

from collections.abc import Sequence

from m2det_jax.pages.contents import Contents, Finding
from m2det_jax.pages.markup import count, percent, printable, shorten

_EXAMPLES = 3


def render_summary(contents: Contents) -> str:
    """Returns the findings by kind with examples, anchor coverage, fitted anchors and a verdict."""
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


def _one_line(finding: Finding) -> str:
    parts = [part for part in (finding.where, finding.image) if part]
    text = f"{': '.join(parts)}: {finding.what}" if parts else finding.what
    if finding.remedy:
        text += f"; {finding.remedy}"
    return shorten(printable(text), 400)
