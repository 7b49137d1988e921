import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from m2det_jax import convert
from m2det_jax.convert import (
    load_vgg16_safetensors,
    official_names,
    official_to_variables,
    with_backbone,
)
from m2det_jax.model import M2Det, init_variables, official_form, variable_shapes
from m2det_jax.model.vgg import VGG16

VGG_CHANNELS = [64, 64, 128, 128, 256, 256, 256] + [512] * 6
VGG_INDICES = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
VGG_BN_INDICES = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]


def _vgg_features(indices, *, norm=False):
    """Torchvision's tensors of `features`, random."""
    rng = np.random.default_rng(0)
    tensors, inputs = {}, 3
    for index, features in zip(indices, VGG_CHANNELS, strict=True):
        shapes = {f"{index}.weight": (features, inputs, 3, 3), f"{index}.bias": (features,)}
        if norm:
            kinds = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{index + 1}.{kind}": (features,) for kind in kinds}
            tensors[f"features.{index + 1}.num_batches_tracked"] = np.zeros((), np.int64)
        for name, shape in shapes.items():
            tensors[f"features.{name}"] = rng.standard_normal(shape, np.float32)
        inputs = features
    return tensors


def _code(o, i, y, x):
    """A value for each place in fc6, exact in float16."""
    return (7 * o + 3 * i + 11 * y + 5 * x) % 2039


def _axes(*sizes):
    return np.ogrid[tuple(slice(size) for size in sizes)]


@pytest.fixture
def thin_fc(monkeypatch):
    """Fully connected layers of 8 units, to keep the files small."""
    layers = tuple(
        (name, sources, (*shape[:2], 512 if name == "conv6" else 8, 8))
        for name, sources, shape in convert.FULLY_CONNECTED
    )
    monkeypatch.setattr(convert, "FULLY_CONNECTED", layers)


def test_torchvision_vgg16_loads_with_fully_connected_layers_thinned_out(tmp_path):
    """Full size; fc6 and fc7 hold their own coordinates, so each kept tap can be told."""
    tensors = {name: t.astype(np.float16) for name, t in _vgg_features(VGG_INDICES).items()}
    o, i, y, x = (axis.astype(np.int16) for axis in _axes(4096, 512, 7, 7))
    tensors["classifier.0.weight"] = _code(o, i, y, x).astype(np.float16).reshape(4096, -1)
    tensors["classifier.3.weight"] = _code(*_axes(4096, 4096), 0, 0).astype(np.float16)
    for layer in ("0", "3"):
        tensors[f"classifier.{layer}.bias"] = (np.arange(4096) % 2039).astype(np.float16)
    tensors["classifier.6.weight"] = np.zeros((1000, 8), np.float16)
    save_file(tensors, tmp_path / "vgg16.safetensors")
    loaded = load_vgg16_safetensors(tmp_path / "vgg16.safetensors")

    shapes = variable_shapes(VGG16(), (64, 64))
    assert loaded.keys() == {"params"}
    assert jax.tree.map(np.shape, loaded["params"]) == jax.tree.map(np.shape, shapes["params"])
    params = loaded["params"]
    y, x, i, o = _axes(3, 3, 512, 1024)
    np.testing.assert_array_equal(params["conv6"]["conv"]["kernel"], _code(4 * o, i, 3 * y, 3 * x))
    i, o = _axes(1024, 1024)
    np.testing.assert_array_equal(
        params["conv7"]["conv"]["kernel"][0, 0], _code(4 * o, 4 * i, 0, 0)
    )
    for name in ("conv6", "conv7"):
        np.testing.assert_array_equal(params[name]["conv"]["bias"], 4 * np.arange(1024) % 2039)
    for name, index in (("conv1_1", 0), ("conv4_3", 21), ("conv5_3", 28)):
        kernel = tensors[f"features.{index}.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(params[name]["conv"]["kernel"], kernel.astype(np.float32))


@pytest.mark.usefixtures("thin_fc")
def test_timm_names_and_convolutional_shapes_load_too(tmp_path):
    tensors = _vgg_features(VGG_INDICES)
    tensors["pre_logits.fc1.weight"] = np.ones((8, 512, 7, 7), np.float32)
    tensors["pre_logits.fc2.weight"] = np.arange(64, dtype=np.float32).reshape(8, 8, 1, 1)
    tensors |= {f"pre_logits.fc{i}.bias": np.arange(8, dtype=np.float32) for i in (1, 2)}
    tensors["head.fc.weight"] = np.zeros((1000, 8), np.float32)
    save_file(tensors, tmp_path / "timm.safetensors")
    params = load_vgg16_safetensors(tmp_path / "timm.safetensors")["params"]
    assert params["conv6"]["conv"]["kernel"].shape == (3, 3, 512, 2)
    np.testing.assert_array_equal(params["conv7"]["conv"]["kernel"][0, 0], [[0, 32], [4, 36]])
    np.testing.assert_array_equal(params["conv7"]["conv"]["bias"], [0, 4])


@pytest.mark.usefixtures("thin_fc")
def test_vgg16_bn_moves_biases_into_running_means(tmp_path):
    tensors = _vgg_features(VGG_BN_INDICES, norm=True)
    tensors["classifier.0.weight"] = np.ones((8, 512 * 49), np.float32)
    tensors["classifier.3.weight"] = np.ones((8, 8), np.float32)
    tensors |= {f"classifier.{i}.bias": np.ones(8, np.float32) for i in (0, 3)}
    path = tmp_path / "vgg16_bn.safetensors"
    save_file(tensors, path)
    loaded = load_vgg16_safetensors(path, norm=True)
    shapes = variable_shapes(VGG16(norm=True), (64, 64))
    assert jax.tree.structure(loaded) == jax.tree.structure(shapes)
    mean = loaded["batch_stats"]["conv3_2"]["norm"]["mean"]
    expected = tensors["features.18.running_mean"] - tensors["features.17.bias"]
    np.testing.assert_array_equal(mean, expected)
    norm = loaded["params"]["conv3_2"]["norm"]
    np.testing.assert_array_equal(norm["scale"], tensors["features.18.weight"])
    np.testing.assert_array_equal(norm["bias"], tensors["features.18.bias"])
    with pytest.raises(ValueError, match="backbone_norm=True"):
        load_vgg16_safetensors(path)


def test_vgg_errors_list_everything_at_once(tmp_path):
    tensors = _vgg_features(VGG_INDICES)
    del tensors["features.5.bias"]
    tensors["features.7.weight"] = np.zeros((128, 128, 5, 5), np.float32)
    tensors["features.99.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError) as error:
        load_vgg16_safetensors(tmp_path / "bad.safetensors")
    lines = str(error.value).splitlines()
    assert "bad.safetensors: 7 problems" in lines[0]
    found = "\n".join(lines[1:])
    for part in (
        "missing: features.5.bias (128,)",
        "wrong shape: features.7.weight is (128, 128, 5, 5), expected (128, 128, 3, 3)",
        "extra: features.99.weight (3,)",
        "missing: classifier.0.weight or pre_logits.fc1.weight (4096, 512, 7, 7)",
        "missing: classifier.3.bias or pre_logits.fc2.bias (4096,)",
    ):
        assert part in found


@pytest.mark.parametrize("content", [None, b"", b"no safetensors here"])
def test_unreadable_weights_name_the_file(tmp_path, content):
    path = tmp_path / "vgg.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"vgg\.safetensors: not a readable"):
        load_vgg16_safetensors(path)


TINY = dict(
    num_class_outputs=4,
    backbone_width=0.125,
    num_levels=3,
    num_scales=4,
    shallow_channels=8,
    deep_channels=8,
    reduced_channels=8,
    tum_width=8,
)


def _official_model(**fields):
    return M2Det(**(TINY | official_form() | {"tum_out": 8} | fields))


def _official_state_dict(model):
    """Random tensors in PyTorch's layout, copies of shared modules equal."""
    variables = init_variables(model, (128, 128), seed=1)
    rng = np.random.default_rng(0)
    state_dict = {}
    names = official_names(model)
    for _, tree in variables.items():
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            value = leaf + 0.1 * np.abs(rng.standard_normal(leaf.shape, np.float32))
            if leaf.ndim > 1:
                value = np.moveaxis(value, (-1, -2), (0, 1))
            if leaf.ndim == 2:
                value = value[..., None, None]
            path = "/".join(key.key for key in keys)
            state_dict |= {name: value for name in names[path]}
    state_dict["Norm.num_batches_tracked"] = np.zeros((), np.int64)
    return state_dict


def test_official_weights_land_where_the_table_says():
    model = _official_model()
    state_dict = _official_state_dict(model)
    variables = official_to_variables(state_dict, model)
    params, stats = variables["params"], variables["batch_stats"]
    tum = params["mlfpn"]["tum_2"]
    for ours, theirs in (
        (tum["encoder_4"]["conv"]["kernel"], "unet2.layers.2.conv.weight"),
        (tum["lateral_1"]["conv"]["kernel"], "unet2.latlayer.2.conv.weight"),
        (tum["smooth_3"]["conv"]["kernel"], "unet2.smooth.0.conv.weight"),
        (params["class_head"]["scale_4"]["kernel"], "conf.3.weight"),
        (params["backbone"]["conv7"]["conv"]["kernel"], "base.33.weight"),
        (
            params["mlfpn"]["sfam"]["squeeze_scales"]["kernel"][None, None],
            "sfam_module.fc1.0.weight",
        ),
    ):
        np.testing.assert_array_equal(ours, state_dict[theirs].transpose(2, 3, 1, 0), theirs)
    mean = stats["mlfpn"]["base_reduction"]["norm"]["mean"]
    np.testing.assert_array_equal(mean, state_dict["leach.2.bn.running_mean"])


def test_modules_of_its_own_get_copies_that_compute_the_same():
    shared = _official_model()
    own = _official_model(share_base_reduction=False, sfam_shared=False)
    state_dict = _official_state_dict(shared)
    image = np.random.default_rng(0).standard_normal((1, 96, 128, 3), np.float32)
    outputs = []
    for model in (shared, own):
        variables = official_to_variables(state_dict, model)
        apply = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False))
        outputs.append(apply(variables, image))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *outputs)


def test_official_errors_list_everything_at_once():
    model = _official_model()
    state_dict = _official_state_dict(model)
    del state_dict["reduce.conv.weight"]
    state_dict["loc.0.bias"] = np.zeros(7, np.float32)
    state_dict["leach.1.conv.weight"] = state_dict["leach.1.conv.weight"] + 1
    state_dict["unet9.toplayer.0.conv.weight"] = np.zeros((8, 8, 1, 1), np.float32)
    with pytest.raises(ValueError) as error:
        official_to_variables(state_dict, model)
    text = str(error.value)
    assert "4 problems" in text
    assert "missing: reduce.conv.weight (8, 64, 3, 3)" in text
    assert "wrong shape: loc.0.bias is (7,), expected (24,)" in text
    assert "not equal, but shared by the model: leach.0.conv.weight, leach.1.conv.weight" in text
    assert "extra: unet9.toplayer.0.conv.weight (8, 8, 1, 1)" in text


@pytest.mark.parametrize("fields", [{"tum_out": 16}, {"backbone_norm": True}])
def test_a_model_of_another_form_is_refused(fields):
    with pytest.raises(ValueError, match="tum_out|BatchNorm"):
        official_to_variables({}, _official_model(**fields))


def test_backbone_weights_replace_the_backbone_alone():
    model = _official_model()
    variables = init_variables(model, (128, 128), seed=0)
    backbone = init_variables(VGG16(width=0.125), (64, 64), seed=5)
    replaced = with_backbone(variables, backbone)
    assert jax.tree.structure(replaced) == jax.tree.structure(variables)
    assert replaced["params"]["backbone"] is backbone["params"]
    assert replaced["params"]["mlfpn"] is variables["params"]["mlfpn"]
    wide = init_variables(VGG16(width=0.25), (64, 64), seed=5)
    del wide["params"]["conv7"]
    with pytest.raises(ValueError) as error:
        with_backbone(variables, wide)
    text = str(error.value)
    assert "30 problems" in text
    assert "params/conv7/conv/bias: the model has (128,), the weights None" in text
