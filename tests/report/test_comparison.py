"""The comparison of two runs: what each finds, in words, on a page and in a browser."""

import dataclasses
import json
import math
import pathlib
import re
import types

import numpy as np
import pytest
from browser import Browser, find_chromium
from test_run import HOSTILE, NAMES, index  # noqa: F401  # index is a fixture

from m2det_jax.config import default_config, resolve
from m2det_jax.errors import InputError
from m2det_jax.metrics.bootstrap import Difference
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.pages import MAX_BYTES
from m2det_jax.report import __main__ as verb
from m2det_jax.report.comparison import run
from m2det_jax.report.comparison.differences import Side, alarms_of_one, choose, found_by_one
from m2det_jax.report.comparison.page import render
from m2det_jax.report.comparison.run import compare_runs
from m2det_jax.report.comparison.words import sentence, sentences, verdict
from m2det_jax.report.outcomes import outcomes
from m2det_jax.trained import restore

MINE = [(10, 10, 40, 40, 0.6, 0), (110, 5, 135, 30, 0.8, 1)]  # the first object, a false alarm
OTHER = [  # the second object, and false alarms elsewhere and at the same place
    (60, 50, 100, 90, 0.7, 1), (5, 60, 30, 95, 0.75, 0), (110, 5, 135, 30, 0.3, 1),
]  # fmt: skip


def detections(rows) -> list[ImageDetections]:
    rows = np.array(rows, float).reshape(-1, 6)
    first = ImageDetections(0, rows[:, :4], rows[:, 4], rows[:, 5].astype(int))
    empty = [ImageDetections(i, rows[:0, :4], rows[:0, 4], rows[:0, 5].astype(int)) for i in (1, 2)]
    return [first, *empty]


def compared(images, a=MINE, b=OTHER):
    runs = tuple(
        types.SimpleNamespace(config=resolve(default_config()), step=s, class_names=NAMES)
        for s in (7, 9)
    )
    folders = pathlib.Path("a<b>"), pathlib.Path("other")
    return run.assemble(runs, folders, images, HOSTILE, [detections(a), detections(b)])[0]


def test_who_finds_what_by_hand(index):  # noqa: F811
    a, b = (Side(outcomes(index, detections(rows)), 0.4) for rows in (MINE, OTHER))
    only_a, only_b = found_by_one(a, b)
    assert only_a.tolist() == [0] and only_b.tolist() == [1]
    # A's false alarm is one of B too, below B's threshold: so it is A's alone.
    assert a.judged.scores[alarms_of_one(a, b)].tolist() == [0.8]
    assert b.judged.scores[alarms_of_one(b, a)].tolist() == [0.75]
    assert alarms_of_one(a, b._replace(threshold=0.2)).tolist() == []
    kinds = [kind for kind, _ in choose(a, b, index)]
    assert kinds == ["found-a", "found-b", "alarm-a", "alarm-b"]


@pytest.mark.parametrize(
    ("low", "high", "words", "style"),
    [(0.01, 0.2, "A is better by 0.100.*excludes 0", "fine"),
     (-0.3, -0.1, "B is better by 0.100.*excludes 0", "refused"),
     (-0.1, 0.2, "holds 0: it may be chance", "warned"),
     (math.nan, math.nan, "Fewer than 10 images", "warned")],
)  # fmt: skip
def test_one_figure_in_words(low, high, words, style):
    b = 0.6 if high < 0 else 0.4
    found = Difference(0.5, b, low, high)
    assert re.search(words, sentence(found)) and verdict(found)[0] == style


def test_groups_in_words():
    def figures(low, high):
        return (Difference(0.5, 0.4, low, high),) * 3

    differences = {"all": figures(-0.1, 0.2), "small": figures(0.1, 0.2)}
    differences |= dict.fromkeys(("medium", "large"), figures(math.nan, math.nan))
    differences |= {k: figures(-0.2, -0.1) if k == 3 else figures(-0.1, 0.1) for k in range(40)}
    said = dict(sentences(differences, [f"class{k}" for k in range(40)]))
    assert "small objects" in said["A is better at"] and "class3 " in said["B is better at"]
    assert "39 of 40 classes" in said["May be chance"] and "about 2 seem" in said["Many classes"]


def test_texts_of_files_do_not_become_markup(index):  # noqa: F811
    page = render(compared(index))
    assert page.count("<script") == 1 and HOSTILE not in page and "a&lt;b&gt; against other" in page
    assert len(page.encode()) < MAX_BYTES and "://" not in page.replace("http://www.w3.org", "")
    assert page.count('<figure class="picture"') == 4 and "猫" * 80 not in page


def test_a_page_of_two_that_find_nothing(index):  # noqa: F811
    page = render(compared(index, [], []))
    assert "No clear difference" in page and page.count('<figure class="picture"') == 0


def test_two_checkpoints_of_a_run(whole, tmp_path, capsys):
    arguments = ["--workdir", str(whole[0]), "--compare", str(whole[0]), "--compare_checkpoint",
                 "3", "--output", str(tmp_path)]  # fmt: skip
    options = vars(verb._parser().parse_args(arguments))
    assert options.pop("json") is False
    with open(tmp_path / "a.json", "w") as document:
        page = compare_runs(
            options.pop("workdir"), options.pop("compare"), document=document,
            other_checkpoint=options.pop("compare_checkpoint"), **options,
        )  # fmt: skip
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["A"]["step"], written["B"]["step"]) == (6, 3)
    assert written["by_size"]["all"]["AP50"]["A"] == pytest.approx(whole[1]["AP50"], abs=1e-6)
    assert set(written["per_class"]) == set(restore(whole[0]).class_names)
    text = page.read_text(encoding="utf-8")
    assert page.name == "compare.html" and f"{whole[0].name} step 6 against" in text
    assert str(page) in capsys.readouterr().out
    page.write_text("mine")
    with pytest.raises(InputError, match=r"compare\.html"):
        compare_runs(whole[0], whole[0], output=str(tmp_path))
    assert page.read_text() == "mine"


def test_other_classes_are_refused(whole, monkeypatch):
    first = restore(whole[0])
    other = dataclasses.replace(first, class_names=("zebra", *first.class_names[1:]))
    made = iter([first, other])
    monkeypatch.setattr(run, "restore", lambda *_: next(made))
    with pytest.raises(InputError, match="only .* has zebra") as caught:
        compare_runs(whole[0], whole[0])
    assert first.class_names[0] in str(caught.value)


def test_classes_in_another_order_are_the_same(index, monkeypatch):  # noqa: F811
    seen = []

    def evaluated(restored, own, *args):
        seen.append(own)
        rows = np.array([(10, 10, 40, 40)], float)
        return {}, [ImageDetections(0, rows, np.array([0.9]), np.array([2]))]

    monkeypatch.setattr(run, "evaluate_restored", evaluated)
    turned = types.SimpleNamespace(class_names=NAMES[::-1])
    (found,) = run._detections(turned, index, 0)
    assert found.labels.tolist() == [0] and seen[0].class_names == NAMES[::-1]
    assert seen[0].labels.tolist() == [2, 1] * 3


def test_only_what_both_have_read_is_compared(index):  # noqa: F811
    a, b = detections(MINE), detections(OTHER)
    kept, found = run._read_by_both(index, [a[1:], b[:2]])
    assert kept.image_paths == index.image_paths[1:2]
    assert [[one.image_id for one in some] for some in found] == [[0], [0]]


def test_a_checkpoint_of_nothing_is_refused(plain_parsers):
    args = verb._parser().parse_args(["--workdir", "w", "--compare_checkpoint", "best"])
    with pytest.raises(SystemExit) as ended:
        verb.main(args)
    assert "add --compare DIR" in ended.value.code


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")
def test_in_a_browser(index, tmp_path):  # noqa: F811
    path = tmp_path / "compare.html"
    path.write_text(render(compared(index)), encoding="utf-8")
    shown = "[...document.querySelectorAll('.picture')].filter(f => f.offsetParent).length"
    boxes = (
        "[...document.querySelectorAll('.layer-%s')].filter(g => "
        "getComputedStyle(g).display !== 'none').length"
    )
    choose_kind = (
        "(f => { f.elements.kind.value = '%s'; f.dispatchEvent(new Event('input')); return 1 })"
        "(document.querySelector('#filters'))"
    )
    with Browser(tmp_path / "profile") as browser:
        for width in (1280, 390):
            browser.open(path, width=width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(shown) == 4 and browser.evaluate(boxes % "a") == 4
        browser.evaluate("document.querySelector('[data-toggle=show-a]').click(), 1")
        assert browser.evaluate(boxes % "a") == 0 and browser.evaluate(boxes % "b") == 4
        browser.evaluate(choose_kind % "alarm-b")
        assert browser.evaluate(shown) == 1
        browser.evaluate("document.querySelector('.picture[data-kind=alarm-b] .open').focus(), 1")
        browser.press("Enter")
        browser.wait_until("document.querySelector('#viewer').open")
        caption = browser.evaluate("document.querySelector('#viewer-caption').textContent")
        assert caption.startswith("1/1 · False alarm of B only")
        browser.press("Escape")
        browser.wait_until("!document.querySelector('#viewer').open")
        assert browser.errors == []
        fetched = [u for u in browser.requests if not u.startswith(("data:", "file:", "about:"))]
        assert fetched == []
