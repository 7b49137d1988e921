"""The page of a report: hostile and empty data, a trained run, and a real browser."""

import json
import re
import types

import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image

from m2det_jax.config import default_config, resolve
from m2det_jax.data import DetectionIndex, read_csv
from m2det_jax.errors import InputError
from m2det_jax.inference.evaluation import evaluate_restored
from m2det_jax.metrics.details import details
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import coco_metrics
from m2det_jax.pages import MAX_BYTES, plots
from m2det_jax.report import run
from m2det_jax.report.advice import advice
from m2det_jax.report.gallery import OF_ONE_IMAGE, choose, cut_around
from m2det_jax.report.page import render
from m2det_jax.report.run import Subject, assemble, report

HOSTILE = '</script><script>document.title = "broken"</script>'
NAMES = (HOSTILE, "猫" * 500, "never seen")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Three images with two objects each, of the first two of three classes."""
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{i}<b>.png") for i in range(3)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 255, (100, 140, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    boxes = np.array([[10, 10, 40, 40], [60, 50, 100, 90]] * 3, np.float32)
    return DetectionIndex(
        image_paths=tuple(paths), sizes=np.array([[140, 100]] * 3, np.int32), boxes=boxes,
        labels=np.array([0, 1] * 3, np.int32), offsets=np.array([0, 2, 4, 6]), class_names=NAMES,
    )  # fmt: skip


ROWS = [  # of the first image: correct, duplicate, wrong class, poor box, background
    (10, 10, 40, 40, 0.9, 0), (11, 11, 41, 41, 0.8, 0), (60, 50, 100, 90, 0.7, 0),
    (60, 50, 100, 65, 0.6, 1), (110, 5, 135, 30, 0.5, 1),
]  # fmt: skip


def page_of(index, rows):
    """The contents of a page with detections in the first image alone."""
    rows = np.array(rows, float).reshape(-1, 6)
    found = [ImageDetections(0, rows[:, :4], rows[:, 4], rows[:, 5].astype(int))]
    history = [
        {"step": s, "loss": 3.0 - s, "learning_rate": 0.001, "val_AP": 0.1 * s, "val_AP50": 0.2 * s}
        for s in (1, 2, 3, 4)
    ]
    subject = Subject(
        config=resolve(default_config()), step=7, name=HOSTILE, source=HOSTILE,
        training=np.array([500, 3, 0]), history=history,
    )  # fmt: skip
    return assemble(subject, index, found, coco_metrics(index, found), details(index, found))


def data_of(page: str) -> dict:
    return json.loads(re.findall(r'id="data">(.*?)</script>', page, flags=re.S)[0])


def test_texts_of_files_do_not_become_markup(index):
    page = render(page_of(index, ROWS))
    assert page.count("<script") == 2 and HOSTILE not in page and "&lt;b&gt;" in page
    assert len(page.encode()) < MAX_BYTES and "://" not in page.replace("http://www.w3.org", "")
    assert data_of(page)["names"]["0"] == HOSTILE and "猫" * 80 not in page


def test_counts_of_the_slider_are_those_of_the_outcomes(index):
    rows = data_of(render(page_of(index, ROWS)))["counts"]
    assert [kind[0] for kind in rows[0]["found"]] == [1, 1, 1, 1, 1]
    assert [kind[60] for kind in rows[0]["found"]] == [1, 1, 1, 1, 0]  # 0.6 itself counts
    assert [kind[91] for kind in rows[0]["found"]] == [0] * 5
    assert rows[0]["truths"] == 6 and [r["truths"] for r in rows[1:]] == [3, 3, 0]


@pytest.mark.parametrize("rows", [[], ROWS[4:]], ids=["nothing", "false alarms alone"])
def test_a_page_without_a_correct_detection(index, rows):
    contents = page_of(index, rows)
    page = render(contents)
    assert "next to nothing" in page and "Nothing" not in page
    # A false alarm is a likely label error, too: a missing one.
    assert page.count('<figure class="picture"') == 6 + 2 * len(rows)
    assert dict(contents.advice)["Threshold"].startswith("No detection is correct")


def test_advice_follows_the_facts(index):
    said = dict(page_of(index, ROWS).advice)
    assert "never seen (0)" in said["Few examples"] and "(3)" in said["Few examples"]
    assert "(500)" not in said["Few examples"] and "never seen" in said["Not evaluated"]
    assert "still rose" in said["Length of training"] and "0.90" in said["Threshold"]


@pytest.mark.parametrize(
    ("values", "words"),
    [([0.1, 0.3, 0.5, 0.5], "still rose"), ([0.1, 0.5, 0.5, 0.5], "did not rise"),
     ([0.1, 0.5, 0.5, 0.3], "--checkpoint best"), ([0.1, 0.5], "fewer than three")],
)  # fmt: skip
def test_the_length_of_training(index, values, words):
    history = [{"step": k, "val_AP": v} for k, v in zip((1, 2, 4, 5), values, strict=False)]
    if words == "still rose":
        history[2]["val_AP"] = 0.5
    none = np.zeros(0)
    facts = types.SimpleNamespace(
        names=(), training=None, truths=none, ap50=none, reached=none, labels=none,
        history=history, step=5, threshold=0.5, f1=0.5, counts=np.zeros((0, 6)), missed=0,
        confused=np.zeros((1, 1)), suspected={}, details=page_of(index, []).details,
    )  # fmt: skip
    assert words in dict(advice(facts))["Length of training"]


def test_choice_and_cut(index):
    contents = page_of(index, ROWS)
    judged = contents.judged
    chosen = choose(judged, index, 0.0)
    kinds = [kind for kind, _ in chosen]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "background": 1, "missed": 5, "wrong": 1, "duplicate": 1, "poor": 1, "best": 1,
    }  # fmt: skip
    suspects = choose(judged, index, 0.95, contents.suspected)
    assert [row for kind, row in suspects if kind == "suspect"] == [0, 1]
    images = [row // 2 for kind, row in chosen if kind == "missed"]
    assert max(map(images.count, images)) <= OF_ONE_IMAGE
    for box in ([0, 0, 5, 5], [130, 90, 140, 100], [0, 0, 140, 100]):
        x1, y1, x2, y2 = cut_around(np.array(box, float), (140, 100))
        assert 0 <= x1 <= box[0] and 0 <= y1 <= box[1] and box[2] <= x2 <= 140 and y2 <= 100


def test_lines_leave_out_what_is_not_finite_and_have_a_table():
    x, y = np.arange(4.0), np.array([1, np.nan, 3, 2])
    svg = plots.lines([("a<b", x, y), ("c", x, y)], title="t", axis="step", value="v")
    assert svg.count("<polyline") == 2 and svg.count("<tr>") == 4 and "a&lt;b" in svg
    assert "nan" not in plots.lines([("a", x[:0], x[:0])], title="t", axis="x", value="y")


def test_a_trained_run(whole, drawn_files, tmp_path, capsys):
    page = report(whole[0], output=str(tmp_path / "out"), checkpoint="best")
    text = page.read_text(encoding="utf-8")
    assert "step 3" in text or "step 6" in text
    assert str(page) in capsys.readouterr().out and str(drawn_files.train) in text
    report(whole[0], output=str(tmp_path / "out"), csv=str(drawn_files.train))  # its own file
    assert str(drawn_files.train) in page.read_text(encoding="utf-8")
    page.write_text("mine")
    with pytest.raises(InputError, match=r"report\.html"):
        report(whole[0], output=str(tmp_path / "out"))
    assert page.read_text() == "mine"


def test_objects_of_images_that_cannot_be_read_are_not_missed(
    whole, drawn_files, tmp_path, monkeypatch
):
    index = read_csv(drawn_files.val, drawn_files.classes)

    def without_the_first(*args, **reading):
        metrics, detections = evaluate_restored(*args, **reading)
        return metrics, detections[1:]

    monkeypatch.setattr(run, "evaluate_restored", without_the_first)
    page = report(whole[0], output=str(tmp_path)).read_text(encoding="utf-8")
    assert f"{len(index.labels) - index.counts[0]} objects to find" in page
    assert f"<b>{index.num_images - 1}</b><span>images" in page


def look_at_suspects(browser, choose_kind, slide, shown):
    """Likely label errors stay, with the detection that contradicts, whatever the threshold is."""
    browser.evaluate(choose_kind % "suspect")
    own = "document.querySelectorAll('.picture[data-kind=suspect] .found-box.focus').length"
    for step in (0, 100):
        slide(step)
        assert browser.evaluate(shown) == 2 and browser.evaluate(own) == 2
    browser.evaluate("document.querySelector('.picture[data-kind=suspect] .open').focus(), 1")
    browser.press("Enter")
    browser.wait_until("document.querySelector('#viewer').open")
    caption = browser.evaluate("document.querySelector('#viewer-caption').textContent")
    assert "Likely label error" in caption and "wrong class?" in caption
    browser.press("ArrowRight")
    browser.wait_until("document.querySelector('#viewer-caption').textContent.includes('missing')")
    browser.press("Escape")
    browser.wait_until("!document.querySelector('#viewer').open")


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")
def test_in_a_browser(index, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(page_of(index, ROWS)), encoding="utf-8")
    shown = "[...document.querySelectorAll('.picture')].filter(f => f.offsetParent).length"
    cell = "document.querySelector('#counts-table tbody tr').cells[%d].textContent"
    with Browser(tmp_path / "profile") as browser:
        for width in (1280, 390):
            browser.open(path, width=width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width

        def slide(value: int) -> None:
            browser.evaluate(
                f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')); return 1 }})"
                "(document.querySelector('#threshold'))"
            )

        assert browser.evaluate("document.title").startswith("Report: </script>")
        start = browser.evaluate(shown)
        slide(0)
        assert [browser.evaluate(cell % k) for k in range(1, 7)] == ["1", "1", "1", "1", "1", "5"]
        drawn = browser.evaluate("document.querySelectorAll('.found-box').length")
        assert drawn >= 5
        slide(100)
        assert [browser.evaluate(cell % k) for k in range(1, 7)] == ["0", "0", "0", "0", "0", "6"]
        assert (
            browser.evaluate(
                "document.querySelectorAll("
                "'.picture:not([hidden]):not([data-kind=suspect]) .found-box').length"
            )
            == 0
        )
        browser.evaluate("document.querySelector('#best-threshold').click(), 1")
        assert browser.evaluate(shown) == start
        choose_kind = (
            "(f => { f.elements.kind.value = '%s'; f.dispatchEvent(new Event('input')); return 1 })"
            "(document.querySelector('#filters'))"
        )
        browser.evaluate(choose_kind % "missed")
        assert browser.evaluate(shown) == 5
        browser.evaluate("document.querySelector('.picture[data-kind=missed] .open').focus(), 1")
        browser.press("Enter")
        browser.wait_until("document.querySelector('#viewer').open")
        assert "Missed" in browser.evaluate("document.querySelector('#viewer-caption').textContent")
        assert browser.evaluate("document.querySelectorAll('#viewer-frame .truth').length") >= 1
        browser.press("ArrowRight")
        browser.wait_until(
            "document.querySelector('#viewer-caption').textContent.startsWith('2/5')"
        )
        browser.press("Escape")
        browser.wait_until("!document.querySelector('#viewer').open")
        browser.evaluate(choose_kind % "wrong")
        assert browser.evaluate("document.querySelector('#none').hidden") is False
        look_at_suspects(browser, choose_kind, slide, shown)
        assert browser.errors == []
        fetched = [u for u in browser.requests if not u.startswith(("data:", "file:", "about:"))]
        assert fetched == []
