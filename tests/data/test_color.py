"""Photometric distortion: what each part does, and that it stays within its bounds."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.augment.steps import color_matrix, compose_colors

NEUTRAL = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
COLORS = np.random.default_rng(0).integers(60, 180, (16, 16, 3)).astype(np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])


def distort(**change):
    picture = Image.fromarray(COLORS).convert("RGB", compose_colors(**NEUTRAL | change))
    return np.asarray(picture).astype(float)


def test_neutral_changes_nothing():
    assert np.abs(distort() - COLORS).max() <= 1


def test_brightness_and_contrast():
    assert np.abs(distort(brightness=20.0) - (COLORS + 20.0)).max() <= 1
    assert np.abs(distort(contrast=0.5) - COLORS * 0.5).max() <= 1


def test_saturation_keeps_luma_and_moves_towards_grey():
    luma = (COLORS @ LUMA)[..., None]
    assert np.abs(distort(saturation=0.0) - luma).max() <= 1
    assert np.abs(distort(saturation=0.5) - (luma + COLORS) / 2).max() <= 1.5


def test_hue_turns_colors_and_leaves_grey():
    matrix = np.reshape(compose_colors(**NEUTRAL | {"hue": 20.0}), (3, 4))
    assert np.allclose(matrix[:, :3].sum(axis=1), 1, atol=1e-4) and not matrix[:, 3].any()
    assert np.allclose(LUMA @ matrix[:, :3], LUMA, atol=1e-4)
    turned = matrix[:, :3] @ [0.6, 0.4, 0.4]
    moved = [colorsys.rgb_to_hsv(*color)[0] * 360 for color in (turned, [0.6, 0.4, 0.4])]
    assert 8 < abs((moved[0] - moved[1] + 180) % 360 - 180) < 40
    whole = np.reshape(compose_colors(**NEUTRAL | {"hue": 360.0}), (3, 4))
    assert np.allclose(whole[:, :3], np.eye(3), atol=1e-6)


def test_draws_follow_the_settings():
    settings = AugmentSettings((64, 64), saturation=0.0, hue=0.0)
    rng = np.random.default_rng(1)
    drawn = [color_matrix(settings, rng) for _ in range(400)]
    assert 5 <= drawn.count(None) <= 60  # 400 / 16 = 25 expected
    matrices = np.array([matrix for matrix in drawn if matrix is not None]).reshape(-1, 3, 4)
    contrast, shift = matrices[:, 0, 0], matrices[:, 0, 3]
    assert 0.5 <= contrast.min() < 0.6 and 1.4 < contrast.max() <= 1.5
    assert -32 <= shift.min() < -28 and 28 < shift.max() <= 32
    assert np.allclose(matrices[:, 0, 1], 0, atol=1e-6)


def test_off():
    settings = AugmentSettings((64, 64), photometric_probability=0.0)
    assert color_matrix(settings, np.random.default_rng(0)) is None


@pytest.mark.parametrize("name", ["contrast", "saturation", "photometric_probability"])
def test_out_of_range(name):
    with pytest.raises(ValueError, match=name):
        AugmentSettings((64, 64), **{name: 1.5})
