"""Sliced inference: what tiles cover, and what is found in them, in pixels of the picture."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import m2det_jax
from m2det_jax import ops
from m2det_jax.errors import InputError
from m2det_jax.inference import slices
from m2det_jax.inference.programs import Programs
from m2det_jax.inference.slices import detect_sliced, tile_size, tile_windows
from m2det_jax.predict import predict, run

LOW = 0.3


@pytest.mark.parametrize("size", [(97, 64), (960, 640), (101, 333), (60, 1000), (5000, 3001)])
@pytest.mark.parametrize("tile", [(64, 96), (100, 100), (640, 512)])
def test_tiles_cover_the_picture_and_overlap(size, tile):
    windows = tile_windows(size, tile)
    if size[0] <= tile[1] and size[1] <= tile[0]:
        assert windows == []
        return
    covered = np.zeros(size[::-1], bool)
    for left, top, right, bottom in windows:
        assert (bottom - top, right - left) == tile and left >= 0 and top >= 0
        assert left < size[0] and top < size[1]
        covered[int(top) : int(bottom), int(left) : int(right)] = True
    assert covered.all() and len(windows) == len(set(windows))
    for axis in (0, 1):
        starts = sorted({window[axis] for window in windows})
        side = tile[1 - axis]
        assert (np.diff(starts) <= np.ceil(side * (1 - slices.OVERLAP))).all()
        assert starts[-1] + side == max(size[axis], side)


def test_a_picture_of_a_tile_has_none():
    assert tile_windows((96, 64), (64, 96)) == tile_windows((10, 20), (64, 96)) == []
    assert tile_windows((97, 64), (64, 96)) == [(0, 0, 96, 64), (1, 0, 97, 64)]


def test_sizes_of_tiles():
    assert tile_size("auto", (64, 96)) == (64, 96)
    assert tile_size(960, (64, 96)) == (640, 960) and tile_size(48, (64, 96)) == (32, 48)
    for wrong in (31, 0, -5, True, 300.0, "640", "all"):
        with pytest.raises(InputError, match="slices: pixels of a tile's longer side, 32 or more"):
            tile_size(wrong, (64, 96))


def photo(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(height * width).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


@pytest.mark.parametrize("nms", ["hard", "soft_linear"])
def test_one_tile_is_no_slicing(workdir, nms):
    detector = m2det_jax.load(workdir, overrides={"eval.nms": nms})
    images = [photo(64, 96), photo(40, 60), photo(100, 50)]
    whole = detector.predict(images, threshold=LOW)
    found = detector.predict(images, threshold=LOW, batch_size=2, slices=150)
    assert [len(one) for one in found] == [len(one) for one in whole] and any(map(len, found))
    for one, expected in zip(found, whole, strict=True):
        np.testing.assert_allclose(one.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_array_equal(one.labels, expected.labels)
        assert one.image_size == expected.image_size


class Spots:
    """Stands for the network: detects red spots that are at least 5 pixels wide in its input."""

    def __init__(self, detector):
        self._programs = Programs(detector.restored)
        self.resizes = (dataclasses.replace(detector.restored.detector.resize, mode="stretch"),)
        self.suppress = self._programs.suppress
        self.batches = []

    def candidates(self, views, batch_size):
        self.batches.append(len(views))
        boxes = np.zeros((batch_size, 1, 4, 4), np.float32)
        scores = np.full((batch_size, 1, 4), -np.inf, np.float32)
        for i, (view,) in enumerate(views):
            red = (view.image[..., 0] > 200) & (view.image[..., 1] < 80)
            if red.any(axis=0).sum() < 5:
                continue
            (y1, x1), (y2, x2) = np.argwhere(red).min(axis=0), np.argwhere(red).max(axis=0) + 1
            corners = np.array([x1, y1, x2, y2], np.float32)
            boxes[i, 0, 0] = (corners - np.tile(view.offset, 2)) / np.tile(view.scale, 2)
            scores[i, 0, 0] = 0.9 - 0.01 * i
        labels = np.zeros((batch_size, 1, 4), np.int32)
        return [ops.Candidates(*map(jnp.asarray, (boxes, scores, labels)))]


def spotted(box, height=600, width=900) -> np.ndarray:
    image = np.full((height, width, 3), 90, np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = (255, 0, 0)
    return image


def spots(detector, images, **changed):
    options = dict(tile=(64, 96), threshold=LOW, batch_size=4, threads=2)
    programs = Spots(detector)
    return programs, list(detect_sliced(programs, images, **options | changed))


@pytest.mark.parametrize("corner", [(5, 7), (450, 300), (889, 588), (70, 0), (63, 40), (88, 190)])
def test_a_small_object_is_found_once_in_pixels_of_the_picture(detector, corner):
    """Wherever it lies, also across the borders of tiles; the whole picture shows one pixel."""
    box = (*corner, corner[0] + 10, corner[1] + 9)
    _, (found,) = spots(detector, [spotted(box)])
    assert found.picture.size == (900, 600)
    np.testing.assert_allclose(found.boxes, [box], atol=0.5)
    _, (without,) = spots(detector, [spotted(box)], tile=(600, 900))
    assert len(without.boxes) == 0


def test_every_place_of_a_small_object(detector):
    images = [spotted((x, 50, x + 16, 60), 110, 200) for x in range(0, 184, 3)]
    _, found = spots(detector, images)
    assert [len(one.boxes) for one in found] == [1] * len(images)
    for x, one in zip(range(0, 184, 3), found, strict=True):
        np.testing.assert_allclose(one.boxes, [(x, 50, x + 16, 60)], atol=2.1)


def test_a_large_object_is_found_in_the_whole_picture_and_in_no_parts(detector):
    box = (100, 80, 700, 500)
    _, (found,) = spots(detector, [spotted(box)])
    np.testing.assert_allclose(found.boxes, [box], atol=9.4)  # pixels of the network input


def test_tiles_of_several_pictures_share_batches(detector):
    images = [spotted((5, 5, 15, 15), 64, 96), spotted((90, 3, 101, 14), 64, 120)]
    programs, found = spots(detector, images)
    assert programs.batches == [4]  # 1 + (1 + 2)
    np.testing.assert_allclose(found[0].boxes, [(5, 5, 15, 15)], atol=0.5)
    np.testing.assert_allclose(found[1].boxes, [(90, 3, 101, 14)], atol=0.5)


def test_an_object_that_two_tiles_see_is_suppressed_by_the_run(detector, monkeypatch):
    box, calls = (76, 20, 90, 34), []
    programs = Spots(detector)
    suppress = programs.suppress
    programs.suppress = lambda found, threshold: calls.append(found) or suppress(found, threshold)
    options = dict(tile=(64, 96), threshold=LOW, batch_size=4, threads=1)
    (found,) = detect_sliced(programs, [spotted(box, 64, 160)], **options)
    (candidates,) = calls
    assert (candidates.scores > 0).sum() == 3  # the whole picture and two tiles
    np.testing.assert_allclose(found.boxes, [box], atol=1)


def test_streams_and_single_images(detector):
    images = [photo(64, 96), photo(130, 200), photo(70, 300)]
    several = detector.predict(images, threshold=LOW, slices="auto", batch_size=3)
    stream = detector.predict(iter(images), threshold=LOW, slices="auto")
    assert not isinstance(stream, list)
    for one, other, image in zip(several, stream, images, strict=True):
        single = detector.predict(image, threshold=LOW, slices="auto")
        assert one.image_size == image.shape[:2] and len(one) == len(other) == len(single)
        np.testing.assert_allclose(one.boxes, single.boxes, atol=1e-3)
        np.testing.assert_allclose(other.scores, single.scores, atol=1e-5)
        assert (one.boxes <= np.tile(image.shape[1::-1], 2)).all()


def test_pictures_before_an_unreadable_one_come_first(detector, tmp_path):
    bad = tmp_path / "bad.jpg"
    Image.fromarray(photo(300, 400)).save(bad)
    bad.write_bytes(bad.read_bytes()[:3000])
    results = detector.predict(iter([photo(130, 200), bad, photo(64, 96)]), slices="auto")
    assert next(results).image_size == (130, 200)
    with pytest.raises(InputError, match="bad.jpg"):
        next(results)


def test_the_verb_slices(workdir, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, size in (("a", (64, 96)), ("c", (200, 300))):
        Image.fromarray(photo(*size)).save(folder / f"{name}.png")
    whole = (folder / "c.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    options = dict(output=str(tmp_path / "out"), threshold=LOW, pictures=False)
    batches = []

    def detect(*args, batch_size, **more):
        batches.append(batch_size)
        return detect_sliced(*args, batch_size=batch_size, **more)

    monkeypatch.setattr(run, "detect_sliced", detect)
    done = predict(workdir, [str(folder)], slices="auto", batch_size=16, **options)
    assert set(batches) == {16}  # of tiles: more than there are images
    assert (done.images, done.skipped) == (2, 1)
    detector = m2det_jax.load(workdir)
    a, b, c = done.lines()
    assert "skipped" in b
    for line in (a, c):
        expected = detector.predict(line["file_name"], threshold=LOW, slices="auto")
        boxes = np.array([one["bbox"] for one in line["detections"]]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, expected.boxes, atol=0.01)
    with pytest.raises(InputError, match=r"b\.png"):
        predict(workdir, [str(folder)], slices="auto", batch_size=8, strict=True, **options)
