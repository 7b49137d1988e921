"""The page holds its limits whatever it is given."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from m2det_jax import pages
from m2det_jax.pages import pictures, plots
from m2det_jax.pages.markup import escape, percent, printable, shorten
from m2det_jax.pages.tables import MAX_ROWS, listed

EMPTY = pages.Contents(
    name="x", facts=[], tiles=[], refused=False, groups=[], findings=[], classes=[], coverage={},
    figures={}, pictures=[], augmented=[], fit=None, threshold=0.5, notes=[],
)  # fmt: skip


def noise(i: int, side: int = 1200) -> pages.Picture:
    pixels = np.random.default_rng(i).integers(0, 255, (side, side, 3), np.uint8)
    none = np.zeros((0, 4), np.float32)
    return pages.Picture(
        Image.fromarray(pixels), (side, side), f"p{i}", "", none, [], np.zeros(0, bool),
        np.zeros(0), none, np.zeros(0, np.int64),
    )  # fmt: skip


def finding(kind: str, severity: str, number: int) -> pages.Remark:
    text = f"{number} " + "x" * 2000
    return pages.Remark(
        kind=kind, severity=severity, split="train", file=text, line=1, image=text, what=text,
        effect="effect", remedy=text,
    )  # fmt: skip


def test_nothing_at_all():
    page = pages.render_page(EMPTY)
    assert "Nothing was found" in page and page.count("No picture to show") == 2


def test_pictures_are_reduced_until_they_fit():
    many = [noise(i, 400) for i in range(30)]
    full = pictures.encode(many, 10**9)
    fitted = pictures.encode(many, sum(map(len, full)) // 3)
    assert len(fitted) == 30 and sum(map(len, fitted)) <= sum(map(len, full)) // 3
    few = pictures.encode(many, 60_000)
    assert 0 < len(few) < 30 and sum(map(len, few)) <= 60_000


def test_the_page_stays_below_its_limit(monkeypatch):
    monkeypatch.setattr(pages.page, "MAX_BYTES", 3_000_000)
    groups = [
        pages.Group("a", "A", "note", 10**6, "effect"),
        pages.Group("b", "B", "error", 5, "effect"),
    ]
    findings = [finding("a", "note", i) for i in range(4000)]
    findings += [finding("b", "error", i) for i in range(5)]
    contents = dataclasses.replace(
        EMPTY, groups=groups, findings=findings, pictures=[noise(i) for i in range(6)],
        classes=[pages.ClassRow("c" * 3000, 1, 1, 1, 1.0, 1.0)] * 2000,
    )  # fmt: skip
    page = pages.render_page(contents)
    assert len(page.encode()) < 3_000_000
    assert "findings.json beside this page has them all" in page
    assert "500 rarest classes are not listed" in page
    assert len(re.findall('<tr data-kind="b"', page)) == 5  # the rare kind is not crowded out


def test_listed_findings_put_errors_first():
    rows = listed([finding("a", "note", i) for i in range(5000)] + [finding("b", "error", 1)])
    assert rows[0].kind == "b" and len(rows) == MAX_ROWS


def test_small_kinds_leave_their_room_to_large_ones():
    kinds = {"many": 1228, "few": 2, "one": 1}
    findings = [finding(kind, "note", i) for kind, count in kinds.items() for i in range(count)]
    assert len(listed(findings)) == 1231


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<b a='1'>&", "&lt;b a=&#x27;1&#x27;&gt;&amp;"),
        ("a\nb\0", r"a\nb\x00"),
        ("\udc80", r"\udc80"),
        ("épée 猫", "épée 猫"),
    ],  # fmt: skip
)
def test_escape(value, expected):
    assert escape(value) == expected
    printable(value).encode("utf-8")


def test_numbers():
    assert (
        percent(0.99999) == "99.9 %" and percent(1.0) == "100.0 %" and percent(float("nan")) == "–"
    )
    assert len(shorten("x" * 500)) <= 300 and shorten("short") == "short"


def test_bars_are_as_high_as_their_counts():
    svg = plots.histogram(
        np.array([1, 2, 4, 8.0]), np.array([[1, 0], [2, 1], [0, 0]]), title="T <b>", axis="a",
        ticks=(1, 8), parts=(("in", "covered"), ("out", "forced")),
    )  # fmt: skip
    heights = [float(h) for h in re.findall(r'class="covered"[^>]*height="([\d.]+)"', svg)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert "2 to 4: 2 in, 1 out" in svg and "T &lt;b&gt;" in svg and "<b>" not in svg


def test_summary_is_one_line_a_finding():
    odd = finding("b", "error", 1)
    odd = dataclasses.replace(odd, what="two\nlines", file="a.csv", line=3, image="", remedy="")
    contents = dataclasses.replace(
        EMPTY, groups=[pages.Group("b", "B", "error", 9, "effect")], findings=[odd]
    )
    text = pages.render_summary(contents)
    assert "a.csv:3: two\\nlines" in text and "and 6 more" in text
