"""Backbones: the table of all that are known.

A backbone is a Linen module with the fields `width`, `frozen_stages`, `norm_momentum`, `norm_axis`
and `dtype`. It is called as `backbone(images [B, H, W, 3], train=...)` and returns two maps: the
shallow map at stride 8, of ceil(H / 8) x ceil(W / 8) cells, and the deep map at stride 16, of
ceil(H / 16) x ceil(W / 16) cells. Its method `frozen_modules()` names the submodules that do not
learn because of `frozen_stages`. Each family has its own file and builds its whole network but the
classifier. The deep map is at stride 16 because the last halving is left out (VGG: see its pool5
and conv6).
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from m2det_jax.model.densenet import DenseNet
from m2det_jax.model.mobilenet import MobileNet
from m2det_jax.model.resnet import ResNet
from m2det_jax.model.vgg import VGG, VGG16, VGG19

Backbone: TypeAlias = DenseNet | MobileNet | ResNet | VGG

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "densenet121": functools.partial(DenseNet, 121),
    "densenet169": functools.partial(DenseNet, 169),
    "densenet201": functools.partial(DenseNet, 201),
    "mobilenet_v1": functools.partial(MobileNet, 1),
    "mobilenet_v2": functools.partial(MobileNet, 2),
    "resnet18": functools.partial(ResNet, 18),
    "resnet34": functools.partial(ResNet, 34),
    "resnet50": functools.partial(ResNet, 50),
    "resnet101": functools.partial(ResNet, 101),
    "resnet152": functools.partial(ResNet, 152),
    "vgg16": VGG16,
    "vgg19": VGG19,
}


def make_backbone(
    kind: str, *, norm: bool = False, official_stride: bool = False, **fields: Any
) -> Backbone:
    """Returns the backbone called `kind` in the table.

    Args:
        kind: a key of BACKBONES.
        norm: a VGG with BatchNorm; all other families always have it.
        official_stride: a ResNet with the strides of the official code, see ResNet.
        fields: go to the constructor.

    Raises:
        ValueError: if the name is unknown (the message lists the known ones), or if
            `official_stride` is set for another family.
    """
    if kind not in BACKBONES:
        raise ValueError(f"unknown backbone {kind!r}; expected one of {sorted(BACKBONES)}")
    if kind.startswith("vgg"):
        fields["norm"] = norm
    if official_stride:
        if not kind.startswith("resnet"):
            raise ValueError(
                f"only a ResNet has the strides of the official code, not the backbone {kind!r}; "
                "set backbone_official_stride=False"
            )
        fields["official_stride"] = True
    return BACKBONES[kind](**fields)
