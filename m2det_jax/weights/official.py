"""Official PyTorch M2Det: its state dict becomes our variables and back, by one table of names.

Modules that the official code shares between levels or scales are in the state dict once for each
of them. When it is read, these copies must be equal; when it is written, they are repeated.
"""

import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from m2det_jax.errors import InputError
from m2det_jax.model import M2Det, variable_shapes
from m2det_jax.weights.module_names import REDUCED_FC, tensor_names, vgg_indices
from m2det_jax.weights.recognise import resnet_name
from m2det_jax.weights.tensors import IGNORED_SUFFIX, TENSOR_NAMES, fill, to_torch

BACKBONES = ("vgg16", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# In the official ResNets, but not in their function.
IMAGENET_CLASSIFIER = ("base.fc.weight", "base.fc.bias")
IMAGENET_CLASSES = 1000
# Modules that levels or scales share.
_SHARED = re.compile(r"^(leach|sfam_module\.fc[12])\.\d+\.")


def official_fields(tensors: Mapping[str, np.ndarray], origin: str) -> dict:
    """Returns the fields of M2Det that an official state dict shows, with num_class_outputs.

    Raises:
        InputError: if `tensors` are not those of an official M2Det; the message starts with
            `origin`.
    """
    channels = ("reduce", "up_reduce", "leach.0", "unet1.toplayer.0")
    needed = (*(f"{name}.conv.weight" for name in channels), "loc.0.bias", "conf.0.bias")
    backbone = "vgg16" if "base.0.weight" in tensors else resnet_name(tensors, prefix="base.")
    missing = [name for name in needed if name not in tensors or not np.ndim(tensors[name])]
    if missing or backbone is None:
        missing += [] if backbone else ["base.0.weight or base.layer1.0.conv1.weight"]
        raise InputError(
            f"{origin}: not an official M2Det checkpoint, which would have {', '.join(missing)}; "
            "for a backbone alone use `m2det_jax.convert backbone`"
        )
    shallow, deep, reduced, tum, boxes, logits = (np.shape(tensors[name])[0] for name in needed)
    anchors = max(boxes // 4, 1)
    return dict(
        backbone=backbone,
        num_levels=_count(tensors, r"unet(\d+)\.toplayer\.0\.conv\.weight"),
        num_scales=_count(tensors, r"loc\.(\d+)\.weight"),
        shallow_channels=shallow,
        deep_channels=deep,
        reduced_channels=reduced,
        tum_width=tum,
        tum_out=tum,
        sfam=any(name.startswith("sfam_module.") for name in tensors),
        anchors_per_cell=anchors,
        num_class_outputs=logits // anchors,
    )


def official_to_variables(
    state_dict: Mapping[str, np.ndarray], model: M2Det, origin: str = "official weights"
) -> dict:
    """Returns the variables of `model` from a state dict of the authors' PyTorch code.

    The model has `official_form()` and any number of levels, scales and classes; `sfam` must be
    True if the weights have SFAM. A model may have separate modules where the official code shares
    one (`share_base_reduction=False`, `sfam_shared=False`). Then each gets a copy, and the result
    is the same. The official network takes images as `preprocessing.CAFFE` says. The ImageNet
    classifier, which the official ResNets still hold, is left out.

    Returns:
        {"params", "batch_stats"}, nested dicts of float32 numpy arrays.

    Raises:
        InputError: if the model has no official form, or if tensors are missing, extra or wrongly
            shaped, or copies differ; the message starts with `origin` and lists all.
    """
    _check(model)
    shapes = _shapes(model)
    sources = official_names(model)
    wanted = {path: (sources[path.partition("/")[2]], leaf.shape) for path, leaf in shapes.items()}
    used = {n: t for n, t in state_dict.items() if n not in unused_names(model)}
    filled = fill(wanted, used, origin=origin)
    return {"batch_stats": {}} | unflatten_dict(filled, sep="/")


def variables_to_official(
    variables: Mapping, model: M2Det, rest: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Returns the state dict that the authors' PyTorch code loads, in PyTorch's layout.

    Args:
        variables: {"params", "batch_stats"} of `model`.
        model: as in `official_to_variables`. Separate modules must be equal where the official
            code shares one: it has a single place for them.
        rest: tensors that the official network holds and ours does not, by name: counts of batches
            and the ResNets' ImageNet classifier. Those that are not given are zeros.

    Raises:
        InputError: if the model has no official form, or such modules differ.
    """
    _check(model)
    names, shapes, state_dict = official_names(model), _shapes(model), {}
    flat = flatten_dict(variables, sep="/")
    for path in shapes:
        value = to_torch(np.asarray(flat[path], np.float32))
        for name in names[path.partition("/")[2]]:
            matrix = name.startswith("sfam_module.") and value.ndim == 2
            placed = value[..., None, None] if matrix else value
            state_dict[name] = placed
            first = _SHARED.sub(r"\1.0.", name)
            if not np.array_equal(state_dict.get(first, placed), placed):
                raise InputError(
                    f"{path}: the official code has one module for {name} and {first}, but these "
                    "differ; train with share_base_reduction and sfam_shared"
                )
    for name in [name for name in state_dict if name.endswith("running_mean")]:
        state_dict[name.replace("running_mean", IGNORED_SUFFIX)] = np.zeros((), np.int64)
    features = flat["params/mlfpn/ffm1/deep/conv/kernel"].shape[2]
    for name in unused_names(model):
        shape = (IMAGENET_CLASSES, features)[: 2 if name.endswith("weight") else 1]
        state_dict[name] = np.zeros(shape, np.float32)
    return state_dict | {n: t for n, t in (rest or {}).items() if n in state_dict}


def rest_of(state_dict: Mapping[str, np.ndarray], model: M2Det) -> dict[str, np.ndarray]:
    """Returns the tensors of an official state dict that are not among our weights.

    They are the `rest` of `variables_to_official`.
    """
    unused = unused_names(model)
    return {n: t for n, t in state_dict.items() if n in unused or n.endswith(IGNORED_SUFFIX)}


def unused_names(model: M2Det) -> tuple[str, ...]:
    """Returns the names of tensors that the official network holds but does not use."""
    return IMAGENET_CLASSIFIER if model.backbone.startswith("resnet") else ()


def official_names(model: M2Det) -> dict[str, tuple[str, ...]]:
    """Returns our parameter path -> its names in an official state dict (several where shared)."""
    names: dict[str, tuple[str, ...]] = {}
    for torch_module, path in _official_modules(model):
        for ours, theirs in TENSOR_NAMES.items():
            tensor = f"{torch_module}.{theirs}"
            names[f"{path}/{ours}"] = (*names.get(f"{path}/{ours}", ()), tensor)
    for path in _shapes(model):
        _, *modules, leaf = path.split("/")
        if modules[0] == "backbone" and model.backbone.startswith("resnet"):
            ours = "/".join((*modules[1:], leaf))
            (theirs,) = tensor_names(model.backbone, ours)
            names[f"backbone/{ours}"] = (f"base.{theirs}",)
    return names


def _official_modules(model: M2Det) -> Iterator[tuple[str, str]]:
    """Yields (PyTorch module, our module) for every module that holds tensors."""
    if model.backbone == "vgg16":
        indices = vgg_indices("vgg16", norm=False) | REDUCED_FC
        yield from ((f"base.{index}", f"backbone/{name}/conv") for name, index in indices.items())
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
    """Yields those with a convolution and a BatchNorm; scales count from 1, the largest."""
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


def _shapes(model: M2Det) -> dict[str, jax.ShapeDtypeStruct]:
    side = 24 * 2**model.num_scales  # any valid size: the parameters do not depend on it
    return flatten_dict(variable_shapes(model, (side, side)), sep="/")


def _check(model: M2Det) -> None:
    if model.backbone not in BACKBONES or model.backbone_norm and model.backbone == "vgg16":
        raise InputError(
            f"official weights: there are none with the backbone {model.backbone!r}"
            f"{' and BatchNorm' if model.backbone_norm else ''}, but with {', '.join(BACKBONES)}"
        )
    if model.tum_out != model.tum_width:
        raise InputError(
            f"official weights: tum_out ({model.tum_out}) must equal tum_width "
            f"({model.tum_width}); see official_form()"
        )


def _count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)
