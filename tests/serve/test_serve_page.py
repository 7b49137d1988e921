"""The page of the service in a real browser: files, slider, classes, keys, camera, phone."""

import json

import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image
from serving import noise, running

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium is installed (Debian's package: chromium)"
)
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), options=CAMERA) as browser:
        yield browser


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a <b>.png"
    Image.fromarray(noise(160, 120)).save(path)
    return path


@pytest.fixture
def page(browser, service):
    """The page, opened anew on a desktop."""
    browser.errors.clear()
    browser.requests.clear()
    browser.visit(f"http://127.0.0.1:{service.port}/")
    return browser


def count(browser, selector: str) -> int:
    return browser.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")


def text(browser, selector: str) -> str:
    return browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def slide(browser, percent: int) -> None:
    browser.evaluate(
        f"(s => {{ s.value = {percent}; s.dispatchEvent(new Event('input')); return 1 }})"
        "(document.querySelector('#threshold'))"
    )


def wait_for_boxes(browser) -> None:
    browser.wait_until("document.querySelector('#picture').naturalWidth > 0")


def test_a_file_gives_boxes_which_the_slider_filters_without_asking_again(page, detector, photo):
    page.choose("#file", photo)
    wait_for_boxes(page)
    result = detector.predict(photo, threshold=0.05)
    asked = [url for url in page.requests if "/predict" in url]
    cuts = [30, *np.unique((100 * result.scores).astype(int)).tolist(), 99]
    for percent in cuts:
        slide(page, percent)
        kept = result[result.scores > percent / 100]
        assert count(page, "#boxes g") == count(page, "#objects li") == len(kept)
        assert count(page, "#classes li") == len(set(kept.labels.tolist()))
        number = len(kept)
        assert text(page, "#shown") == f"{number} object{'' if number == 1 else 's'}"
    assert len({len(result[result.scores > p / 100]) for p in cuts}) > 2
    slide(page, 30)
    script = (
        "(box => ['x', 'y', 'width', 'height'].map(key => +box.getAttribute(key)))"
        "(document.querySelector('[data-box=\"0\"] rect'))"
    )
    x, y, width, height = page.evaluate(script)
    np.testing.assert_allclose([x, y, x + width, y + height], result.boxes[0], atol=0.02)
    assert (
        page.evaluate("document.querySelector('#boxes').getAttribute('viewBox')") == "0 0 120 160"
    )
    assert text(page, "#caption") == "a <b>.png, 120 x 160"
    assert len(asked) == 1 == len([url for url in page.requests if "/predict" in url])
    assert page.errors == []
    assert all(
        url.startswith(("http://127.0.0.1:", "blob:", "data:", "about:")) for url in page.requests
    )


def test_classes_can_be_hidden_and_an_object_be_marked_with_the_keyboard(page, photo):
    page.choose("#file", photo)
    wait_for_boxes(page)
    slide(page, 5)
    all_boxes, first = count(page, "#boxes g"), int(text(page, "#classes .number"))
    page.evaluate("document.querySelector('#classes input').focus(), 1")
    page.press("Space")
    page.wait_until(f"document.querySelectorAll('#boxes g').length === {all_boxes - first}")
    assert page.evaluate("document.activeElement.matches('#classes input')")
    page.press("Space")
    page.wait_until(f"document.querySelectorAll('#boxes g').length === {all_boxes}")
    page.evaluate("document.querySelector('#objects button').focus(), 1")
    assert page.evaluate("document.querySelector('.marked').dataset.box") == "0"
    page.press("Tab")
    page.wait_until("document.querySelector('.marked').dataset.box === '1'")
    page.evaluate("document.querySelector('#threshold').focus(), 1")
    page.press("ArrowRight")
    page.wait_until("document.querySelector('#threshold-text').textContent === '0.06'")
    page.evaluate("document.querySelector('[data-toggle=\"show-boxes\"]').click(), 1")
    assert page.evaluate("getComputedStyle(document.querySelector('#boxes g')).display") == "none"
    assert page.errors == []


def test_the_first_tabs_lead_to_the_ways_to_give_an_image(page):
    found = []
    for _ in range(4):
        page.press("Tab")
        found.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert found == ["skip", "theme", "file", "camera"]


def test_a_refusal_is_shown_in_words(page, photo):
    photo.write_bytes(photo.read_bytes()[:500])
    page.choose("#file", photo)
    page.wait_until("document.querySelector('#status').className === 'bad'")
    assert "truncated" in text(page, "#status") and "What to do" in text(page, "#status")
    photo.write_text("no image")
    page.choose("#file", photo)
    page.wait_until("document.querySelector('#status').textContent.includes('JPEG')")


def test_a_dropped_file_and_a_dropped_text(page, photo):
    drop = (
        "(data => { %s; dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}));"
        " return 1 })(new DataTransfer())"
    )
    page.evaluate(drop % "data.setData('text/plain', 'x')")
    assert "no file" in text(page, "#status")
    content = list(photo.read_bytes())
    page.evaluate(drop % f"data.items.add(new File([new Uint8Array({content})], 'd.png'))")
    wait_for_boxes(page)
    assert text(page, "#caption").startswith("d.png")


def test_the_camera(page):
    page.evaluate("document.querySelector('#camera').click(), 1")
    page.wait_until("document.querySelector('#video').videoWidth > 0")
    page.evaluate("document.querySelector('#shoot').click(), 1")
    wait_for_boxes(page)
    assert text(page, "#caption").startswith("camera, ")
    assert page.evaluate("document.querySelector('#live').hidden")
    assert page.evaluate("document.querySelector('#video').srcObject === null")
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(page, service, photo, scheme):
    page.prefer(scheme)
    page.visit(f"http://127.0.0.1:{service.port}/", width=390, height=844)
    page.choose("#photo", photo)
    wait_for_boxes(page)
    assert page.evaluate("document.querySelector('#photo').getAttribute('capture')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    small = (
        "[...document.querySelectorAll('.way, #objects button, #classes .check')]"
        ".filter(e => e.getClientRects().length && e.getBoundingClientRect().height < 32).length"
    )
    assert page.evaluate(small) == 0
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(21, 24, 27)") == (scheme == "dark")
    page.evaluate("document.querySelector('#theme').click(), 1")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != colour
    page.prefer("light")
    assert page.errors == []


def test_a_service_that_has_gone_is_said(browser, detector, photo):
    with running(detector) as service:
        browser.visit(f"http://127.0.0.1:{service.port}/")
    browser.choose("#file", photo)
    browser.wait_until("document.querySelector('#status').className === 'bad'")
    assert "does not answer" in text(browser, "#status")
