import pytest

from m2det_jax.model import feature_map_sizes

OFFICIAL = {
    320: (40, 20, 10, 5, 3, 1),
    512: (64, 32, 16, 8, 4, 2),
    704: (88, 44, 22, 11, 6, 4),
    800: (100, 50, 25, 13, 7, 5),
}


@pytest.mark.parametrize("height", OFFICIAL)
@pytest.mark.parametrize("width", OFFICIAL)
def test_official_sizes_along_each_axis(height, width):
    expected = tuple(zip(OFFICIAL[height], OFFICIAL[width], strict=True))
    assert feature_map_sizes((height, width), 6) == expected


def test_sizes_round_up():
    assert feature_map_sizes((65, 250), 3) == ((9, 32), (5, 16), (3, 14))
    assert feature_map_sizes((64, 64), 2) == ((8, 8), (4, 4))


@pytest.mark.parametrize(("size", "largest"), [(64, 3), (96, 4), (320, 6), (512, 6), (544, 7)])
def test_the_largest_number_of_scales_is_named_and_legal(size, largest):
    assert min(feature_map_sizes((size, 2 * size), largest)[-1]) >= 1
    with pytest.raises(
        ValueError, match=f"{2 * size} x {size} .* {largest + 1} scales.* {largest};"
    ):
        feature_map_sizes((2 * size, size), largest + 1)


@pytest.mark.parametrize(("size", "num_scales"), [((320, 320), 1), ((0, 64), 3)])
def test_nonsense_is_refused(size, num_scales):
    with pytest.raises(ValueError, match="scales|positive"):
        feature_map_sizes(size, num_scales)
