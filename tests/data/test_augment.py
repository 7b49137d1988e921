"""Every step moves boxes with their pixels, and none comes or goes without its rule.

Each object is one plain colour of its own, so that a picture alone tells where it is.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data.augment.canvas import Sample, boxes_in_plane, draw_canvas, open_canvas
from m2det_jax.data.augment.drawing import scale_to_fit
from m2det_jax.data.augment.joining import mix
from m2det_jax.data.augment.settings import STEP_NAMES, AugmentSettings
from m2det_jax.data.augment.steps import STEPS, augment, compose_maps, random_matrix
from m2det_jax.data.index import DetectionIndex

SIZES = ((200, 140), (120, 180), (160, 160), (240, 120), (150, 130), (180, 200))
GREY = (120, 120, 120)
# 26 colours far from each other and from grey, one an object.
COLOURS = [c for c in itertools.product((0, 115, 255), repeat=3) if c != (115, 115, 115)]
IMAGE_SIZE = (144, 208)
SEEDS = range(60)

PIPELINES = [
    ("expand",),
    ("crop",),
    ("flip",),
    ("scale_jitter",),
    ("affine",),
    ("mosaic",),
    ("expand", "crop", "flip"),
    ("scale_jitter", "flip", "crop"),
    ("affine", "crop", "expand"),
    ("mosaic", "affine", "flip"),
    ("mosaic", "crop", "scale_jitter", "flip"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Six grey images of different sizes with 4 objects each, 24 colours in all."""
    folder = tmp_path_factory.mktemp("markers")
    paths, boxes = [], []
    for i, (width, height) in enumerate(SIZES):
        pixels = np.full((height, width, 3), GREY, np.uint8)
        for j in range(4):
            w, h = width // 4 + 3 * j, height // 4 + 2 * i
            x, y = (j % 2) * width // 2 + 5 + i, (j // 2) * height // 2 + 3 + i
            pixels[y : y + h, x : x + w] = COLOURS[4 * i + j]
            boxes.append((x, y, x + w, y + h))
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return DetectionIndex(
        image_paths=tuple(paths),
        sizes=np.array(SIZES, np.int32),
        boxes=np.array(boxes, np.float32),
        labels=np.arange(24, dtype=np.int32),
        offsets=np.arange(0, 25, 4),
        class_names=tuple(f"class{i}" for i in range(24)),
    )


def settings_for(pipeline, mode="stretch", **options):
    always = {
        field.name: 1.0
        for field in dataclasses.fields(AugmentSettings)
        if field.name.endswith("_probability")
    }
    always |= {"flip_probability": 0.5, "jitter_scale": (0.5, 2.0), "expand_max": 2.0}
    always |= {"affine_rotation": 30.0, "affine_shear": 15.0, "affine_scale": (0.7, 1.4)}
    return AugmentSettings(IMAGE_SIZE, mode, fill=GREY, pipeline=pipeline, **always | options)


def pixels_of(image, row):
    """True where a picture shows the colour of an object."""
    return np.abs(image.astype(int) - COLOURS[row]).max(axis=2) < 40


def drawn_box(seen):
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def canvas_of(index, image_id, settings, rng):
    canvas = open_canvas(index, image_id)
    for name in settings.pipeline:
        canvas = STEPS[name](canvas, index, settings, rng)
    return canvas


def shows_an_image_twice(canvas):
    """Then its colours do not tell its objects apart."""
    return len({layer.path for layer in canvas.layers}) < len(canvas.layers)


def total_matrix(layer, canvas, settings):
    """The exact map of a layer to the unmirrored picture."""
    scale, margin = scale_to_fit(canvas.window, settings)
    matrix = layer.matrix * scale[:, None]
    matrix[:, 2] += margin - np.array(canvas.window[:2]) * scale
    return matrix


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("pipeline", PIPELINES, ids="-".join)
def test_boxes_are_where_their_objects_are(index, pipeline, mode):
    settings = settings_for(pipeline, mode)
    checked = 0
    for seed in SEEDS:
        canvas = canvas_of(index, seed % 6, settings, np.random.default_rng(seed))
        if shows_an_image_twice(canvas):
            continue
        image, boxes, rows = augment(index, seed % 6, settings, np.random.default_rng(seed))
        assert image.shape == (*IMAGE_SIZE, 3) and image.dtype == np.uint8
        assert boxes.dtype == np.float32 and len(boxes) == len(rows)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes <= np.tile(IMAGE_SIZE[::-1], 2)).all()
        for box, row in zip(boxes, rows, strict=True):
            seen = pixels_of(image, row)
            if min(box[2:] - box[:2]) < 8:
                continue
            drawn = drawn_box(seen)
            # A turned rectangle's corners are thinner than a pixel; enlarged edges are blurred.
            slack = 3.5 if "affine" in pipeline else 2.5 if "scale_jitter" in pipeline else 1.6
            assert np.abs(drawn - box).max() <= slack, (seed, row, drawn, box)
            checked += 1
    assert checked > 25


@pytest.mark.parametrize("pipeline", PIPELINES, ids="-".join)
def test_no_box_goes_or_stays_against_its_rule(index, pipeline):
    settings = settings_for(pipeline, min_visible=0.4)
    by_share = {"affine", "mosaic"} & set(pipeline)
    kept = gone = 0
    for seed in range(100):
        canvas = canvas_of(index, seed % 6, settings, np.random.default_rng(seed))
        if shows_an_image_twice(canvas):
            continue
        image, _, rows = draw_canvas(canvas, settings)
        image = image[:, ::-1] if canvas.mirror else image
        assert len(set(rows.tolist())) == len(rows)
        assert set(rows.tolist()) <= {r for layer in canvas.layers for r in layer.rows.tolist()}
        for layer in canvas.layers:
            matrix = total_matrix(layer, canvas, settings)
            for box, row in zip(layer.boxes, layer.rows, strict=True):
                if by_share:
                    area = np.prod(box[2:] - box[:2]) * abs(np.linalg.det(matrix[:, :2]))
                    # Pixels are cut at their centres; a thin border is mixed with the ground.
                    margin = (0.04 * area + 2.5 * np.sqrt(area) + 3) / area
                    excess = pixels_of(image, row).sum() / area - 0.4
                else:
                    center = matrix @ [*(box[:2] + box[2:]) / 2, 1]
                    sides = np.array(IMAGE_SIZE[::-1])
                    margin, excess = 1.0, np.minimum(center, sides - center).min()
                if abs(excess) > margin:
                    assert (excess > 0) == (row in rows), (seed, row, excess)
                    kept, gone = kept + (excess > 0), gone + (excess < 0)
    assert kept > 20
    assert gone > 5 or not {"crop", "affine", "mosaic", "scale_jitter"} & set(pipeline)


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_pasted_objects_come_whole_and_hide_no_more_than_they_may(index, mode):
    settings = settings_for(("paste",), mode, paste_max=4, paste_max_covered=0.2)
    pasted = covered = 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        image, boxes, rows = augment(index, seed % 6, settings, rng)
        own = index.offsets[seed % 6] + np.arange(4)
        assert rows[:4].tolist() == own.tolist() and 4 <= len(rows) <= 8
        pasted += len(rows) - 4
        for place, (box, row) in enumerate(zip(boxes, rows, strict=True)):
            if min(box[2:] - box[:2]) < 8 or (rows == row).sum() > 1:
                continue
            x1, y1, x2, y2 = np.rint(box).astype(int)
            share = pixels_of(image, row)[y1:y2, x1:x2].mean()
            border = 2 * (x2 - x1 + y2 - y1) / ((x2 - x1) * (y2 - y1))
            assert share >= (0.8 if place < len(rows) - 1 else 1.0) - border, (seed, row, share)
            covered += share < 0.95 - border
    assert pasted > 60 and covered > 3


@pytest.mark.parametrize("before", [(), ("crop",), ("scale_jitter",)])
def test_pasted_objects_lie_in_the_window_as_a_whole(index, before):
    settings = settings_for((*before, "paste"), paste_scale=(0.5, 6.0), paste_max_covered=1.0)
    pasted = 0
    for seed in SEEDS:
        canvas = canvas_of(index, seed % 6, settings, np.random.default_rng(seed))
        for layer in canvas.layers[1:]:
            x1, y1, x2, y2 = layer.boxes[0]
            low, high = (layer.matrix @ [x, y, 1] for x, y in ((x1, y1), (x2, y2)))
            assert (low >= np.array(canvas.window[:2]) - 1e-6).all()
            assert (high <= np.array(canvas.window[2:]) + 1e-6).all()
            pasted += 1
    assert pasted > 20


def test_objects_that_others_cover_are_not_taken(index):
    boxes = index.boxes.copy()
    boxes[1::4] = boxes[0::4] + (0, 0, 20, 20)  # around the first of each image
    crowded = dataclasses.replace(index, boxes=boxes)
    settings = settings_for(("paste",), paste_max_covered=0.3)
    taken = set()
    for seed in SEEDS:
        taken |= set(augment(crowded, 0, settings, np.random.default_rng(seed)).rows[4:] % 4)
    # The first is covered whole, the one around it by more than 0.3 of its area.
    assert taken == {2, 3}


def test_pasting_nothing_when_nothing_may_be_covered(index):
    # One object as large as its picture: every place would cover it.
    full = dataclasses.replace(index, boxes=index.boxes.copy()).subset([0])
    full.boxes[:] = (0, 0, *SIZES[0])
    settings = settings_for(("paste",), paste_max_covered=0.0)
    for seed in range(10):
        assert len(augment(full, 0, settings, np.random.default_rng(seed)).rows) == 4


def test_mixup_blends_two_samples_and_keeps_both_lists_of_boxes(index):
    settings = settings_for(("crop", "flip", "mixup"))
    alone = settings_for(("crop", "flip"))
    shares = []
    for seed in range(20):
        rng, other_rng = np.random.default_rng(seed), np.random.default_rng(seed)
        found = augment(index, seed % 6, settings, rng)
        first = augment(index, seed % 6, alone, other_rng)
        other_rng.random()
        share = other_rng.uniform(settings.mixup_min_share, 1 - settings.mixup_min_share)
        second = augment(index, int(other_rng.integers(6)), alone, other_rng)
        expected = first.image + share * (second.image.astype(float) - first.image)
        assert np.abs(found.image - expected).max() <= 1
        assert found.rows.tolist() == [*first.rows, *second.rows]
        assert np.array_equal(found.boxes, np.concatenate([first.boxes, second.boxes]))
        shares.append(share)
    assert 0.4 <= min(shares) < 0.45 and 0.55 < max(shares) <= 0.6


def test_mix_by_hand():
    black = Sample(np.zeros((2, 3, 3), np.uint8), np.zeros((1, 4), np.float32), np.array([7]))
    white = Sample(np.full((2, 3, 3), 200, np.uint8), np.ones((2, 4), np.float32), np.array([1, 2]))
    mixed = mix(black, white, 0.25)
    assert (mixed.image == 50).all() and mixed.rows.tolist() == [7, 1, 2]
    assert mixed.boxes[:, 0].tolist() == [0, 1, 1]


def test_a_mosaic_shows_four_images(index):
    settings = settings_for(("mosaic",))
    counts = set()
    for seed in SEEDS:
        canvas = canvas_of(index, 0, settings, np.random.default_rng(seed))
        assert len(canvas.layers) == 4 and canvas.layers[0].path == index.image_paths[0]
        corners = [total_matrix(layer, canvas, settings) for layer in canvas.layers]
        edges = []
        for layer, matrix in zip(canvas.layers, corners, strict=True):
            low, high = (matrix @ [*np.array(layer.source[k : k + 2]), 1] for k in (0, 2))
            edges.append((*low, *high))
        # All four meet in one point, which lies in the middle part, on whole pixels.
        x1, y1, x2, y2 = np.array(edges).T
        joint = x1.max(), y1.max()
        assert joint == pytest.approx((x2.min(), y2.min()))
        assert joint == pytest.approx(np.rint(joint))
        assert 0.24 <= joint[0] / 208 <= 0.76 and 0.24 <= joint[1] / 144 <= 0.76
        counts.add(len(draw_canvas(canvas, settings).rows))
    assert max(counts) > 8


def test_steps_after_a_mosaic_are_guided_by_what_it_shows(index):
    settings = settings_for(("mosaic",))
    for seed in SEEDS[:20]:
        canvas = canvas_of(index, 0, settings, np.random.default_rng(seed))
        # The plane of a mosaic is that of the network input, but for the rounding to pixels.
        assert np.allclose(boxes_in_plane(canvas), draw_canvas(canvas, settings).boxes, atol=1)


def test_an_affine_map_turns_about_the_centre():
    window, center = (10.0, 20.0, 210.0, 120.0), (110, 70)
    settings = settings_for(("affine",), affine_translation=0.0)
    moving = settings_for(("affine",), affine_translation=0.25)
    moves = []
    for seed in range(300):
        matrix = random_matrix(window, settings, np.random.default_rng(seed))
        assert np.allclose(matrix @ [*center, 1], center)
        moved = random_matrix(window, moving, np.random.default_rng(seed))
        assert np.array_equal(moved[:, :2], matrix[:, :2])
        moves.append(moved @ [*center, 1] - center)
        point = np.array([3.0, 4.0])
        inner = moved @ [*point, 1]
        assert np.allclose(compose_maps(matrix, moved) @ [*point, 1], matrix @ [*inner, 1])
    lengths = np.linalg.norm(moves, axis=1)
    assert 45 < lengths.max() <= np.hypot(50, 25) + 1e-6 and lengths.min() < 10
    turned = random_matrix(window, settings_for(
        ("affine",), affine_shear=0.0, affine_scale=(2.0, 2.0), affine_translation=0.0
    ), np.random.default_rng(0))  # fmt: skip
    assert np.allclose(turned[:, :2] @ turned[:, :2].T, 4 * np.eye(2))


def test_scale_jitter_puts_the_picture_anywhere(index):
    settings = settings_for(("scale_jitter",), jitter_scale=(0.5, 2.0))
    windows = np.array([
        canvas_of(index, 0, settings, np.random.default_rng(seed)).window for seed in range(300)
    ])  # fmt: skip
    width, height = SIZES[0]
    sides = windows[:, 2:] - windows[:, :2]
    factors = (width, height) / sides
    assert np.allclose(factors[:, 0], factors[:, 1])
    assert 0.5 <= factors.min() < 0.53 and 1.95 < factors.max() <= 2
    places = windows[:, :2] / ((width, height) - sides)
    assert (places >= -1e-9).all() and (places <= 1 + 1e-9).all()
    assert places.min() < 0.05 and places.max() > 0.95 and abs(places.mean() - 0.5) < 0.05


def test_an_affine_map_without_range_changes_nothing(index):
    still = dict(affine_rotation=0.0, affine_shear=0.0, affine_scale=(1.0, 1.0))
    settings = settings_for(("affine",), affine_translation=0.0, **still)
    plain = settings_for(())
    for image_id in range(6):
        found = augment(index, image_id, settings, np.random.default_rng(0))
        expected = augment(index, image_id, plain, np.random.default_rng(0))
        assert np.array_equal(found.rows, expected.rows)
        assert np.allclose(found.boxes, expected.boxes, atol=1)
        assert np.abs(found.image.astype(int) - expected.image).mean() < 0.5


def test_a_turned_image_that_gets_smaller_is_antialiased(tmp_path):
    stripes = np.zeros((600, 800, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the picture can show
    Image.fromarray(stripes).save(tmp_path / "a.png")
    index = DetectionIndex(
        (str(tmp_path / "a.png"),), np.array([[800, 600]], np.int32), np.zeros((0, 4), np.float32),
        np.zeros(0, np.int32), np.zeros(2, np.int64), ("a",),
    )  # fmt: skip
    settings = settings_for(("affine",), affine_scale=(1.2, 1.2), affine_translation=0.0)
    for seed in range(4):
        image, _, _ = augment(index, 0, settings, np.random.default_rng(seed))
        middle = image[50:90, 70:140].astype(int)
        assert np.abs(middle - 127).max() <= 12


def test_photometric_leaves_the_fill_and_what_comes_later(index):
    settings = dataclasses.replace(
        settings_for(("photometric", "expand")), brightness=80.0, fill=(7, 77, 7)
    )
    changed = 0
    for seed in range(12):
        canvas = canvas_of(index, 0, settings, np.random.default_rng(seed))
        image, _, _ = draw_canvas(canvas, settings)
        fill = (image == (7, 77, 7)).all(axis=2)
        assert fill.mean() > 0.02
        plain = draw_canvas(
            dataclasses.replace(
                canvas,
                layers=tuple(dataclasses.replace(layer, colors=None) for layer in canvas.layers),
            ),
            settings,
        ).image
        assert np.array_equal(fill, (plain == (7, 77, 7)).all(axis=2))
        changed += not np.array_equal(image, plain)
    assert changed > 8
    later = settings_for(("photometric", "paste"))
    layers = canvas_of(index, 0, later, np.random.default_rng(0)).layers
    assert layers[0].colors is not None and all(layer.colors is None for layer in layers[1:])


def test_a_probability_of_zero_is_the_plain_resize(index):
    never = {
        field.name: 0.0
        for field in dataclasses.fields(AugmentSettings)
        if field.name.endswith("_probability")
    }
    settings = settings_for(("mosaic", *sorted(STEPS.keys() - {"mosaic"}), "mixup"), **never)
    for image_id in range(6):
        found = augment(index, image_id, settings, np.random.default_rng(0))
        plain = augment(index, image_id, settings_for(()), np.random.default_rng(0))
        assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))


def test_every_known_step_is_there():
    assert {*STEPS, "mixup"} == set(STEP_NAMES)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"pipeline": ("crop", "cutout")}, ["'cutout'", "known are expand, crop", "paste"]),
        ({"pipeline": ("crop", "flip", "crop")}, ["'crop' is there twice"]),
        ({"pipeline": ("flip", "mosaic")}, ["'mosaic' must come first", "('flip', 'mosaic')"]),
        ({"pipeline": ("mixup", "flip")}, ["'mixup' must come last", "finished"]),
        ({"pipeline": "crop"}, ["a tuple of names", "'crop'"]),
        ({"mosaic_scale": (1.0, 0.5)}, ["mosaic_scale", "(smallest, largest)"]),
        ({"jitter_scale": (0.0, 1.0)}, ["jitter_scale", "above 0"]),
        ({"affine_scale": (1.0,)}, ["affine_scale"]),
        ({"affine_shear": 90.0}, ["affine_shear", "0..80"]),
        ({"mixup_min_share": 0.6}, ["mixup_min_share", "0..0.5"]),
        ({"mosaic_joint": 0.0}, ["mosaic_joint"]),
        ({"paste_max": 0}, ["paste_max"]),
        ({"min_visible": 1.5}, ["min_visible", "0..1"]),
    ],
)
def test_settings_are_checked(change, parts):
    with pytest.raises(ValueError) as caught:
        AugmentSettings(IMAGE_SIZE, **change)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("pipeline", "most"),
    [
        (("crop",), 5),
        (("mosaic",), 20),
        (("paste",), 8),
        (("mixup",), 10),
        (("mosaic", "paste", "mixup"), 46),
    ],
)
def test_the_most_objects_of_a_picture(pipeline, most):
    assert AugmentSettings(IMAGE_SIZE, pipeline=pipeline).most_objects(5) == most
    assert AugmentSettings(IMAGE_SIZE, pipeline=pipeline, enabled=False).most_objects(5) == 5
