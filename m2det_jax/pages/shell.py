"""Shell of a page: head, header, navigation, viewer of pictures and footer around its sections."""

import importlib.resources
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from m2det_jax.pages.markup import escape, shorten, without_nan


class Toggle(NamedTuple):
    """A check box of the viewer that shows and hides a part of the pictures.

    Attributes:
        css: class of the body while it is checked.
        text: its label.
        checked: at the start.
    """

    css: str
    text: str
    checked: bool


def shell(
    *,
    kind: str,
    name: str,
    facts: Iterable[tuple[str, str]],
    verdict: str,
    links: Mapping[str, str],
    main: str,
    notes: Iterable[str],
    toggles: Sequence[Toggle],
    script: str,
    style: str = "",
    data: str = "",
) -> str:
    """Returns a page that needs no other file.

    Args:
        kind: of the page, in words, such as "Data check".
        name: what it is about.
        facts: (label, value) pairs under the heading.
        verdict: the outcome in short, HTML.
        links: the sections to go to, {id: heading}; the first and the one called "pictures", if
            there is one, can be reached past the header.
        main: the sections, HTML.
        notes: sentences on how the page was made.
        toggles: of the viewer.
        script: of this kind of page; that of all pages is added.
        style: likewise.
        data: for the script, as `data_element` gives it; "": none.
    """
    here = importlib.resources.files("m2det_jax.pages")
    first, *others = links
    skipped = [first, *(key for key in others if key == "pictures")]
    parts = {
        "kind": escape(kind),
        "kicker": escape(kind.lower()),
        "name": escape(name),
        "style": (here / "report.css").read_text(encoding="utf-8") + style,
        "script": script + (here / "common.js").read_text(encoding="utf-8"),
        "shown": " ".join(toggle.css for toggle in toggles if toggle.checked),
        "skips": "\n".join(
            f'<a class="skip" href="#{key}">Skip to: {escape(links[key].lower())}</a>'
            for key in skipped
        ),
        "facts": "".join(
            f"<div><dt>{escape(label)}</dt><dd>{escape(shorten(value))}</dd></div>"
            for label, value in facts
        ),
        "verdict": verdict,
        "links": "\n".join(
            f'<li><a href="#{key}">{escape(text)}</a></li>' for key, text in links.items()
        ),
        "main": main,
        "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
        "toggles": checks(toggles),
        "data": data,
    }
    template = string.Template((here / "shell.html").read_text(encoding="utf-8"))
    return template.substitute(parts)


def checks(toggles: Iterable[Toggle]) -> str:
    """Returns the check boxes of toggles; each may stand several times on a page."""
    return "".join(
        f'<label class="check"><input type="checkbox" data-toggle="{toggle.css}"'
        f"{' checked' if toggle.checked else ''}>{escape(toggle.text)}</label>"
        for toggle in toggles
    )


def tiles(rows: Iterable[tuple[str, str, str]]) -> str:
    """Returns large figures: (value, label, detail) each."""
    return "".join(
        f"<li><b>{escape(value)}</b><span>{escape(label)}</span><small>{escape(detail)}</small></li>"
        for value, label, detail in rows
    ).replace(" %", "&nbsp;%")


def data_element(value: Any) -> str:
    """Returns the element "data", from which the script of a page reads a JSON value."""
    # "<" could end the element; there is none outside of the strings.
    text = json.dumps(without_nan(value), separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="data">{text}</script>'
