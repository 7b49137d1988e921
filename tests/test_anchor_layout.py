"""Anchors by config: the official ones of every size, and RetinaNet's."""

import numpy as np
import pytest
import support

from m2det_jax.build import anchors_per_cell, build_detector, make_anchors
from m2det_jax.config import resolve
from m2det_jax.config.experiments import load_experiment

OFFICIAL = {
    "official_vgg320": 320,
    "official_vgg512": 512,
    "official_vgg704": 704,
    "official_vgg800": 800,
    "official_resnet101_320": 320,
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_experiments_have_exactly_the_official_anchors(reference_dir, name):
    reference, side = np.load(reference_dir / "official_ops.npz"), OFFICIAL[name]
    anchors = build_detector(resolve(load_experiment(name)), ("cat",)).anchors.astype(np.float64)
    low, high = anchors[:, :2], anchors[:, 2:]
    cxcywh = np.concatenate([(low + high) / 2, high - low], axis=1) / side
    expected = reference[f"anchors/{side}/boxes"]
    assert cxcywh.shape == expected.shape
    np.testing.assert_allclose(cxcywh, expected, atol=1e-6, rtol=0)


def retinanet(**overrides):
    return support.tiny_config(overrides={"anchors.kind": "retinanet"} | overrides)


def test_retinanet_anchors_of_a_config():
    # Maps of 8 x 12 and 4 x 6 cells on 64 x 96 pixels.
    overrides = {"anchors.aspect_ratios": (4.0,), "anchors.octave_scales": (1.0, 1.5)}
    config = retinanet(**overrides)
    assert anchors_per_cell(config) == 6
    anchors = make_anchors(config)
    assert anchors.shape == (6 * (8 * 12 + 4 * 6), 4)
    centre, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(centre[:6], [[4, 4]] * 6, atol=1e-5)
    np.testing.assert_allclose(centre[-1], [88, 56], atol=1e-5)
    # Half the short side: lying, square, standing, each at both octave scales.
    lying, square = np.array([64, 16]), np.array([32, 32])
    expected = [lying, 1.5 * lying, square, 1.5 * square, lying[::-1], 1.5 * lying[::-1]]
    np.testing.assert_allclose(size[:6], expected, rtol=1e-5)
    np.testing.assert_allclose(size[-6:], 2 * np.array(expected), rtol=1e-5)


def test_sizes_of_ones_own():
    anchors = make_anchors(retinanet(**{"anchors.sizes": (10.0, 50.0)}))
    assert np.isclose(anchors[6, 2] - anchors[6, 0], 10)
    with pytest.raises(ValueError, match="sizes: expected 2 values, got 3"):
        make_anchors(retinanet(**{"anchors.sizes": (10.0, 50.0, 60.0)}))


def test_steps_move_the_cells():
    anchors = make_anchors(support.tiny_config(overrides={"anchors.steps": (8.0, 10.0)}))
    per_cell, finest = 6, 6 * 8 * 12
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    np.testing.assert_allclose(centre[finest], [5, 5], atol=1e-5)
    np.testing.assert_allclose(centre[finest + per_cell], [15, 5], atol=1e-5)
    with pytest.raises(ValueError, match="steps: expected 2 values, got 1"):
        make_anchors(support.tiny_config(overrides={"anchors.steps": (8.0,)}))
