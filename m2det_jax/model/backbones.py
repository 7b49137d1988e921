"""The table of backbones.

A backbone is a Linen module with the fields `width`, `norm`, `frozen_stages`, `norm_momentum` and
`dtype`, called as `backbone(images [B, H, W, 3], train=...)`. It returns the shallow map at stride
8 and the deep map at stride 16, of ceil(H / 8) x ceil(W / 8) and ceil(H / 16) x ceil(W / 16) cells.
Its method `frozen_modules()` names the submodules that `frozen_stages` keeps from learning. Each
family has a file of its own.
"""

import functools

from flax import linen as nn

from m2det_jax.model.resnet import ResNet
from m2det_jax.model.vgg import VGG16

BACKBONES = {
    "resnet18": functools.partial(ResNet, 18),
    "resnet34": functools.partial(ResNet, 34),
    "vgg16": VGG16,
}


def make_backbone(kind: str, **fields) -> nn.Module:
    """Return the backbone called `kind` in the table; `fields` go to its constructor.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if kind not in BACKBONES:
        raise ValueError(f"unknown backbone {kind!r}; expected one of {sorted(BACKBONES)}")
    return BACKBONES[kind](**fields)
