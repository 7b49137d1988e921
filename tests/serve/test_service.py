"""The service: its answers are those of the Python API, and all else is refused in words."""

import concurrent.futures
import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import encoded, multipart, noise, running

from m2det_jax.inference.trained_detector import TrainedDetector

PICTURE = noise(120, 160)


def assert_same(answer, result):
    found = answer.json
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert found["names"] == result.names.tolist()
    assert found["labels"] == result.labels.tolist()
    np.testing.assert_allclose(found["scores"], result.scores, atol=1e-4)
    np.testing.assert_allclose(np.reshape(found["boxes"], (-1, 4)), result.boxes, atol=0.02)
    height, width = result.image_size
    assert found["image_size"] == {"width": width, "height": height}


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


KINDS = {
    "jpg": encoded(PICTURE),
    "turned": encoded(PICTURE, exif=exif(6)),
    "large": encoded(noise(700, 900), quality=80),  # decoded at a fraction of its size
    "grey": encoded(PICTURE[..., 0], "PNG"),
    "transparent": encoded(np.dstack([PICTURE, PICTURE[..., 0]]), "PNG"),
    "webp": encoded(PICTURE, "WEBP"),
    "16 bits": encoded(PICTURE[..., 0].astype(np.uint16) * 257, "PNG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_that_of_the_python_api(service, detector, tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(KINDS[kind])
    result = detector.predict(path, threshold=0.3)
    assert len(result)
    assert_same(service.post(KINDS[kind]), result)
    body, content_type = multipart(KINDS[kind])
    assert_same(service.post(body, Content_Type=content_type), result)


def test_requests_at_the_same_time_with_their_own_thresholds(service, detector):
    pictures = [noise(60 + 10 * i, 90, seed=i) for i in range(8)] * 4
    thresholds = np.linspace(0.6, 0.98, len(pictures)).round(3).tolist()
    bodies = [encoded(picture, "PNG") for picture in pictures]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        queries = [f"?threshold={threshold}" for threshold in thresholds]
        answers = list(pool.map(service.post, bodies, queries))
    for answer, picture, threshold in zip(answers, pictures, thresholds, strict=True):
        assert_same(answer, detector.predict(picture, threshold=threshold))
    assert len({len(answer.json["scores"]) for answer in answers}) > 3


def test_a_drawn_picture(service, detector):
    smooth = np.kron(np.arange(80, dtype=np.uint8).reshape(8, 10), np.ones((60, 64), np.uint8))
    smooth = np.dstack([smooth] * 3)
    body = encoded(smooth, "PNG")
    plain = detector.predict(smooth, threshold=0.3).draw()
    for answer in (
        service.post(body, "?draw=1"),
        service.post(body, Accept="image/jpeg"),
        service.post(body, "?draw=true", Accept="application/json"),
    ):
        assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
        with Image.open(io.BytesIO(answer.body)) as picture:
            assert picture.size == plain.size
            off = np.abs(np.asarray(picture, int) - np.asarray(plain, int)).mean()
        assert off < 6 < np.abs(np.asarray(plain, int) - smooth).mean()
    assert service.post(body, Accept="text/html,image/jpeg,application/json").json["scores"]
    assert service.post(body, "?draw=0", Accept="image/jpeg").json["scores"]


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says that it is large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(2**20)))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


JPEG = encoded(PICTURE)
REFUSED = {
    "empty": (b"", {}, 400, "empty"),
    "text": (b"hello", {}, 415, "not an image"),
    "a format that is not offered": (b"P5 2 2 255 abcd", {}, 415, "not an image"),
    "cut": (JPEG[: len(JPEG) // 2], {}, 422, "truncated"),
    "cut PNG": (encoded(PICTURE, "PNG")[:-300], {}, 422, "truncated"),
    "header alone": (JPEG[:200], {}, 422, "Truncated"),
    "large": (bomb(3001, 1000), {}, 413, "3001 x 1000"),
    "bomb": (bomb(40_000, 40_000), {}, 413, "1600000000 pixels"),
    "float": (encoded(PICTURE[..., 0].astype(np.float32), "TIFF"), {}, 422, "float"),
    "gzip": (JPEG, {"Content_Encoding": "gzip"}, 415, "Content-Encoding"),
    "threshold": (JPEG, {"query": "?threshold=2"}, 400, "no score"),
    "no number": (JPEG, {"query": "?threshold=nan"}, 400, "no score"),
    "a name that is not known": (JPEG, {"query": "?treshold=.2"}, 400, "treshold"),
    "draw": (JPEG, {"query": "?draw=yes"}, 400, "draw="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_to_do(service, case):
    body, options, status, text = REFUSED[case]
    answer = service.post(body, options.pop("query", ""), **options)
    assert answer.status == status and text in answer.json["error"]
    assert set(answer.json) == {"error", "expected", "remedy"} and all(answer.json.values())


def test_a_bomb_is_refused_by_its_header(service, monkeypatch):
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image))
    assert service.post(bomb(3001, 1000)).status == 413 and not decoded


def test_what_is_no_route(service):
    for method, path, status in [
        ("GET", "/predict", 405), ("OPTIONS", "/predict", 405), ("PUT", "/", 405),
        ("GET", "/nothing", 404), ("POST", "/healthz", 405),
    ]:  # fmt: skip
        answer = service.ask(method, path)
        assert answer.status == status and answer.json["remedy"], path
    assert service.ask("OPTIONS", "/predict").headers["allow"] == "POST"
    head = service.ask("HEAD", "/healthz")
    assert (head.status, head.body) == (200, b"") and int(head.headers["content-length"])


def test_health_and_metrics(service):
    assert service.ask("GET", "/healthz").json == {"status": "alive"}
    assert service.ask("GET", "/readyz").json == {"status": "ready", "step": 6}

    def figures():
        families = text_string_to_metric_families(service.ask("GET", "/metrics").body.decode())
        samples = [sample for family in families for sample in family.samples]
        return {(s.name, *sorted(s.labels.values())): s.value for s in samples}

    before = figures()
    found = len(service.post(JPEG).json["scores"])
    service.post(b"hello")
    after = figures()
    grown = {key: after[key] - before.get(key, 0) for key in after}
    assert grown["m2det_requests_total", "/predict", "200"] == 1
    assert grown["m2det_requests_total", "/predict", "415"] == 1
    assert grown["m2det_detections_total",] == found > 0
    assert grown["m2det_batch_images_count",] == grown["m2det_stage_seconds_count", "device"] == 1
    assert after["m2det_ready",] == 1 and after["m2det_in_flight",] == 0
    assert after["process_resident_memory_bytes",] > 2**20


def test_names_in_any_language(detector):
    names = ("猫", "\ud800 broken", "</script>", "ö", "e", "f")
    restored = dataclasses.replace(detector.restored, class_names=names)
    with running(TrainedDetector(restored, detector.workdir), threshold=0.1) as service:
        answer = service.post(JPEG)
        assert set(answer.json["names"]) <= set(names) and answer.json["names"]
        assert service.post(JPEG, "?draw=1").status == 200
        page = service.ask("GET", "/").body.decode()
        assert page.count("</script>") == 2 and "猫" in page
