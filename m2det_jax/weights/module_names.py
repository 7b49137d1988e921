"""Module names of our backbones in torchvision and timm: one rule for each family.

One of our blocks holds a convolution and a BatchNorm (or a bias). A rule gives the names of the two
there, twice where torchvision and timm differ. Reading and writing use the same rules.
"""

import re
from collections.abc import Callable

from m2det_jax.weights.tensors import TENSOR_NAMES

Pair = tuple[str, str]  # (convolution, BatchNorm)

# Convolutions in stages 1 to 5 of VGG.
_VGG_STAGES = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
# Positions of fc6 and fc7, as convolutions, in the list of VGG16's layers of SSD and M2Det.
REDUCED_FC = {"conv6": 31, "conv7": 33}
# Numbers of blocks in timm's stages. timm counts stages and blocks from 0.
_TIMM_V1_STAGES = (1, 2, 2, 6, 2)
_TIMM_V2_STAGES = (1, 2, 3, 4, 3, 3, 1)


def tensor_names(backbone: str, path: str, *, norm: bool = False) -> tuple[str, ...]:
    """Returns the names of one of our tensors: torchvision's, and timm's if it is another.

    Args:
        backbone: a name in `model.BACKBONES`.
        path: of the tensor, below the backbone and without the collection, such as
            "layer1_1/conv2/norm/scale".
        norm: the backbone is a VGG with BatchNorm, whose layers have other numbers.
    """
    *modules, leaf = path.split("/")
    part = modules.pop() if modules[-1] in ("conv", "norm") else "norm"
    pairs = _rule(backbone, norm)("/".join(modules))
    names = dict.fromkeys(pair[0 if part == "conv" else 1] for pair in pairs)
    return tuple(f"{name}.{TENSOR_NAMES[leaf]}" for name in names)


def vgg_indices(backbone: str, *, norm: bool) -> dict[str, int]:
    """Returns our convolution's name -> its index in torchvision's `features`, stages 1 to 5."""
    indices, index = {}, 0
    for stage, count in enumerate(_VGG_STAGES[backbone], start=1):
        for number in range(1, count + 1):
            indices[f"conv{stage}_{number}"] = index
            index += 3 if norm else 2  # convolution, (BatchNorm,) ReLU
        index += 1  # pooling
    return indices


def _rule(backbone: str, norm: bool) -> Callable[[str], tuple[Pair, ...]]:
    if backbone in _VGG_STAGES:
        return lambda block: _vgg(block, vgg_indices(backbone, norm=norm))
    rules = {
        "resnet": _resnet,
        "densenet": _densenet,
        "mobilenet_v1": _mobilenet_v1,
        "mobilenet_v2": _mobilenet_v2,
    }
    return next(rule for prefix, rule in rules.items() if backbone.startswith(prefix))


def _vgg(block: str, indices: dict[str, int]) -> tuple[Pair, ...]:
    if block == "conv6":
        return (("classifier.0", ""), ("pre_logits.fc1", ""))
    if block == "conv7":
        return (("classifier.3", ""), ("pre_logits.fc2", ""))
    return ((f"features.{indices[block]}", f"features.{indices[block] + 1}"),)


def _resnet(block: str) -> tuple[Pair, ...]:
    if block == "stem":
        return (("conv1", "bn1"),)
    layer, number, part = _groups(r"layer(\d)_(\d+)/(conv\d|shortcut)", block)
    prefix = f"layer{layer}.{int(number) - 1}"
    if part == "shortcut":
        return ((f"{prefix}.downsample.0", f"{prefix}.downsample.1"),)
    return ((f"{prefix}.{part}", f"{prefix}.bn{part[-1]}"),)


def _densenet(block: str) -> tuple[Pair, ...]:
    if block == "stem":
        return (("features.conv0", "features.norm0"),)
    if block == "norm5":
        return (("", "features.norm5"),)
    if match := re.fullmatch(r"transition(\d)", block):
        prefix = f"features.transition{match[1]}"
        return ((f"{prefix}.conv", f"{prefix}.norm"),)
    dense, layer, number = _groups(r"denseblock(\d)_layer(\d+)/conv(\d)", block)
    prefix = f"features.denseblock{dense}.denselayer{layer}"
    return ((f"{prefix}.conv{number}", f"{prefix}.norm{number}"),)


def _mobilenet_v1(block: str) -> tuple[Pair, ...]:
    if block == "features_0":
        return (("conv_stem", "bn1"),)
    number, part = _groups(r"features_(\d+)/(depthwise|pointwise)", block)
    timm = _timm_block(int(number) - 1, _TIMM_V1_STAGES)
    convolution, norm = {"depthwise": ("conv_dw", "bn1"), "pointwise": ("conv_pw", "bn2")}[part]
    return ((f"{timm}.{convolution}", f"{timm}.{norm}"),)


def _mobilenet_v2(block: str) -> tuple[Pair, ...]:
    if block == "features_0":
        return (("features.0.0", "features.0.1"), ("conv_stem", "bn1"))
    if block == "features_18":
        return (("features.18.0", "features.18.1"), ("conv_head", "bn2"))
    number, part = _groups(r"features_(\d+)/(expand|depthwise|project)", block)
    expands = number != "1"  # the first block has no expansion, and counts from its depthwise
    place = ("expand", "depthwise", "project").index(part) - (not expands)
    prefix = f"features.{number}.conv"
    # torchvision nests the blocks that end in ReLU, but not the projection.
    project = (f"{prefix}.{place}", f"{prefix}.{place + 1}")
    nested = (f"{prefix}.{place}.0", f"{prefix}.{place}.1")
    timm = _timm_block(int(number) - 1, _TIMM_V2_STAGES)
    names = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
    return (
        project if part == "project" else nested,
        (f"{timm}.{names[place]}", f"{timm}.bn{place + 1}"),
    )


def _groups(pattern: str, block: str) -> tuple[str, ...]:
    if (match := re.fullmatch(pattern, block)) is None:
        raise ValueError(f"no rule for a module called {block!r}")
    return match.groups()


def _timm_block(index: int, stages: tuple[int, ...]) -> str:
    """Returns timm's name of the block `index`, counted from 0 over all stages."""
    for stage, count in enumerate(stages):
        if index < count:
            return f"blocks.{stage}.{index}"
        index -= count
    raise ValueError(f"no such block: {index} beyond {stages}")
