import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax.model.feature_maps import feature_map_sizes
from m2det_jax.model.initialize import fill_variables
from m2det_jax.model.mlfpn import MLFPN, SFAM, TUM, FFMv1, FFMv2

SMALL = dict(
    num_levels=3,
    num_scales=3,
    shallow_channels=4,
    deep_channels=6,
    reduced_channels=5,
    tum_width=8,
    tum_out=4,
)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _init(module, *args, **options):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **options))
    return fill_variables(dict(shapes), seed=0)


def test_ffmv1_repeats_each_deep_cell_over_two_by_two():
    shallow, deep = _normal(1, 5, 4, 3), _normal(1, 3, 2, 7)
    ffm = FFMv1(4, 6)
    variables = _init(ffm, shallow, deep, train=False)
    base = jax.jit(lambda s, d: ffm.apply(variables, s, d, train=False))(shallow, deep)
    assert base.shape == (1, 5, 4, 10)
    for i in range(5):
        for j in range(4):
            source = base[0, i // 2 * 2, j // 2 * 2, 4:]
            np.testing.assert_array_equal(base[0, i, j, 4:], source)
    moved = jax.jit(lambda d: ffm.apply(variables, shallow, d, train=False))(deep + 1)
    np.testing.assert_allclose(moved[..., :4], base[..., :4], rtol=1e-4, atol=1e-5)
    assert np.abs(moved[..., 4:] - base[..., 4:]).max() > 0.1


def test_ffmv2_appends_the_previous_map_after_the_reduced_base():
    base, previous = _normal(2, 5, 4, 9), _normal(2, 5, 4, 3, seed=1)
    ffm = FFMv2(6)
    variables = _init(ffm, base, previous, train=False)
    first = jax.jit(lambda: ffm.apply(variables, base, None, train=False))()
    fused = jax.jit(lambda: ffm.apply(variables, base, previous, train=False))()
    assert first.shape == (2, 5, 4, 6)
    np.testing.assert_allclose(fused, np.concatenate([first, previous], axis=-1), rtol=1e-5)


@pytest.mark.parametrize(("num_scales", "image_size"), [(2, (40, 64)), (4, (96, 130))])
def test_tum_maps_have_the_announced_sizes(num_scales, image_size):
    sizes = feature_map_sizes(image_size, num_scales)
    x = _normal(1, *sizes[0], 5)
    tum = TUM(num_scales, 8, 6)
    variables = _init(tum, x, train=False)
    maps = jax.eval_shape(lambda: tum.apply(variables, x, train=False))
    assert [m.shape for m in maps] == [(1, *size, 6) for size in sizes]


def test_tum_smooths_its_smallest_map_only_to_change_channels():
    x = _normal(1, 8, 8, 5)
    narrow = _init(TUM(3, 8, 6), x, train=False)["params"]
    equal = _init(TUM(3, 8, 8), x, train=False)["params"]
    assert narrow.keys() - equal.keys() == {"smooth_3"}
    blocks = {"encoder_2", "encoder_3", "top", "lateral_1", "lateral_2", "smooth_1", "smooth_2"}
    assert equal.keys() == blocks


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_tum_decoder_carries_the_top_down_to_every_scale(method):
    """With dead laterals each map is the upsampled top, smoothed by identities."""
    x = _normal(1, 9, 12, 5)
    tum = TUM(3, 4, 4, method)
    variables = _init(tum, x, train=False)
    identity = jnp.eye(4).reshape(1, 1, 4, 4)
    for scale in (1, 2):
        variables["params"][f"lateral_{scale}"]["conv"]["kernel"] *= 0
        variables["params"][f"smooth_{scale}"]["conv"]["kernel"] = identity
    maps = jax.jit(lambda: tum.apply(variables, x, train=False))()
    top = np.asarray(maps[2])
    assert top.max() > 0
    for features in maps[:2]:
        assert features.max() <= top.max() + 1e-4
        corners = np.ix_([0], [0, -1], [0, -1], range(4))
        np.testing.assert_allclose(np.asarray(features)[corners], top[corners], rtol=1e-3)


def test_sfam_scales_each_channel_by_its_own_gate():
    maps = [_normal(2, 4, 3, 32), _normal(2, 2, 2, 32, seed=1)]
    sfam = SFAM()
    variables = _init(sfam, maps)
    for name in ("excite_scale_1", "excite_scale_2"):
        layer = variables["params"][name]
        assert layer["kernel"].shape == (2, 32)
        layer["bias"] = jnp.linspace(-3.0, 3.0, 32)
        layer["kernel"] *= 0
    weighted = jax.jit(lambda: sfam.apply(variables, maps))()
    gate = 1 / (1 + np.exp(-np.linspace(-3.0, 3.0, 32)))
    for before, after in zip(maps, weighted, strict=True):
        np.testing.assert_allclose(after, before * gate, rtol=1e-5, atol=1e-6)


def test_sfam_gates_follow_the_mean_of_their_own_scale_and_image():
    maps = [_normal(2, 4, 3, 32), _normal(2, 2, 2, 32, seed=1)]
    sfam = SFAM()
    variables = _init(sfam, maps)
    apply = jax.jit(lambda maps: sfam.apply(variables, maps))
    weighted = apply(maps)
    flipped = apply([maps[0][:, ::-1], maps[1]])
    np.testing.assert_allclose(flipped[0][:, ::-1], weighted[0], rtol=1e-5, atol=1e-6)
    moved = apply([np.concatenate([maps[0][:1], maps[0][1:] + 3]), maps[1]])
    np.testing.assert_allclose(moved[0][0], weighted[0][0], rtol=1e-6)
    np.testing.assert_allclose(moved[1], weighted[1], rtol=1e-6)
    gates = weighted[0][1] / maps[0][1], moved[0][1] / (maps[0][1] + 3)
    assert np.abs(gates[0] - gates[1]).max() > 0.01
    assert np.ptp(gates[0], axis=(0, 1)).max() < 1e-3


def test_shared_sfam_has_one_pair_of_layers():
    maps = [_normal(2, 4, 3, 32), _normal(2, 2, 2, 32, seed=1)]
    shared, own = _init(SFAM(shared=True), maps), _init(SFAM(), maps)
    assert shared["params"].keys() == {"squeeze_scales", "excite_scales"}
    assert len(own["params"]) == 4
    sfam = SFAM(shared=True)
    both = jax.jit(lambda: sfam.apply(shared, [maps[0], maps[0]]))()
    np.testing.assert_allclose(both[0], both[1], rtol=1e-6)


def test_mlfpn_concatenates_levels_in_order_and_feeds_each_to_the_next():
    shallow, deep = _normal(1, 8, 9, 4), _normal(1, 4, 5, 4, seed=1)
    mlfpn = MLFPN(**SMALL, sfam=False)
    variables = _init(mlfpn, shallow, deep, train=False)
    apply = jax.jit(lambda v: mlfpn.apply(v, shallow, deep, train=False))
    maps = apply(variables)
    assert [m.shape for m in maps] == [(1, 8, 9, 12), (1, 4, 5, 12), (1, 2, 3, 12)]
    conv = variables["params"]["tum_2"]["lateral_1"]["conv"]
    conv["kernel"] = 3 * conv["kernel"]  # in place it might come before `maps` are computed
    moved = apply(variables)
    changes = [np.abs(a - b).max(axis=(0, 1, 2)) for a, b in zip(maps, moved, strict=True)]
    assert not changes[0][:4].any() and changes[0][4:].any()
    assert changes[0][8:].any(), "level 3 reads level 2's largest map"
    assert not changes[1][4:8].any(), "lateral_1 touches the largest map alone in its own level"


def test_shared_base_reduction_is_one_module_that_moves_its_averages_once():
    shallow, deep = _normal(2, 8, 8, 4), _normal(2, 4, 4, 4, seed=1)
    mlfpn = MLFPN(**SMALL, share_base_reduction=True, norm_momentum=0.75)
    variables = _init(mlfpn, shallow, deep, train=False)
    assert "base_reduction" in variables["params"]
    assert not any(name.startswith("ffm2") for name in variables["params"])
    train = jax.jit(
        lambda: mlfpn.apply(variables, shallow, deep, train=True, mutable=["batch_stats"])[1]
    )
    ffm1 = FFMv1(4, 6)
    base = ffm1.apply(
        {key: tree["ffm1"] for key, tree in variables.items()},
        shallow,
        deep,
        train=True,
        mutable=["batch_stats"],
    )[0]
    reduced = base @ variables["params"]["base_reduction"]["conv"]["kernel"][0, 0]
    mean = train()["batch_stats"]["base_reduction"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.25 * reduced.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)


def test_largest_scale_norm_touches_the_largest_map_alone():
    shallow, deep = _normal(1, 8, 8, 4), _normal(1, 4, 4, 4, seed=1)
    plain, normed = (MLFPN(**SMALL, largest_scale_norm=on) for on in (False, True))
    variables = _init(normed, shallow, deep, train=False)
    variables["params"]["largest_scale_norm"]["bias"] += 2.0
    after = jax.jit(lambda: normed.apply(variables, shallow, deep, train=False))()
    rest = {k: {n: t for n, t in v.items() if "largest" not in n} for k, v in variables.items()}
    before = jax.jit(lambda: plain.apply(rest, shallow, deep, train=False))()
    np.testing.assert_allclose(after[0], before[0] / np.sqrt(1 + 1e-5) + 2, rtol=1e-5)
    for a, b in zip(after[1:], before[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
