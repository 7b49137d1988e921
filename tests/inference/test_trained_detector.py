"""A trained detector from Python: one image, many, streams, batches, views, and evaluation."""

import dataclasses
import inspect
import json

import jax
import numpy as np
import pytest
from PIL import Image

import m2det_jax
from m2det_jax.detector.detector import _detect_above_fn
from m2det_jax.errors import InputError
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.pages.markup import without_nan
from m2det_jax.trained import restore

LOW = 0.3


def photo(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(height * width).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


PHOTOS = [photo(40, 60), photo(100, 50), photo(64, 96), photo(33, 300), photo(480, 640)]


def assert_same(found, expected, *, atol=1e-3):
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=atol)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_what_it_says_of_itself(detector, whole):
    assert detector.image_size == (64, 96) and detector.step == 6
    assert len(detector.class_names) == 6 and detector.config.batch_size == 8
    assert "step 6, input 64 x 96, 6 classes" in repr(detector)
    assert m2det_jax.load(str(whole[0]), 3).step == 3
    with pytest.raises(InputError, match="no checkpoint 4"):
        m2det_jax.load(whole[0], 4)


def test_one_image(detector):
    found = detector.predict(PHOTOS[0], threshold=LOW)
    assert isinstance(found, m2det_jax.Result) and found.image_size == (40, 60)
    assert 0 < len(found) <= 20
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.labels.dtype == np.int32
    assert (np.diff(found.scores) <= 0).all() and (found.scores > LOW).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [60, 40, 60, 40]).all()
    assert (found.boxes[:, 2:] > 30).any()  # in pixels of the picture, not of the network


def test_many_images_of_any_sizes(detector):
    single = [detector.predict(image, threshold=LOW) for image in PHOTOS]
    for images in (PHOTOS, tuple(PHOTOS)):
        found = detector.predict(images, threshold=LOW, batch_size=2)
        assert isinstance(found, list) and len(found) == 5
        for one, expected, image in zip(found, single, PHOTOS, strict=True):
            assert one.image_size == image.shape[:2]
            assert_same(one, expected)
    assert any(len(one) for one in single)


def test_no_images_at_all(detector):
    assert detector.predict([]) == detector.predict(()) == []
    assert detector.predict(np.zeros((0, 9, 9, 3), np.uint8)) == []
    assert list(detector.predict(iter(()))) == []
    boxes, scores, labels = detector.predict_on_batch(np.zeros((0, 64, 96, 3), np.uint8))
    assert boxes.shape == (0, 20, 4) and scores.shape == labels.shape == (0, 20)


def test_an_array_of_images(detector):
    images = np.stack([PHOTOS[0], PHOTOS[0][::-1]])
    found = detector.predict(images, threshold=LOW)
    for one, image in zip(found, images, strict=True):
        assert_same(one, detector.predict(image, threshold=LOW))


def test_a_stream_is_taken_as_it_is_asked_for(detector):
    taken = []

    def camera():
        for i in range(1000):
            taken.append(i)
            yield PHOTOS[i % 5]

    results = detector.predict(camera(), threshold=LOW, batch_size=2)
    assert not isinstance(results, list) and not taken
    found = [next(results) for _ in range(7)]
    assert len(taken) < 7 + 4 * 2 + 10
    for i, one in enumerate(found):
        assert_same(one, detector.predict(PHOTOS[i % 5], threshold=LOW))
    results.close()


def test_what_is_before_an_unreadable_image_comes_first(detector, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    results = detector.predict(iter([*PHOTOS, bad, PHOTOS[0]]), batch_size=2)
    assert [next(results).image_size for _ in PHOTOS] == [image.shape[:2] for image in PHOTOS]
    with pytest.raises(InputError, match="bad.jpg"):
        next(results)
    with pytest.raises(InputError, match="bad.jpg"):
        detector.predict([PHOTOS[0], bad])
    with pytest.raises(InputError, match=r"images\[1\]: expected uint8"):
        detector.predict([PHOTOS[0], PHOTOS[0] / 255])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", True, None])
def test_a_threshold_that_is_none(detector, threshold):
    with pytest.raises(InputError, match="threshold: a score from 0 to 1"):
        detector.predict(PHOTOS[0], threshold=threshold)


@pytest.mark.parametrize("batch_size", [0, -1, True])
def test_a_batch_size_that_is_none(detector, batch_size):
    with pytest.raises(InputError, match="batch_size: 1 or more"):
        detector.predict(PHOTOS, batch_size=batch_size)


@pytest.mark.parametrize("threshold", [0.0, 0.005, 0.3, 1.0])
@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
def test_the_threshold_is_that_of_the_suppression(workdir, nms, threshold):
    """As in the verb, also below config.eval.score_threshold: with a program of its own there."""
    detector = m2det_jax.load(workdir, overrides={"eval.nms": nms})
    own = detector.restored.detector
    images = np.stack([np.asarray(Image.fromarray(p).resize((96, 64))) for p in PHOTOS[:2]])
    program = own.at_threshold(threshold).detect_fn()
    expected = jax.device_get(program(detector.restored.variables, images))
    for i, image in enumerate(images):
        found = detector.predict(image, threshold=threshold)
        valid = expected.valid[i]
        np.testing.assert_allclose(found.scores, expected.scores[i][valid], atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes[i][valid], atol=1e-3)
    assert expected.valid.any() == (threshold < 1)


def test_one_program_serves_all_calls_of_a_batch_size(workdir):
    """Numbers of images, sizes of pictures and thresholds compile nothing more."""
    detector = m2det_jax.load(workdir, overrides=["eval.max_detections=19"])
    traces = []
    normalize = type(detector.restored.detector).normalize

    def counting(self, images):
        traces.append(images.shape)
        return normalize(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(detector.restored.detector), "normalize", counting)
        for threshold in (0.5, 0.1, 0.0):
            for count in (1, 3, 5):
                detector.predict(PHOTOS[:count], threshold=threshold, batch_size=2)
        assert traces == [(2, 64, 96, 3)]
        for image in PHOTOS:
            detector.predict(image)
        detector.predict_on_batch(np.zeros((2, 64, 96, 3), np.uint8))
        assert traces == [(2, 64, 96, 3), (1, 64, 96, 3)]
        m2det_jax.load(workdir, overrides=["eval.max_detections=19"]).predict(PHOTOS[0])
        assert len(traces) == 2  # equal detectors share it
    _detect_above_fn.cache_clear()


def test_predict_on_batch_has_the_form_of_keras_retinanet(workdir):
    detector = m2det_jax.load(workdir, overrides={"eval.score_threshold": 0.9999})
    images = np.stack([np.asarray(Image.fromarray(p).resize((96, 64))) for p in PHOTOS])
    boxes, scores, labels = detector.predict_on_batch(images)
    assert boxes.shape == (5, 20, 4) and scores.shape == labels.shape == (5, 20)
    assert boxes.dtype == scores.dtype == np.float32 and labels.dtype == np.int32
    for i, image in enumerate(images):
        expected = detector.predict(image, threshold=0.9999)
        count = len(expected)
        np.testing.assert_allclose(scores[i, :count], expected.scores, atol=1e-5)
        np.testing.assert_allclose(boxes[i, :count], expected.boxes, atol=1e-3)
        np.testing.assert_array_equal(labels[i, :count], expected.labels)
        for rest in (boxes[i, count:], scores[i, count:], labels[i, count:]):
            assert (rest == -1).all()
    assert (scores == -1).any() and (scores > 0.9999).any()


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros((2, 64, 96, 3), np.float32),
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((1, 96, 64, 3), np.uint8),
        np.zeros((1, 64, 96, 1), np.uint8),
        np.uint8(3),
    ],
)
def test_predict_on_batch_refuses_what_it_would_have_to_resize(detector, inputs):
    with pytest.raises(InputError, match=r"expected uint8 \[B, 64, 96, 3\], got"):
        detector.predict_on_batch(inputs)


def test_views_are_those_of_the_verb(workdir, tmp_path):
    from m2det_jax.predict import predict

    overrides = ["eval.test_sizes=64,(64,96)", "eval.test_flip=True"]
    files = []
    for i, image in enumerate(PHOTOS[:3]):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(files[-1])
    output = tmp_path / "out"
    done = predict(workdir, files, overrides=overrides, threshold=LOW, output=str(output))
    detector = m2det_jax.load(workdir, overrides=overrides)
    found = detector.predict(files, threshold=LOW)
    assert sum(map(len, found)) == done.detections > 0
    for one, line in zip(found, done.lines(), strict=True):
        assert_as_line(one, line)
    plain = m2det_jax.load(workdir).predict(files, threshold=LOW)
    assert any(
        len(a) != len(b) or (a.scores != b.scores).any() for a, b in zip(found, plain, strict=True)
    )
    higher = detector.predict(files, threshold=0.6)
    for one, low in zip(higher, found, strict=True):
        assert_same(one, low[low.scores > 0.6])


def assert_as_line(found, line: dict):
    """That a result has the detections of a line of predictions.jsonl."""
    records = found.to_coco(line["image_id"])
    assert [r["category_name"] for r in records] == [r["category_name"] for r in line["detections"]]
    assert found.image_size == (line["height"], line["width"])
    for key in ("bbox", "score", "category_id"):
        ours, theirs = ([r[key] for r in rs] for rs in (records, line["detections"]))
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-3)


def test_evaluation_gives_the_metrics_of_the_verb(workdir, detector, drawn_files, tmp_path):
    expected = evaluate_checkpoint(workdir, output=str(tmp_path / "m.json"))
    for data in (None, drawn_files.val, str(drawn_files.val), {"csv": drawn_files.val}):
        found = detector.evaluate(data)
        assert json.dumps(without_nan(found)) == json.dumps(without_nan(expected))
    assert {"AP", "AP50", "per_class", "loss"} <= found.keys()
    folder = drawn_files.val.parent
    assert without_nan(detector.evaluate(folder)) == without_nan(expected)
    train = detector.evaluate({"csv": drawn_files.train, "classes": drawn_files.classes})
    assert train["loss"] != expected["loss"]


def test_evaluation_prints_and_writes_nothing(detector, workdir, capsys):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    detector.evaluate(batch_size=8)
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"cvs": "a.csv"}, "no key 'cvs', the nearest is 'csv'"),
        (3, "a CSV file, a folder or a mapping expected, got 3"),
        ("no such.csv", "no such.csv"),
        ({"format": "coco"}, "--format needs the data set"),
    ],
)
def test_evaluation_refuses_other_data(detector, data, words):
    with pytest.raises((InputError, OSError), match=words):
        detector.evaluate(data)
    with pytest.raises(InputError, match="batch_size=3"):
        detector.evaluate(batch_size=3)


def test_loading_leaves_logging_and_choices_of_jax_alone(whole, caplog, monkeypatch):
    import logging

    log = logging.getLogger("m2det_jax")
    before = (log.handlers[:], log.level, log.propagate, logging.getLogger("absl").filters[:])
    cache, flags = jax.config.jax_compilation_cache_dir, __import__("os").environ["XLA_FLAGS"]
    m2det_jax.load(whole[0])
    assert before == (log.handlers, log.level, log.propagate, logging.getLogger("absl").filters)
    assert jax.config.jax_compilation_cache_dir == cache  # that of the tests
    assert __import__("os").environ["XLA_FLAGS"] == flags
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(InputError, match="no checkpoints there"):
        m2det_jax.load(tmp_path)


def test_the_verb_and_the_api_have_one_default():
    from m2det_jax.predict import predict

    verb = inspect.signature(predict).parameters["threshold"].default
    api = inspect.signature(m2det_jax.TrainedDetector.predict).parameters["threshold"].default
    assert verb == api == 0.5


def test_class_ids_of_the_data_set_come_along(workdir):
    detector = m2det_jax.load(workdir)
    ids = (10, 20, 30, 40, 50, 60)
    own = m2det_jax.TrainedDetector(
        dataclasses.replace(detector.restored, class_ids=ids), detector.workdir
    )
    found = own.predict(PHOTOS[0], threshold=LOW)
    assert [r["category_id"] for r in found.to_coco(1)] == [ids[label] for label in found.labels]


def test_restore_stays():
    assert m2det_jax.restore is restore
    assert set(m2det_jax.__all__) <= set(dir(m2det_jax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        m2det_jax.nothing  # noqa: B018
