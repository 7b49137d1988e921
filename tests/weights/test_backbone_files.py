"""Backbones of torchvision, timm and SSD: every tensor at its place, and what is refused."""

import json
import logging
import re

import jax
import numpy as np
import pytest
import torch_state_dicts as torch_form
from safetensors.numpy import save_file

from m2det_jax.model import M2Det, init_variables, variable_shapes
from m2det_jax.model.backbones import make_backbone
from m2det_jax.model.vgg import VGG16
from m2det_jax.weights.imagenet import read_backbone, with_backbone
from m2det_jax.weights.preprocessing import CAFFE, IMAGENET


def saved(tmp_path, tensors):
    path = tmp_path / "weights.safetensors"
    save_file(dict(tensors), path)
    return path


def at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def _code(o, i, y, x):
    """A value for each place in fc6, exact in float16."""
    return (7 * o + 3 * i + 11 * y + 5 * x) % 2039


def _axes(*sizes):
    return np.ogrid[tuple(slice(size) for size in sizes)]


def test_fully_connected_layers_are_thinned_out_as_ssd_does(tmp_path):
    """Full size; fc6 and fc7 hold their own coordinates, so each kept tap can be told."""
    shapes = torch_form.vgg()
    features = {n: s for n, s in shapes.items() if n.startswith("features")}
    tensors = {n: t.astype(np.float16) for n, t in torch_form.drawn(features).items()}
    o, i, y, x = (axis.astype(np.int16) for axis in _axes(4096, 512, 7, 7))
    tensors["classifier.0.weight"] = _code(o, i, y, x).astype(np.float16).reshape(4096, -1)
    tensors["classifier.3.weight"] = _code(*_axes(4096, 4096), 0, 0).astype(np.float16)
    for layer in ("0", "3"):
        tensors[f"classifier.{layer}.bias"] = (np.arange(4096) % 2039).astype(np.float16)
    tensors["classifier.6.weight"] = np.zeros((1000, 8), np.float16)
    loaded = read_backbone(saved(tmp_path, tensors))

    assert (loaded.backbone, loaded.width, loaded.norm) == ("vgg16", 1.0, False)
    params = loaded.variables["params"]
    shapes = variable_shapes(VGG16(), (64, 64))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes["params"])
    y, x, i, o = _axes(3, 3, 512, 1024)
    np.testing.assert_array_equal(params["conv6"]["conv"]["kernel"], _code(4 * o, i, 3 * y, 3 * x))
    i, o = _axes(1024, 1024)
    np.testing.assert_array_equal(
        params["conv7"]["conv"]["kernel"][0, 0], _code(4 * o, 4 * i, 0, 0)
    )
    for name in ("conv6", "conv7"):
        np.testing.assert_array_equal(params[name]["conv"]["bias"], 4 * np.arange(1024) % 2039)


THIN = 0.125
RESNET50 = dict(blocks=(3, 4, 6, 3), bottleneck=True)
# As in the files that torchvision publishes: `norm.1` for `norm1`.
PUBLISHED_DENSENET = {
    re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): shape
    for name, shape in torch_form.densenet(growth=8).items()
}
# Shapes of a file, its backbone, and some of our tensors with their names there.
FILES = {
    "vgg16": (
        torch_form.vgg(width=THIN),
        ("vgg16", THIN, False),
        {"conv4_3/conv/kernel": "features.21.weight", "conv5_3/conv/bias": "features.28.bias"},
    ),
    "vgg19, timm": (
        torch_form.vgg(torch_form.VGG19_FEATURES, width=THIN, timm=True),
        ("vgg19", THIN, False),
        {"conv3_4/conv/kernel": "features.16.weight", "conv5_4/conv/bias": "features.34.bias"},
    ),
    "vgg16 with BatchNorm": (
        torch_form.vgg(width=THIN, batch_norm=True),
        ("vgg16", THIN, True),
        {"conv4_3/conv/kernel": "features.30.weight", "conv5_3/norm/bias": "features.41.bias"},
    ),
    "SSD's": (
        torch_form.reduced_vgg16(THIN),
        ("vgg16", THIN, False),
        {"conv1_1/conv/kernel": "0.weight", "conv6/conv/kernel": "31.weight",
         "conv7/conv/bias": "33.bias"},
    ),
    "resnet18": (
        torch_form.resnet((2, 2, 2, 2), bottleneck=False, width=THIN),
        ("resnet18", THIN, False),
        {"stem/norm/mean": "bn1.running_mean", "layer3_2/conv1/norm/scale": "layer3.1.bn1.weight"},
    ),
    "resnet50": (
        torch_form.resnet(**RESNET50, width=THIN),
        ("resnet50", THIN, False),
        {"layer1_1/shortcut/conv/kernel": "layer1.0.downsample.0.weight",
         "layer3_6/conv3/norm/var": "layer3.5.bn3.running_var"},
    ),
    "mobilenet_v2": (
        torch_form.mobilenet_v2(),
        ("mobilenet_v2", 1.0, False),
        {"features_1/project/conv/kernel": "features.1.conv.1.weight",
         "features_5/depthwise/conv/kernel": "features.5.conv.1.0.weight",
         "features_18/norm/var": "features.18.1.running_var"},
    ),
    "mobilenet_v2, timm": (
        torch_form.mobilenet_v2(timm=True),
        ("mobilenet_v2", 1.0, False),
        {"features_1/project/conv/kernel": "blocks.0.0.conv_pw.weight",
         "features_5/depthwise/norm/mean": "blocks.2.1.bn2.running_mean",
         "features_17/project/conv/kernel": "blocks.6.0.conv_pwl.weight"},
    ),
    "densenet121": (
        torch_form.densenet(growth=8),
        ("densenet121", 0.25, False),
        {"denseblock2_layer12/conv2/norm/var":
             "features.denseblock2.denselayer12.norm2.running_var",
         "transition3/conv/kernel": "features.transition3.conv.weight",
         "norm5/scale": "features.norm5.weight"},
    ),
    "densenet121, old names": (
        PUBLISHED_DENSENET,
        ("densenet121", 0.25, False),
        {"denseblock2_layer12/conv2/norm/var":
             "features.denseblock2.denselayer12.norm.2.running_var"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_every_tensor_of_a_file_lands_at_its_place(tmp_path, file):
    shapes, (backbone, width, norm), places = FILES[file]
    tensors = torch_form.drawn(shapes)
    loaded = read_backbone(saved(tmp_path, tensors))
    assert (loaded.backbone, loaded.width, loaded.norm) == (backbone, width, norm)
    expected = variable_shapes(make_backbone(backbone, width=width, norm=norm), (64, 64))
    assert jax.tree.map(np.shape, loaded.variables) == jax.tree.map(np.shape, expected)
    for ours, theirs in places.items():
        collection = "batch_stats" if ours.endswith(("mean", "var")) else "params"
        tensor = tensors[theirs]
        if tensor.ndim == 4:
            tensor = tensor.transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(at(loaded.variables[collection], ours), tensor, err_msg=ours)
    assert loaded.preprocessing == (CAFFE if file == "SSD's" else IMAGENET)


def test_biases_before_a_batch_norm_move_into_its_mean(tmp_path):
    tensors = torch_form.drawn(torch_form.vgg(width=THIN, batch_norm=True))
    stats = read_backbone(saved(tmp_path, tensors)).variables["batch_stats"]
    expected = tensors["features.18.running_mean"] - tensors["features.17.bias"]
    np.testing.assert_array_equal(stats["conv3_2"]["norm"]["mean"], expected)


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path):
    tensors = torch_form.drawn(torch_form.resnet(**RESNET50, width=THIN))
    del tensors["layer1.0.bn1.bias"]
    tensors["layer2.0.conv2.weight"] = np.zeros((16, 16, 5, 5), np.float32)
    tensors["layer3.5.se.weight"] = np.zeros(3, np.float32)
    tensors["layer4.1.bn3.weight"] = tensors["layer4.1.bn3.weight"] * np.float32(np.nan)
    tensors["bn1.running_var"] = -tensors["bn1.running_var"]
    path = saved(tmp_path, tensors)
    with pytest.raises(ValueError) as error:
        read_backbone(path)
    first, *rest = str(error.value).splitlines()
    assert first == f"{path}, read as resnet50: 5 problems"
    assert sorted(rest) == [
        "extra: layer3.5.se.weight (3,)",
        "missing: layer1.0.bn1.bias (8,), for params/layer1_1/conv1/norm/bias",
        "negative variance: bn1.running_var",
        "not finite: layer4.1.bn3.weight",
        "wrong shape: layer2.0.conv2.weight is (16, 16, 5, 5), expected (16, 16, 3, 3)",
    ]


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["conv_stem.weight", "blocks.0.0.se.fc.weight"], "conv_stem.weight"),
        (["base.0.weight", "unet1.layers.0.conv.weight"], "convert official"),
        ([], "none"),
    ],
)
def test_an_unknown_network_is_refused_in_one_line(tmp_path, names, hint):
    path = saved(tmp_path, {name: np.zeros(3, np.float32) for name in names})
    with pytest.raises(ValueError, match=hint) as error:
        read_backbone(path)
    assert str(error.value).startswith(f"{path}: not the weights of a backbone")
    assert "\n" not in str(error.value)


def test_the_log_says_what_is_not_used_and_what_the_images_must_be(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("m2det_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "m2det_jax")
    path = saved(tmp_path, torch_form.drawn(torch_form.vgg(width=THIN)))
    read_backbone(path)
    assert (
        "not used, the ImageNet classifier: classifier.6.bias, classifier.6.weight" in caplog.text
    )
    assert "--config.data.channel_order=rgb" in caplog.text


def test_timms_configuration_beside_the_file_gives_the_preprocessing(tmp_path):
    path = saved(
        tmp_path, torch_form.drawn(torch_form.resnet((2,) * 4, bottleneck=False, width=THIN))
    )
    settings = {"pretrained_cfg": {"mean": [0.5, 0.4, 0.2], "std": [0.5, 0.2, 0.1]}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    found = read_backbone(path).preprocessing
    np.testing.assert_allclose((found.mean, found.std), [(127.5, 102, 51), (127.5, 51, 25.5)])
    assert found.channel_order == "rgb"


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.4, 0.2, 0.1]])
def test_a_configuration_of_other_than_three_channels_is_not_used(tmp_path, values):
    path = saved(
        tmp_path, torch_form.drawn(torch_form.resnet((2,) * 4, bottleneck=False, width=THIN))
    )
    settings = {"pretrained_cfg": {"mean": values, "std": values}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_backbone(path).preprocessing == IMAGENET


def test_backbone_weights_replace_the_backbone_alone():
    fields = dict(backbone_width=THIN, num_levels=1, num_scales=2, tum_width=8, tum_out=8)
    variables = init_variables(M2Det(num_class_outputs=2, **fields), (64, 64), seed=0)
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
