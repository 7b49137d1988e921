"""Transforms: pixels and boxes go through the same map, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m2det_jax.data.augment.canvas import map_boxes, mirror_boxes, open_canvas
from m2det_jax.data.augment.drawing import draw_image, map_image, map_window
from m2det_jax.data.augment.settings import AugmentSettings, ResizeSettings
from m2det_jax.data.augment.steps import augment, crop, expand
from m2det_jax.data.index import DetectionIndex

PLAIN = {"photometric_probability": 0.0}
FILL = (7, 77, 7)


def save_scene(path, size, boxes):
    """Draws filled red rectangles on blue; returns an index of that image."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 2] = 255
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = (255, 0, 0)
    Image.fromarray(pixels).save(path)
    return index_of(path, size, np.array(boxes, np.float32).reshape(-1, 4))


def index_of(path, size, boxes):
    """An index of one image whose boxes have the labels 0, 1, ..."""
    count = len(boxes)
    return DetectionIndex(
        image_paths=(str(path),),
        sizes=np.array([size], np.int32),
        boxes=boxes,
        labels=np.arange(count, dtype=np.int32),
        offsets=np.array([0, count], np.int64),
        class_names=tuple(f"class{i}" for i in range(count)),
    )


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize(("size", "image_size"), [((90, 50), (64, 112)), ((37, 200), (128, 96))])
def test_boxes_stay_on_their_pixels(tmp_path, size, image_size, mode):
    path = tmp_path / "scene.png"
    width, height = size
    corners = (width // 5, height // 4, width // 5 + width // 3, height // 4 + height // 2)
    index = save_scene(path, size, [corners])
    options = AugmentSettings(image_size, mode=mode, fill=FILL, **PLAIN)
    seen = mirrored = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        image, found, _ = augment(index, 0, options, rng)
        assert image.shape == (*image_size, 3) and image.dtype == np.uint8
        red = image[..., 0] >= 128
        if not len(found):
            continue
        x1, y1, x2, y2 = found[0]
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        if min(x2 - x1, y2 - y1) < 3:
            continue  # less than its antialiased edge
        drawn = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        assert np.abs(np.subtract(drawn, found[0])).max() <= 1, seed
        seen += 1
        mirrored += (x1 + x2) / 2 > image_size[1] / 2
    assert seen > 50 and 5 < mirrored < seen


def test_fill_surrounds_an_expanded_image(tmp_path):
    path = tmp_path / "scene.png"
    index = save_scene(path, (60, 40), [])
    options = AugmentSettings(
        (80, 80), fill=FILL, expand_probability=1.0, crop_probability=0.0, **PLAIN
    )
    shares = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image, _, _ = augment(index, 0, options, rng)
        filled = (image == FILL).all(axis=2)
        assert (filled | (image == (0, 0, 255)).all(axis=2)).all()
        shares.append(1 - filled.mean())
    # Expansion by up to 4 in both directions leaves a sixteenth.
    assert 1 / 18 < min(shares) < 0.1 and max(shares) > 0.6


def test_a_box_stays_if_its_center_does():
    options = ResizeSettings((100, 200))
    pixel_map = map_window((100, 100), (20, 30, 70, 80), options)
    boxes = np.array(
        [[0, 40, 42, 60], [0, 40, 38, 60], [60, 70, 80, 91], [60, 70, 79, 88], [20, 30, 70, 80]],
        np.float32,
    )
    mapped, labels = map_boxes(boxes, np.arange(5), pixel_map)
    assert labels.tolist() == [0, 3, 4]
    assert mapped.tolist() == [[0, 20, 88, 60], [160, 80, 200, 100], [0, 0, 200, 100]]


def test_mirroring():
    options = ResizeSettings((100, 200))
    boxes = np.array([[10, 20, 30, 60]], np.float32)
    plain, _ = map_boxes(boxes, np.zeros(1), map_image((100, 100), options))
    assert plain.tolist() == [[20, 20, 60, 60]]
    assert mirror_boxes(plain, 200).tolist() == [[140, 20, 180, 60]]


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    image_size=st.tuples(st.integers(8, 900), st.integers(8, 900)),
    mode=st.sampled_from(["stretch", "letterbox"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_pixel_maps_are_legal_and_keep_a_box(width, height, image_size, mode, seed):
    rng = np.random.default_rng(seed)
    options = AugmentSettings(image_size, mode=mode)
    x, y = np.sort(rng.uniform(0, width, (2, 3))), np.sort(rng.uniform(0, height, (2, 3)))
    boxes = np.stack([x[0], y[0], x[0] + (width - x[0]) / 2, y[0] + (height - y[0]) / 2], 1)
    index = index_of("absent.png", (width, height), boxes.astype(np.float32))
    canvas = crop(expand(open_canvas(index, 0), index, options, rng), index, options, rng)
    pixel_map = map_window((width, height), canvas.window, options)
    left, top, right, bottom = pixel_map.source
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    left, top, right, bottom = pixel_map.target
    assert 0 <= left < right <= image_size[1] and 0 <= top < bottom <= image_size[0]
    mapped, labels = map_boxes(boxes, np.arange(3), pixel_map)
    assert 1 <= len(mapped) == len(labels) <= 3
    assert (mapped >= 0).all() and (mapped <= np.tile(image_size[::-1], 2)).all()
    assert (mapped[:, 2:] >= mapped[:, :2]).all()


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    image_size=st.tuples(st.integers(32, 900), st.integers(32, 900)),
    mode=st.sampled_from(["stretch", "letterbox"]),
)
def test_evaluation_maps_back(size, image_size, mode):
    options = ResizeSettings(image_size, mode=mode)
    pixel_map = map_image(size, options)
    box = np.array([[0.1, 0.2, 0.7, 0.9]]) * np.tile(size, 2)
    mapped, _ = map_boxes(box, np.zeros(1), pixel_map)
    scale, offset = np.tile(pixel_map.scale, 2), np.tile(pixel_map.offset, 2)
    assert np.allclose((mapped - offset) / scale, box, rtol=1e-4, atol=1e-3 * max(size))
    width, height = (
        pixel_map.target[2] - pixel_map.target[0],
        pixel_map.target[3] - pixel_map.target[1],
    )
    if mode == "stretch":
        assert (height, width) == image_size
    else:
        assert height == image_size[0] or width == image_size[1]
        ideal = min(image_size[1] / size[0], image_size[0] / size[1])
        assert abs(width - size[0] * ideal) <= 1.5 and abs(height - size[1] * ideal) <= 1.5


def test_whole_image_is_pillow_resize(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (75, 130, 3), np.uint8)
    path = str(tmp_path / "a.png")
    Image.fromarray(noise).save(path)
    options = ResizeSettings((64, 96))
    image = draw_image(path, (130, 75), map_image((130, 75), options), options)
    expected = Image.fromarray(noise).resize((96, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(image, np.asarray(expected))


def test_reduced_decoding_is_hardly_seen(tmp_path):
    y, x = np.mgrid[:1200, :1600]
    waves = 128 + 100 * np.sin(x / 25) * np.cos(y / 40)
    path = str(tmp_path / "a.jpg")
    Image.fromarray(waves.astype(np.uint8)).convert("RGB").save(path, quality=95)
    options = ResizeSettings((150, 200))
    image = draw_image(path, (1600, 1200), map_image((1600, 1200), options), options)
    with Image.open(path) as file:
        expected = file.resize((200, 150), Image.Resampling.BILINEAR)
    assert np.abs(image.astype(int) - np.asarray(expected)).mean() < 1


def test_changed_file_is_named(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    options = ResizeSettings((64, 64))
    with pytest.raises(ValueError, match=r"a.png: it is not what it was .* got \(30, 20\)"):
        draw_image(str(tmp_path / "a.png"), (20, 30), map_image((20, 30), options), options)


def test_disabled_augmentation_is_the_plain_resize(tmp_path):
    path = tmp_path / "scene.png"
    index = save_scene(path, (60, 40), [(5, 5, 30, 20)])
    options = AugmentSettings((64, 80), enabled=False)
    drawn = [augment(index, 0, options, np.random.default_rng(seed)) for seed in range(3)]
    expected = draw_image(str(path), (60, 40), map_image((60, 40), options), options)
    assert all(np.array_equal(image, expected) for image, _, _ in drawn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (64,)}, "image_size"),
        ({"image_size": (64, 0)}, "image_size"),
        ({"image_size": (64, 64.5)}, "image_size"),
        ({"mode": "crop"}, 'mode: expected "stretch" or "letterbox"'),
        ({"flip_probability": 1.1}, "flip_probability"),
        ({"crop_probability": float("nan")}, "crop_probability"),
        ({"expand_max": 0.5}, "expand_max"),
        ({"crop_min_scale": 0.0}, "crop_min_scale"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        AugmentSettings(**{"image_size": (64, 64)} | change)
