"""Backbones recognised by the names and shapes of the tensors in a file."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from m2det_jax.errors import InputError

# Numbers of blocks in the stages, whether they are bottlenecks -> name.
_RESNET_BLOCKS: dict[tuple[int, ...], dict[bool, str]] = {
    (2, 2, 2, 2): {False: "resnet18"},
    (3, 4, 6, 3): {False: "resnet34", True: "resnet50"},
    (3, 4, 23, 3): {True: "resnet101"},
    (3, 8, 36, 3): {True: "resnet152"},
}
_DENSENET_BLOCKS: dict[tuple[int, ...], str] = {
    (6, 12, 24, 16): "densenet121",
    (6, 12, 32, 32): "densenet169",
    (6, 12, 48, 32): "densenet201",
}
_VGG_DEPTHS = {13: "vgg16", 16: "vgg19"}


@dataclasses.dataclass(frozen=True)
class Recognised:
    """The kind of backbone in a file of weights.

    Attributes:
        backbone: a name in `model.BACKBONES`.
        width: factor on the numbers of channels.
        norm: it is a VGG with BatchNorm.
        reduced: it is SSD's vgg16_reducedfc, in which fc6 and fc7 are convolutions already.
    """

    backbone: str
    width: float = 1.0
    norm: bool = False
    reduced: bool = False


def recognise(tensors: Mapping[str, np.ndarray], origin: str) -> Recognised:
    """Returns which backbone the tensors belong to.

    Raises:
        InputError: if it is no known one; the message starts with `origin`.
    """
    for find in (_reduced_vgg16, _resnet, _densenet, _mobilenet, _vgg):
        if found := find(tensors):
            return found
    if any(name.startswith(("unet1.", "leach.0.")) for name in tensors):
        hint = "it looks like a whole M2Det, for which there is `m2det_jax.convert official`"
    else:
        hint = f"its first tensors are {', '.join(list(tensors)[:4]) or 'none'}"
    raise InputError(
        f"{origin}: not the weights of a backbone that is known (torchvision's or timm's VGG16 and "
        "19, ResNet-18 to 152, MobileNetV2, DenseNet-121, 169 and 201, timm's MobileNetV1, or "
        f"SSD's vgg16_reducedfc); {hint}"
    )


def resnet_name(tensors: Mapping[str, np.ndarray], prefix: str = "") -> str | None:
    """Returns the name of the ResNet with the blocks that the tensors show, or None."""
    counts = tuple(
        _distinct(tensors, rf"{re.escape(prefix)}layer{layer}\.(\d+)\.conv1\.weight")
        for layer in (1, 2, 3, 4)
    )
    bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
    return _RESNET_BLOCKS.get(counts, {}).get(bottleneck)


def _reduced_vgg16(tensors: Mapping[str, np.ndarray]) -> Recognised | None:
    if {"0.weight", "31.weight", "33.weight"} <= tensors.keys():
        return Recognised("vgg16", _outputs(tensors, "0.weight") / 64, reduced=True)
    return None


def _resnet(tensors: Mapping[str, np.ndarray]) -> Recognised | None:
    name = resnet_name(tensors) if "conv1.weight" in tensors else None
    return Recognised(name, _outputs(tensors, "conv1.weight") / 64) if name else None


def _densenet(tensors: Mapping[str, np.ndarray]) -> Recognised | None:
    counts = tuple(
        _distinct(tensors, rf"features\.denseblock{block}\.denselayer(\d+)\.conv\.?1\.weight")
        for block in (1, 2, 3, 4)
    )
    name = _DENSENET_BLOCKS.get(counts)
    stem = "features.conv0.weight"
    return Recognised(name, _outputs(tensors, stem) / 64) if name and stem in tensors else None


def _mobilenet(tensors: Mapping[str, np.ndarray]) -> Recognised | None:
    # The width comes from the last block: its rounding changes the number of channels least.
    for name, last, full in (
        ("mobilenet_v2", "features.17.conv.2.weight", 320),
        ("mobilenet_v2", "blocks.6.0.conv_pwl.weight", 320),
        ("mobilenet_v1", "blocks.4.1.conv_pw.weight", 1024),
    ):
        linear = any(".conv_pwl." in other for other in tensors)
        if last in tensors and linear == (last == "blocks.6.0.conv_pwl.weight"):
            return Recognised(name, _outputs(tensors, last) / full)
    return None


def _vgg(tensors: Mapping[str, np.ndarray]) -> Recognised | None:
    kernels = [n for n in tensors if re.fullmatch(r"features\.\d+\.weight", n)]
    convolutions = sum(np.ndim(tensors[name]) == 4 for name in kernels)
    name = _VGG_DEPTHS.get(convolutions)
    if name is None or "features.0.weight" not in tensors:
        return None
    norm = "features.1.running_mean" in tensors
    return Recognised(name, _outputs(tensors, "features.0.weight") / 64, norm=norm)


def _outputs(tensors: Mapping[str, np.ndarray], name: str) -> int:
    shape = np.shape(tensors[name])
    return shape[0] if shape else 0


def _distinct(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.fullmatch(pattern, name))})
