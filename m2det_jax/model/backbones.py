"""The table of backbones.

A backbone is a Linen module with the fields `width`, `norm`, `frozen_stages`, `norm_momentum` and
`dtype`, called as `backbone(images [B, H, W, 3], train=...)`. It returns the shallow map at stride
8 and the deep map at stride 16, of ceil(H / 8) x ceil(W / 8) and ceil(H / 16) x ceil(W / 16) cells.
Its method `frozen_modules()` names the submodules that `frozen_stages` keeps from learning. Each
family has a file of its own.
"""

import functools

from flax import linen as nn

from m2det_jax.model.resnet import BLOCKS, ResNet
from m2det_jax.model.vgg import VGG16, VGG19

BACKBONES = {
    **{f"resnet{depth}": functools.partial(ResNet, depth) for depth in BLOCKS},
    "vgg16": VGG16,
    "vgg19": VGG19,
}


def make_backbone(kind: str, *, official_stride: bool = False, **fields) -> nn.Module:
    """Return the backbone called `kind` in the table; `fields` go to its constructor.

    Args:
        kind: a key of BACKBONES.
        official_stride: a ResNet with the strides of the official code, see ResNet.

    Raises:
        ValueError: for an unknown name, the message lists the known ones; and for
            `official_stride` with another family.
    """
    if kind not in BACKBONES:
        raise ValueError(f"unknown backbone {kind!r}; expected one of {sorted(BACKBONES)}")
    if official_stride:
        if not kind.startswith("resnet"):
            raise ValueError(
                f"the official stride change is one of the ResNets, the backbone is {kind!r}; set "
                "backbone_official_stride=False"
            )
        fields["official_stride"] = True
    return BACKBONES[kind](**fields)
