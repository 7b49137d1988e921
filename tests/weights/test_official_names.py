"""The official state dict in and out, on small networks; at full size see model/test_official."""

import jax
import numpy as np
import pytest
import torch_state_dicts as torch_form

from m2det_jax.model import M2Det, init_variables, official_form
from m2det_jax.weights.official import (
    official_fields,
    official_names,
    official_to_variables,
    rest_of,
    variables_to_official,
)

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


@pytest.mark.parametrize(
    "fields", [{"tum_out": 16}, {"backbone_norm": True}, {"backbone": "vgg19"}]
)
def test_a_model_of_another_form_is_refused(fields):
    model = _official_model(**fields)
    with pytest.raises(ValueError, match="tum_out|backbone"):
        official_to_variables({}, model)
    with pytest.raises(ValueError, match="tum_out|backbone"):
        variables_to_official({}, model)


def _resnet18(**kwargs):
    base = torch_form.resnet((2, 2, 2, 2), bottleneck=False, width=0.125)
    shapes = torch_form.official(backbone=base, base_channels=(16, 64), **kwargs)
    return torch_form.with_equal_copies(torch_form.drawn(shapes))


@pytest.mark.parametrize("sfam", [True, False])
def test_fields_are_read_off_and_everything_comes_back_bit_for_bit(sfam):
    state_dict = _resnet18(classes=4, levels=2, scales=3, planes=16, sfam=sfam)
    fields = official_fields(state_dict, "file")
    assert fields == dict(
        backbone="resnet18", num_levels=2, num_scales=3, shallow_channels=256, deep_channels=512,
        reduced_channels=8, tum_width=16, tum_out=16, sfam=sfam, anchors_per_cell=6,
        num_class_outputs=4,
    )  # fmt: skip
    model = M2Det(**official_form() | fields, backbone_width=0.125)
    variables = official_to_variables(state_dict, model)
    back = variables_to_official(variables, model, rest_of(state_dict, model))
    assert back.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert (back[name].shape, back[name].dtype) == (tensor.shape, tensor.dtype), name
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    without_rest = variables_to_official(variables, model)
    assert {n: t.shape for n, t in without_rest.items()} == {n: t.shape for n, t in back.items()}
    assert not without_rest["base.fc.weight"].any()
    assert without_rest["Norm.num_batches_tracked"] == 0


def test_modules_that_differ_where_the_official_code_shares_are_not_written():
    model = _official_model(share_base_reduction=False)
    variables = init_variables(model, (128, 128), seed=0)
    with pytest.raises(ValueError, match=r"ffm2_2/reduce/conv/kernel: .*leach\.1\.conv\.weight"):
        variables_to_official(variables, model)


@pytest.mark.parametrize("tensors", [{}, torch_form.resnet((3, 4, 6, 3), bottleneck=True)])
def test_other_files_are_no_official_checkpoint(tensors):
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in dict(tensors).items()}
    with pytest.raises(ValueError) as error:
        official_fields(tensors, "x.pth")
    text = str(error.value)
    assert text.startswith("x.pth: not an official M2Det checkpoint") and "\n" not in text
    assert "loc.0.bias" in text and "convert backbone" in text
