"""Backbones trained on ImageNet: files of torchvision, timm and SSD become our variables."""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from m2det_jax.model import variable_shapes
from m2det_jax.model.backbones import make_backbone
from m2det_jax.weights.files import read_tensors
from m2det_jax.weights.module_names import REDUCED_FC, tensor_names, vgg_indices
from m2det_jax.weights.preprocessing import CAFFE, IMAGENET, Preprocessing
from m2det_jax.weights.recognise import Recognised, recognise
from m2det_jax.weights.tensors import fill, raise_if_any

log = logging.getLogger("m2det_jax")

# The layer of the 1000 classes, which a detector does not use, and timm's head before it.
IMAGENET_CLASSIFIER = re.compile(r"(classifier(\.[16])?|fc|head\.fc)\.(weight|bias)")
# torchvision's published DenseNets have names that its code has changed since.
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
# Any size that all backbones accept: the parameters do not depend on it.
_IMAGE_SIZE = (64, 64)


@dataclasses.dataclass(frozen=True)
class BackboneWeights:
    """A trained backbone.

    Attributes:
        backbone, width, norm: as in config.model: backbone, backbone_width, backbone_norm.
        variables: {"params", "batch_stats"}, nested dicts of float32 numpy arrays.
        preprocessing: of the images that the network expects.
    """

    backbone: str
    width: float
    norm: bool
    variables: dict
    preprocessing: Preprocessing


def read_backbone(path: str | os.PathLike) -> BackboneWeights:
    """Returns the backbone in a `.safetensors` or `.pth` file of torchvision, timm or SSD.

    VGG's fully connected layers become conv6 and conv7 by taking every third of fc6's 7 x 7 taps
    and every fourth of both layers' 4096 units, as SSD does (arXiv 1512.02325, section 3.1). In a
    VGG with BatchNorm the convolutions' biases move into the running means, which is the same
    function. The ImageNet classifier is not used, and the log says so.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the file cannot be read or holds no known backbone, or if tensors are
            missing, extra, wrongly shaped or not finite (the message lists all).
    """
    tensors = read_tensors(path)
    kind = recognise(tensors, str(path))
    classifier = [name for name in tensors if IMAGENET_CLASSIFIER.fullmatch(name)]
    used = {_new_name(n): t for n, t in tensors.items() if n not in classifier}
    variables = _variables(kind, used, origin=f"{path}, read as {kind.backbone}")
    preprocessing, why = _preprocessing(kind, pathlib.Path(path))
    log.info("%s: %s of width %g%s; not used, the ImageNet classifier: %s", path, kind.backbone,
             kind.width, " with BatchNorm" if kind.norm else "",
             ", ".join(classifier) or "(none there)")  # fmt: skip
    log.info("%s: preprocessing %s (%s)", path, preprocessing.flags(), why)
    return BackboneWeights(kind.backbone, kind.width, kind.norm, variables, preprocessing)


def with_backbone(variables: Mapping, backbone: Mapping) -> dict:
    """Returns the `variables` of an M2Det with those of its backbone replaced by `backbone`.

    Raises:
        InputError: if one of the two lacks a tensor or its shape differs; the message lists all.
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


def _variables(kind: Recognised, tensors: Mapping[str, np.ndarray], origin: str) -> dict:
    model = make_backbone(kind.backbone, width=kind.width, norm=kind.norm)
    shapes = flatten_dict(variable_shapes(model, _IMAGE_SIZE), sep="/")
    wanted = {path: (_names(kind, path), leaf.shape) for path, leaf in shapes.items()}
    if not kind.backbone.startswith("vgg"):
        filled = fill(wanted, tensors, origin=origin)
        return {"batch_stats": {}} | unflatten_dict(filled, sep="/")
    if not kind.reduced:
        for path in [path for path in wanted if "/conv6/" in path or "/conv7/" in path]:
            wanted[path] = (wanted[path][0], _before_thinning(path, wanted[path][1]))
    biases = [f"params/{name}/conv/bias" for name in vgg_indices(kind.backbone, norm=kind.norm)]
    for path in biases if kind.norm else ():
        kernel = shapes[path.replace("bias", "kernel")].shape
        wanted[path] = (_names(kind, path), kernel[-1:])
    filled = fill(wanted, tensors, origin=origin)
    if not kind.reduced:
        _thin(filled)
    for path in biases if kind.norm else ():
        mean = path.replace("params", "batch_stats").replace("conv/bias", "norm/mean")
        filled[mean] = filled[mean] - filled.pop(path)
    return {"batch_stats": {}} | unflatten_dict(filled, sep="/")


def _names(kind: Recognised, path: str) -> tuple[str, ...]:
    """Returns the names that our `collection/module/.../leaf` has in a file of that kind."""
    ours = path.partition("/")[2]
    if not kind.reduced:
        return tensor_names(kind.backbone, ours, norm=kind.norm)
    block, _, leaf = ours.split("/")
    index = (vgg_indices("vgg16", norm=False) | REDUCED_FC)[block]
    return (f"{index}.{'weight' if leaf == 'kernel' else 'bias'}",)


def _before_thinning(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape, HWIO, of the fully connected layer that conv6 or conv7 is a part of."""
    if path.endswith("bias"):
        return (4 * shape[0],)
    *_, inputs, outputs = shape
    return (7, 7, inputs, 4 * outputs) if "/conv6/" in path else (1, 1, 4 * inputs, 4 * outputs)


def _thin(filled: dict[str, np.ndarray]) -> None:
    """Takes every third tap of fc6 and every fourth unit of fc6 and fc7, in place."""
    filled["params/conv6/conv/kernel"] = filled["params/conv6/conv/kernel"][::3, ::3, :, ::4]
    filled["params/conv7/conv/kernel"] = filled["params/conv7/conv/kernel"][:, :, ::4, ::4]
    for name in ("conv6", "conv7"):
        filled[f"params/{name}/conv/bias"] = filled[f"params/{name}/conv/bias"][::4]


def _new_name(name: str) -> str:
    match = _OLD_DENSENET.fullmatch(name)
    return f"{match[1]}{match[2]}" if match else name


def _preprocessing(kind: Recognised, path: pathlib.Path) -> tuple[Preprocessing, str]:
    """Returns the preprocessing of a file, and how it is known."""
    if kind.reduced:
        return CAFFE, "that of Caffe's VGG16"
    described = path.with_name("config.json")
    if described.is_file():
        try:
            settings = json.loads(described.read_text()).get("pretrained_cfg", {})
            mean, std = (_three_values(settings[key]) for key in ("mean", "std"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.info("%s: no timm configuration in it (%r)", described, error)
        else:
            return Preprocessing(mean, std, "rgb"), f"from {described}"
    if kind.backbone == "mobilenet_v1":
        grey = (127.5, 127.5, 127.5)
        return Preprocessing(grey, grey, "rgb"), "that of timm's MobileNetV1"
    return IMAGENET, "torchvision's, and that of nearly all weights of timm"


def _three_values(values: Iterable) -> tuple[float, float, float]:
    """Returns the values of three channels, 0..1, as 0..255; a ValueError for another number."""
    red, green, blue = (255 * float(value) for value in values)
    return red, green, blue
