"""Anchors against the official ones and against values worked out by hand."""

import math

import numpy as np
import pytest

from m2det_jax import ops


@pytest.mark.parametrize("side", [320, 512, 704, 800])
def test_equal_to_the_official_anchors(reference_dir, side):
    reference = np.load(reference_dir / "official_ops.npz")
    cells = reference[f"anchors/{side}/feature_maps"]
    anchors = ops.ssd_anchors(
        [(n, n) for n in cells],
        (side, side),
        sizes=reference[f"anchors/{side}/size_pattern"] * side,
        steps=reference[f"anchors/{side}/steps"],
    )
    assert anchors.dtype == np.float32
    low, high = anchors[:, :2].astype(np.float64), anchors[:, 2:].astype(np.float64)
    cxcywh = np.concatenate([(low + high) / 2, high - low], axis=1) / side
    expected = reference[f"anchors/{side}/boxes"]
    assert cxcywh.shape == expected.shape
    np.testing.assert_allclose(cxcywh, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [320, 512, 704, 800])
def test_default_sizes_are_the_official_ones(reference_dir, side):
    pattern = np.load(reference_dir / "official_ops.npz")[f"anchors/{side}/size_pattern"]
    np.testing.assert_allclose(ops.ssd_sizes((side, side), 6), pattern * side)


def test_order_and_shapes_on_a_non_square_image():
    # One cell is 50 wide and 30 high; four columns in two rows.
    anchors = ops.ssd_anchors([(2, 4)], (60, 200), sizes=(16, 25), clip=False)
    assert anchors.shape == (2 * 4 * 6, 4)
    centre, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(centre[:6], [[25, 15]] * 6, rtol=1e-5)
    np.testing.assert_allclose(centre[6:12], [[75, 15]] * 6, rtol=1e-5)
    np.testing.assert_allclose(centre[-6:], [[175, 45]] * 6, rtol=1e-5)
    two, three = math.sqrt(2), math.sqrt(3)
    shapes = [[16, 16], [20, 20], [16 * two, 16 / two], [16 / two, 16 * two]]
    shapes += [[16 * three, 16 / three], [16 / three, 16 * three]]
    np.testing.assert_allclose(size[:6], shapes, rtol=1e-5)
    np.testing.assert_allclose(size[-6:], shapes, rtol=1e-5)


def test_scales_follow_each_other_and_use_their_own_sizes():
    anchors = ops.ssd_anchors(
        [(3, 2), (1, 1)], (96, 64), sizes=(10, 40, 90), aspect_ratios=(2,), clip=False
    )
    assert anchors.shape == ((6 + 1) * 4, 4)
    assert np.isclose(anchors[0, 2] - anchors[0, 0], 10)
    np.testing.assert_allclose(anchors[24], [32 - 20, 48 - 20, 32 + 20, 48 + 20])
    np.testing.assert_allclose(anchors[25, 2] - anchors[25, 0], 60)


def test_clip_holds_centres_in_the_image_and_sizes_at_its_size():
    # Step 70 on 100 px puts the second centre at 105.
    options = dict(sizes=(90, 300), steps=(70,), aspect_ratios=(3,))
    free = ops.ssd_anchors([(1, 2)], (80, 100), clip=False, **options)
    held = ops.ssd_anchors([(1, 2)], (80, 100), **options)
    assert np.isclose((free[4, 0] + free[4, 2]) / 2, 105)
    assert np.isclose((held[4, 0] + held[4, 2]) / 2, 100)
    assert (free[:, 2] - free[:, 0]).max() > 100
    assert (held[:, 2] - held[:, 0]).max() <= 100
    assert (held[:, 3] - held[:, 1]).max() <= 80


def test_default_steps_are_exact_along_both_axes():
    anchors = ops.ssd_anchors([(3, 7)], (100, 50), sizes=(8, 9), aspect_ratios=(2,))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    expected = ((np.arange(7) + 0.5) * 50 / 7).round(3)
    np.testing.assert_allclose(np.unique(centres[:, 0].round(3)), expected)
    np.testing.assert_allclose(np.unique(centres[:, 1].round(3)), [16.667, 50, 83.333])


@pytest.mark.parametrize("num_scales", range(1, 8))
@pytest.mark.parametrize("image_size", [(64, 64), (300, 500), (1100, 800)])
def test_default_sizes_rise_with_the_short_side(image_size, num_scales):
    sizes = ops.ssd_sizes(image_size, num_scales)
    assert len(sizes) == num_scales + 1
    assert (np.diff(sizes) > 0).all()
    assert np.isclose(sizes[-1], 1.05 * min(image_size))
    assert 0.04 * min(image_size) <= sizes[0] + 1e-9 and sizes[0] <= 0.08 * min(image_size) + 1e-9


def test_retinanet_anchors_by_hand():
    anchors = ops.retinanet_anchors([(2, 1), (1, 1)], (64, 48), sizes=(32, 100))
    assert anchors.shape == (27, 4) and anchors.dtype == np.float32
    size = anchors[:, 2:] - anchors[:, :2]
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    np.testing.assert_allclose(centre[[0, 9, 18]], [[24, 16], [24, 48], [24, 32]])
    octave = 32 * 2.0 ** (np.arange(3) / 3)
    np.testing.assert_allclose(size[3:6], np.stack([octave, octave], axis=1), rtol=1e-5)
    ratios = np.tile(np.repeat([0.5, 1, 2], 3), 3)
    np.testing.assert_allclose(size[:, 1] / size[:, 0], ratios, rtol=1e-5)
    np.testing.assert_allclose(size.prod(axis=1)[:3], octave**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(sizes=(10,)), "sizes: expected 2 values, got 1"),
        (dict(sizes=(10, 0)), "sizes: expected finite values above 0"),
        (dict(sizes=(10, 20), steps=(8, 16)), "steps: expected 1 values, got 2"),
        (dict(sizes=(10, 20), aspect_ratios=(-1,)), "aspect_ratios: expected finite values"),
    ],
)
def test_errors_name_the_argument(options, said):
    with pytest.raises(ValueError, match=said):
        ops.ssd_anchors([(2, 2)], (32, 32), **options)


def test_errors_of_sizes_that_do_not_exist():
    with pytest.raises(ValueError, match="feature_maps"):
        ops.ssd_anchors([], (32, 32), sizes=(10,))
    with pytest.raises(ValueError, match="image_size"):
        ops.ssd_sizes((0, 32), 6)
    with pytest.raises(ValueError, match="num_scales"):
        ops.ssd_sizes((32, 32), 0)
    with pytest.raises(ValueError, match="sizes"):
        ops.retinanet_anchors([(2, 2)], (32, 32), sizes=(1, 2))


def test_default_retinanet_sizes_are_halves_of_the_short_side():
    assert ops.retinanet_sizes((320, 500), 6) == (10, 20, 40, 80, 160, 320)
    assert ops.retinanet_sizes((512, 512), 3) == (128, 256, 512)
    with pytest.raises(ValueError, match="num_scales: expected at least 1, got 0"):
        ops.retinanet_sizes((320, 320), 0)
