"""Weights of other frameworks: the official PyTorch M2Det, and VGG16 trained on ImageNet.

Needs numpy and safetensors, no PyTorch.
"""

import os
from collections.abc import Iterator, Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from m2det_jax.model import M2Det, variable_shapes
from m2det_jax.model.vgg import STAGES
from m2det_jax.torch_tensors import TENSOR_NAMES, fill, raise_if_any

# VGG's classifier of the 1000 ImageNet classes, of which a detector has no use.
IMAGENET_CLASSIFIER = ("classifier.6.", "head.fc.")
# Our name, torchvision's and timm's names, and the fully connected layer as a convolution, HWIO.
FULLY_CONNECTED = (
    ("conv6", ("classifier.0", "pre_logits.fc1"), (7, 7, 512, 4096)),
    ("conv7", ("classifier.3", "pre_logits.fc2"), (1, 1, 4096, 4096)),
)


def official_to_variables(state_dict: Mapping[str, np.ndarray], model: M2Det) -> dict:
    """Return the variables of `model` from a state dict of the authors' PyTorch code.

    Fits a model with `official_form()` and any number of levels, scales and classes; `sfam` says
    whether the weights have SFAM. Modules that the official code shares between levels or scales
    appear in the state dict once for each: the copies must be equal, and a model with modules of
    its own (`share_base_reduction=False`, `sfam_shared=False`) gets one copy each, which computes
    the same. The official network was trained on BGR images less their mean, not on ours.

    Returns:
        {"params", "batch_stats"}, nested dicts of float32 numpy arrays.

    Raises:
        ValueError: listing all missing, extra and wrongly shaped tensors and unequal copies.
    """
    if model.backbone != "vgg16" or model.backbone_norm:
        raise ValueError("official weights: only the vgg16 backbone without BatchNorm is known")
    if model.tum_out != model.tum_width:
        raise ValueError(
            f"official weights: tum_out ({model.tum_out}) must equal tum_width "
            f"({model.tum_width}); see official_form()"
        )
    side = 24 * 2**model.num_scales  # any legal size: the parameters do not depend on it
    shapes = flatten_dict(variable_shapes(model, (side, side)), sep="/")
    sources = official_names(model)
    wanted = {path: (sources[path.partition("/")[2]], leaf.shape) for path, leaf in shapes.items()}
    filled = fill(wanted, state_dict, origin="official weights")
    return {"batch_stats": {}} | unflatten_dict(filled, sep="/")


def official_names(model: M2Det) -> dict[str, tuple[str, ...]]:
    """Return our parameter path -> its names in an official state dict (several where shared)."""
    names: dict[str, tuple[str, ...]] = {}
    for torch_module, path in _official_modules(model):
        for ours, theirs in TENSOR_NAMES.items():
            tensor = f"{torch_module}.{theirs}"
            names[f"{path}/{ours}"] = (*names.get(f"{path}/{ours}", ()), tensor)
    return names


def _official_modules(model: M2Det) -> Iterator[tuple[str, str]]:
    """The rule table: (PyTorch module, our module) for every module that holds tensors."""
    indices = _vgg16_indices(norm=False)
    yield from ((f"base.{index}", f"backbone/{name}/conv") for name, index in indices.items())
    yield "base.31", "backbone/conv6/conv"
    yield "base.33", "backbone/conv7/conv"
    for torch_block, path in _official_blocks(model):
        yield f"{torch_block}.conv", f"{path}/conv"
        yield f"{torch_block}.bn", f"{path}/norm"
    yield "Norm", "mlfpn/largest_scale_norm"
    for scale in range(1, model.num_scales + 1):
        layer = "scales" if model.sfam_shared else f"scale_{scale}"
        yield f"sfam_module.fc1.{scale - 1}", f"mlfpn/sfam/squeeze_{layer}"
        yield f"sfam_module.fc2.{scale - 1}", f"mlfpn/sfam/excite_{layer}"
        yield f"loc.{scale - 1}", f"box_head/scale_{scale}"
        yield f"conf.{scale - 1}", f"class_head/scale_{scale}"


def _official_blocks(model: M2Det) -> Iterator[tuple[str, str]]:
    """The rule table's modules of convolution and BatchNorm; scales count from 1, the largest."""
    yield "reduce", "mlfpn/ffm1/shallow"
    yield "up_reduce", "mlfpn/ffm1/deep"
    smallest = model.num_scales
    for level in range(1, model.num_levels + 1):
        own = f"mlfpn/ffm2_{level}/reduce"
        yield f"leach.{level - 1}", "mlfpn/base_reduction" if model.share_base_reduction else own
        unet, tum = f"unet{level}", f"mlfpn/tum_{level}"
        yield f"{unet}.toplayer.0", f"{tum}/top"
        for i in range(smallest - 1):
            yield f"{unet}.layers.{i}", f"{tum}/encoder_{i + 2}"
            yield f"{unet}.latlayer.{i}", f"{tum}/lateral_{smallest - 1 - i}"
            yield f"{unet}.smooth.{i}", f"{tum}/smooth_{smallest - 1 - i}"


def load_vgg16_safetensors(path: str | os.PathLike, *, norm: bool = False) -> dict:
    """Return the VGG16 backbone's variables from ImageNet weights of torchvision or timm.

    The fully connected layers become conv6 and conv7 by taking every third of fc6's 7 x 7 taps and
    every fourth of both layers' 4096 units, as SSD does (arXiv 1512.02325, section 3.1). With
    `norm` the file is a vgg16_bn; its convolutions' biases move into the running means, which is
    the same function. The network must then get RGB images less ImageNet's mean, over its standard
    deviation.

    Args:
        path: a .safetensors file with the names `features.N.*` and `classifier.0.*`,
            `classifier.3.*` (torchvision) or `pre_logits.fc1.*`, `pre_logits.fc2.*` (timm).
        norm: the backbone has BatchNorm (`backbone_norm`).

    Returns:
        {"params"} and with `norm` also "batch_stats", of the backbone at width 1: nested dicts of
        float32 numpy arrays, for `with_backbone`.

    Raises:
        ValueError: if the file cannot be read, or listing all missing, extra and wrongly shaped
            tensors.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable .safetensors file ({error})") from error
    has_norm = any(name.endswith("running_mean") for name in tensors)
    if has_norm != norm:
        kinds = {True: "vgg16_bn (with BatchNorm)", False: "vgg16 (without BatchNorm)"}
        raise ValueError(
            f"{path}: the file is a {kinds[has_norm]}, the backbone a {kinds[norm]}; "
            f"set backbone_norm={has_norm} or give the other file"
        )
    tensors = {n: t for n, t in tensors.items() if not n.startswith(IMAGENET_CLASSIFIER)}
    filled = fill(_vgg16_wanted(norm), tensors, origin=str(path))
    filled["params/conv6/conv/kernel"] = filled["params/conv6/conv/kernel"][::3, ::3, :, ::4]
    filled["params/conv7/conv/kernel"] = filled["params/conv7/conv/kernel"][:, :, ::4, ::4]
    for name in ("conv6", "conv7"):
        filled[f"params/{name}/conv/bias"] = filled[f"params/{name}/conv/bias"][::4]
    if norm:
        for name in _vgg16_indices(norm=True):
            mean = f"batch_stats/{name}/norm/mean"
            filled[mean] = filled[mean] - filled.pop(f"params/{name}/conv/bias")
    return unflatten_dict(filled, sep="/")


def with_backbone(variables: Mapping, backbone: Mapping) -> dict:
    """Return `variables` of an M2Det with its backbone's replaced by `backbone`.

    Raises:
        ValueError: listing every tensor that one of the two lacks or that differs in shape.
    """
    replaced = dict(variables)
    problems = []
    for collection, loaded in backbone.items():
        old = flatten_dict(variables[collection].get("backbone", {}), sep="/")
        new = flatten_dict(loaded, sep="/")
        for name in sorted(old.keys() | new.keys()):
            ours, theirs = (tree[name].shape if name in tree else None for tree in (old, new))
            if ours != theirs:
                problems.append(f"{collection}/{name}: the model has {ours}, the weights {theirs}")
        if new:
            replaced[collection] = {**variables[collection], "backbone": loaded}
    raise_if_any("backbone weights do not fit the model", problems)
    return replaced


def _vgg16_indices(*, norm: bool) -> dict[str, int]:
    """Our convolution's name -> its place in torchvision's `features` (official: `base`)."""
    indices, index = {}, 0
    for stage, channels in enumerate(STAGES[16], start=1):
        for number in range(1, len(channels) + 1):
            indices[f"conv{stage}_{number}"] = index
            index += 3 if norm else 2  # convolution, (BatchNorm,) ReLU
        index += 1  # pooling
    return indices


def _vgg16_wanted(norm: bool) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Our path -> (names in the file, our shape before fc6 and fc7 are thinned out)."""
    wanted, inputs = {}, 3
    channels = [features for stage in STAGES[16] for features in stage]
    for (name, index), features in zip(_vgg16_indices(norm=norm).items(), channels, strict=True):
        source = f"features.{index}"
        wanted[f"params/{name}/conv/kernel"] = ((f"{source}.weight",), (3, 3, inputs, features))
        wanted[f"params/{name}/conv/bias"] = ((f"{source}.bias",), (features,))
        if norm:
            for ours, theirs in list(TENSOR_NAMES.items())[1:]:
                collection = "batch_stats" if ours in ("mean", "var") else "params"
                names = (f"features.{index + 1}.{theirs}",)
                wanted[f"{collection}/{name}/norm/{ours}"] = (names, (features,))
        inputs = features
    for name, sources, shape in FULLY_CONNECTED:
        wanted[f"params/{name}/conv/kernel"] = (tuple(f"{s}.weight" for s in sources), shape)
        wanted[f"params/{name}/conv/bias"] = (tuple(f"{s}.bias" for s in sources), shape[-1:])
    return wanted
