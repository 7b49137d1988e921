"""Python API, verb and bare jitted function give the same boxes, on real photographs."""

import json
import pathlib

import jax
import numpy as np
import pytest
from photographs import write_photographs
from PIL import Image

import m2det_jax
from m2det_jax.data import DetectionIndex, eval_batches, read_size
from m2det_jax.metrics.detections import to_original
from m2det_jax.predict import predict

NUMBER, THRESHOLD = 50, 0.3


@pytest.fixture(scope="module")
def photographs(bccd_dir, tmp_path_factory) -> list[pathlib.Path]:
    """Real photographs, of many sizes and of all modes that are met."""
    return write_photographs(bccd_dir, tmp_path_factory.mktemp("photographs"), NUMBER)


@pytest.fixture(scope="module")
def of_the_verb(workdir, photographs, tmp_path_factory) -> list[dict]:
    output = tmp_path_factory.mktemp("verb")
    options = dict(threshold=THRESHOLD, output=str(output), pictures=False)
    done = predict(workdir, [str(path) for path in photographs], **options)
    assert (done.images, done.skipped) == (NUMBER, 0) and done.detections > 5 * NUMBER
    return [json.loads(json.dumps(line)) for line in done.lines()]


def corners(line: dict) -> tuple[np.ndarray, np.ndarray, list[str]]:
    boxes = np.array([one["bbox"] for one in line["detections"]]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([one["score"] for one in line["detections"]])
    return boxes, scores, [one["category_name"] for one in line["detections"]]


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_the_api_and_the_verb(detector, photographs, of_the_verb, batch_size):
    results = detector.predict(photographs, threshold=THRESHOLD, batch_size=batch_size)
    for path, result, line in zip(photographs, results, of_the_verb, strict=True):
        boxes, scores, names = corners(line)
        assert result.source == line["file_name"] == str(path)
        assert result.image_size == (line["height"], line["width"])
        np.testing.assert_allclose(result.scores, scores, atol=1e-4)
        np.testing.assert_allclose(result.boxes, boxes, atol=0.02)
        assert result.names.tolist() == names


def test_the_verb_and_the_bare_jitted_function(workdir, photographs, of_the_verb):
    restored = m2det_jax.restore(workdir)
    detect = restored.detector.at_threshold(THRESHOLD).detect_fn()
    sizes = np.array([read_size(path) for path in photographs], np.int32)
    index = DetectionIndex(
        image_paths=tuple(map(str, photographs)),
        sizes=sizes,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        offsets=np.zeros(NUMBER + 1, np.int64),
        class_names=restored.class_names,
    )
    with eval_batches(index, resize=restored.detector.resize, batch_size=1) as batches:
        for batch, line in zip(batches, of_the_verb, strict=True):
            found = jax.device_get(detect(restored.variables, batch["image"]))
            (one,) = to_original(found, batch, index)
            boxes, scores, names = corners(line)
            np.testing.assert_allclose(one.scores, scores, atol=1e-4)
            np.testing.assert_allclose(one.boxes, boxes, atol=0.02)
            assert [restored.class_names[label] for label in one.labels] == names


def test_an_open_image_and_its_file(detector, photographs):
    """Large JPEG files alone are decoded at a fraction of their size, unlike an open image."""
    paths = [path for path in photographs if path.suffix != ".jpg"]
    assert len(paths) > 15
    opened = [Image.open(path) for path in paths]
    ours = detector.predict(opened, threshold=THRESHOLD)
    for image, one, other in zip(
        opened, ours, detector.predict(paths, threshold=THRESHOLD), strict=True
    ):
        assert one.image_size == other.image_size and one.source == other.source
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.02)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        image.close()
