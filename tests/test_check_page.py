"""The page of a check in a real browser: figures, filters, pictures, keys, phone."""

import json

import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image

from m2det_jax import pages
from m2det_jax.pages import plots

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium is installed (Debian's package: chromium)"
)
HOSTILE = '<script>document.title = "broken"</script>'


def finding(i: int) -> pages.Remark:
    severity = ("error", "warning", "note")[i % 3]
    return pages.Remark(
        kind=f"kind-{i % 3}", severity=severity, split="train", file=f"dir{i}/train.csv",
        line=i + 1, item="", image=f"/data/{i}{HOSTILE}.jpg", what=f"number {i} {HOSTILE}",
        effect="stops", remedy="mend it",
    )  # fmt: skip


def picture(i: int) -> pages.Picture:
    rng = np.random.default_rng(i)
    pixels = rng.integers(0, 255, (60, 100, 3), np.uint8)
    boxes = np.array([[5, 5, 40, 30], [50, 20, 90, 55]], np.float32)
    return pages.Picture(
        image=Image.fromarray(pixels), size=(100, 60), title=f"picture {i}", reason="training",
        boxes=boxes, names=["a", HOSTILE], covered=np.array([True, i % 2 == 0]),
        best_iou=np.array([0.7, 0.3]), anchors=boxes[[0, 0, 1]] + 2, owners=np.array([0, 0, 1]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of 300 findings and 4 + 2 pictures."""
    figure = plots.histogram(
        np.array([0, 1, 2.0]), np.array([3, 4]), title="Plot", axis="IoU", ticks=(0, 1, 2)
    )
    contents = pages.Contents(
        name=HOSTILE, facts=[("Input", HOSTILE)], tiles=[("12", "images", "of two splits")],
        refused=True,
        groups=[pages.Group(f"kind-{i}", f"Kind {i}", s, 100, "stops")
                for i, s in enumerate(("error", "warning", "note"))],
        findings=[finding(i) for i in range(300)],
        classes=[pages.ClassRow("b", 5, 1, 3, 20.0, 0.5), pages.ClassRow("a", 9, 2, 3, 10.0, 1.0),
                 pages.ClassRow(HOSTILE, 0, 0, 0, float("nan"), float("nan"))],
        coverage={"Training boxes": [pages.CoverageRow("small", 10, 4, 0.4)]},
        figures={"Anchors": [figure], "Distributions": [figure, figure]},
        pictures=[picture(i) for i in range(4)], augmented=[picture(9), picture(10)],
        fit=None, threshold=0.5, notes=["sampled"],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(pages.render_page(contents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def count(browser: Browser, selector: str) -> int:
    """Number of the elements that take up room on the page."""
    script = "[...document.querySelectorAll(%s)].filter(e => e.getClientRects().length).length"
    return browser.evaluate(script % json.dumps(selector))


ROWS = "#findings-table tbody tr"


def test_everything_is_there_and_nothing_is_fetched(browser, page):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page)
    assert browser.evaluate("document.title") == f"Data check: {HOSTILE}"
    assert count(browser, "svg[role=img]") == 3 and count(browser, ".tiles li") == 1
    assert count(browser, ".picture") == 6
    loaded = "[...document.images].every(i => i.complete && i.naturalWidth === 100)"
    browser.evaluate("document.images[5].scrollIntoView(), 1")
    browser.evaluate("Promise.all([...document.images].map(i => i.decode())).then(() => 1)")
    assert browser.evaluate(loaded)
    assert "refuse" in browser.evaluate("document.querySelector('.verdict').textContent")
    assert browser.errors == []
    fetched = {url.partition(":")[0] for url in browser.requests}
    assert fetched <= {"file", "data", "about"}
    assert {url for url in browser.requests if url.startswith("file")} == {page.as_uri()}


def test_filters_hide_rows(browser, page):
    browser.open(page)
    assert count(browser, ROWS) == 100  # the rest comes on request
    browser.evaluate("document.querySelector('#more').click(), 1")
    assert count(browser, ROWS) == 300
    fill = (
        "{const f = document.querySelector('#filters'); f.elements.%s.value = '%s';"
        "f.dispatchEvent(new Event('input')), 1}"
    )
    browser.evaluate(fill % ("text", "DIR17/"))
    assert count(browser, ROWS) == 1
    assert browser.evaluate("document.querySelector('#shown').textContent") == "1 of 1 shown"
    browser.evaluate(fill % ("kind", "kind-0"))
    assert count(browser, ROWS) == 0
    browser.evaluate(fill % ("text", ""))
    assert count(browser, ROWS) == 100
    assert browser.evaluate("location.hash") == "#kind=kind-0"
    browser.evaluate("document.querySelector('#filters [value=error]').click(), 1")
    assert count(browser, ROWS) == 0
    browser.open(page, "#severity=note&text=number+2")
    shown = browser.evaluate(f"[...document.querySelectorAll('{ROWS}:not([hidden])')]"
                             ".map(r => r.dataset.severity + r.cells[4].textContent)")  # fmt: skip
    expected = [i for i in range(300) if str(i).startswith("2") and i % 3 == 2]
    assert len(shown) == len(expected) and all(text.startswith("notenumber 2") for text in shown)


def test_a_kind_is_a_filter(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelector('[data-show=kind-1]').click(), 1")
    browser.wait_until("location.hash === '#kind=kind-1'")  # the form is reset before
    assert count(browser, ROWS) == 100 == count(browser, f"{ROWS}[data-kind=kind-1]")


def test_boxes_anchors_and_toggles(browser, page):
    browser.open(page)
    assert count(browser, "#pictures .box.covered") == 4 + 2
    assert count(browser, "#pictures .box.forced") == 2
    assert count(browser, ".anchors") == 0
    browser.evaluate("document.querySelector('[data-toggle=show-anchors]').click(), 1")
    assert count(browser, ".anchor") == 18
    browser.evaluate("document.querySelector('[data-toggle=only-forced]').click(), 1")
    assert count(browser, "#pictures .picture") == 2
    green, red = (
        browser.evaluate(f"getComputedStyle(document.querySelector('.box.{css}')).stroke")
        for css in ("covered", "forced")
    )
    assert green == "rgb(47, 209, 127)" and red == "rgb(255, 90, 69)"


def test_keys_walk_through_pictures(browser, page):
    browser.open(page)
    caption = "document.querySelector('#viewer-caption').textContent"
    browser.evaluate("document.querySelector('.picture .open').focus(), 1")
    browser.press("ArrowRight")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert browser.evaluate(focused) == "Enlarge picture 1"
    browser.press("Enter")
    assert browser.evaluate(caption).startswith("2/6 · picture 1 · training · 2 boxes, 1 without")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.evaluate(caption).startswith("4/6 · picture 3")
    browser.press("ArrowLeft")
    browser.press("Escape")
    assert not browser.evaluate("document.querySelector('#viewer').open")
    assert browser.evaluate(focused) == "Enlarge picture 2"
    browser.press("ArrowRight")  # a key at once is not undone by what the closed viewer does later
    assert browser.evaluate(focused) == "Enlarge picture 3"
    browser.evaluate("new Promise(done => setTimeout(done, 100)).then(() => 1)")
    assert browser.evaluate(focused) == "Enlarge picture 3"


@pytest.mark.parametrize("close", ["#viewer-close", "#viewer"])
def test_the_mouse_closes_the_viewer(browser, page, close):
    browser.open(page)
    browser.evaluate("document.querySelectorAll('.picture .open')[1].click(), 1")
    browser.evaluate("document.querySelector('[data-step=\"1\"]').click(), 1")
    # In one script: before the close event, which may come late.
    closed = f"(document.querySelector({close!r}).click(), document.querySelector('#viewer').open)"
    focused = "document.activeElement.getAttribute('aria-label')"
    assert browser.evaluate(f"[{closed}, {focused}]") == [False, "Enlarge picture 2"]


def test_classes_sort_and_the_theme_turns(browser, page):
    browser.open(page)
    names = "[...document.querySelectorAll('#classes-table tbody th')].map(e => e.textContent)"
    assert browser.evaluate(names) == ["a", "b", HOSTILE]
    click = "document.querySelectorAll('.sort')[%d].click(), 1"
    browser.evaluate(click % 4)  # median side, largest first
    assert browser.evaluate(names) == ["b", "a", HOSTILE]
    browser.evaluate(click % 4)
    assert browser.evaluate(names) == [HOSTILE, "a", "b"]
    ground = "getComputedStyle(document.body).backgroundColor"
    before = browser.evaluate(ground)
    browser.evaluate("document.querySelector('#theme').click(), 1")
    assert browser.evaluate(ground) != before


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_scrolls_one_way_only(browser, page, width):
    browser.open(page, width=width, height=844)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    cells = "[...document.querySelectorAll('.findings td')].filter(e => e.getClientRects().length)"
    widths = browser.evaluate(f"{cells}.map(e => e.clientWidth)")
    assert min(widths) > 230
    assert browser.errors == []
