"""Markup: text to HTML, and numbers to text."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any


def escape(value: object) -> str:
    """Returns text that is safe in HTML, SVG and quoted attributes, whatever a file is called."""
    return html.escape(printable(str(value)), quote=True)


def printable(text: str) -> str:
    """Replaces what no terminal or UTF-8 file takes: lone surrogates and control characters."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == " " else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Returns lines of text, each as `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def shorten(text: str, limit: int = 300) -> str:
    """Cuts long text in its middle, the least telling part of a path."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2 - 2]} ... {text[-(limit // 2 - 3) :]}"


def without_nan(value: Any) -> Any:
    """Returns nested dicts and lists with None for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def count(number: int) -> str:
    """Returns 12,345."""
    return f"{number:,}"


def percent(share: float) -> str:
    """Returns 97.3 %, or a dash for NaN; 100 % only where the share is 1."""
    if math.isnan(share):
        return "–"
    text = f"{100 * share:.1f}"
    return f"{'99.9' if text == '100.0' and share < 1 else text} %"


def number(value: float, digits: int = 1) -> str:
    """Returns a number without trailing zeros, or a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".rstrip("0").rstrip(".")


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, css: str = ""
) -> str:
    """Returns a table; the first column heads its row. Cells are HTML already, headings text."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headings)
    body = []
    for first, *others in rows:
        cells = "".join(
            f'<td data-label="{escape(name)}">{cell}</td>'
            for name, cell in zip(headings[1:], others, strict=True)
        )
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="{css}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
