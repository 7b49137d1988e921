"""The table of backbones.

A backbone is a Linen module with the fields `width`, `norm`, `frozen_stages`, `norm_momentum`,
`norm_axis` and `dtype`, called as `backbone(images [B, H, W, 3], train=...)`. It returns the
shallow map at stride 8 and the deep map at stride 16, of ceil(H / 8) x ceil(W / 8) and
ceil(H / 16) x ceil(W / 16) cells. Its method `frozen_modules()` names the submodules that
`frozen_stages` keeps from learning. Each family has a file of its own and builds all of its network
but the classifier; but for VGG, whose pool5 and conv6 do it, the deep map is at stride 16 because
the last halving is left out.
"""

import functools

from flax import linen as nn

from m2det_jax.model.densenet import DenseNet
from m2det_jax.model.mobilenet import MobileNet
from m2det_jax.model.resnet import ResNet
from m2det_jax.model.vgg import VGG16, VGG19

BACKBONES = {
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
