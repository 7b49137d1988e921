"""PyTorch state dicts for tests: names, shapes and random values.

They follow the PyTorch code, not the rules in m2det_jax.weights. `width` scales the channels, which
makes tests faster.
"""

import numpy as np

NORM = ("weight", "bias", "running_mean", "running_var")
VGG16_FEATURES = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M"] + [512, 512, 512, "M"] * 2
VGG19_FEATURES = [64, 64, "M", 128, 128, "M", *[256] * 4, "M"] + [512, 512, 512, 512, "M"] * 2


def drawn(shapes, seed=0):
    """Returns random tensors; variances are near 1, and kernels keep activations in range."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        normal = rng.standard_normal(shape, np.float32)
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.asarray(rng.integers(1, 1 << 40), np.int64)
        elif name.endswith("running_var"):
            tensors[name] = 1 + 0.1 * np.abs(normal)
        elif len(shape) == 1:
            # BatchNorm weights are near 1, biases and means near 0.
            tensors[name] = 0.1 * normal + name.endswith("weight")
        else:
            tensors[name] = normal * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return tensors


def norm(name, channels):
    """Returns the shapes of a BatchNorm's tensors by name."""
    return {f"{name}.{part}": (channels,) for part in NORM} | {f"{name}.num_batches_tracked": ()}


def vgg(features=VGG16_FEATURES, *, width=1.0, batch_norm=False, timm=False):
    """Returns the shapes of torchvision's VGG; with `timm`, the last layers are those of timm."""
    shapes, inputs, index = {}, 3, 0
    for entry in features:
        if entry == "M":
            index += 1
            continue
        outputs = round(entry * width)
        shapes[f"features.{index}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"features.{index}.bias"] = (outputs,)
        if batch_norm:
            shapes |= norm(f"features.{index + 1}", outputs)
        index, inputs = index + (3 if batch_norm else 2), outputs
    units = round(4096 * width)
    names = ("pre_logits.fc1", "pre_logits.fc2", "head.fc") if timm else (
        "classifier.0", "classifier.3", "classifier.6")  # fmt: skip
    fully = [(units, inputs, 7, 7), (units, units, 1, 1)]
    if not timm:
        fully = [(units, inputs * 49), (units, units)]
    for name, shape in zip(names, [*fully, (1000, units)], strict=True):
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def reduced_vgg16(width=1.0):
    """Returns the shapes of SSD's vgg16_reducedfc.pth."""
    named = vgg(width=width)
    shapes = {n.removeprefix("features."): s for n, s in named.items() if n.startswith("features.")}
    deep, units = round(512 * width), round(1024 * width)
    return shapes | {
        "31.weight": (units, deep, 3, 3), "31.bias": (units,),
        "33.weight": (units, units, 1, 1), "33.bias": (units,),
    }  # fmt: skip


def resnet(blocks, *, bottleneck, width=1.0):
    """Returns the shapes of torchvision's and timm's ResNet."""
    stem = round(64 * width)
    shapes = {"conv1.weight": (stem, 3, 7, 7)} | norm("bn1", stem)
    inputs = stem
    for layer, count in enumerate(blocks, start=1):
        planes = round(32 * 2**layer * width)
        outputs = planes * (4 if bottleneck else 1)
        for number in range(count):
            block = f"layer{layer}.{number}"
            sides = [(planes, 1), (planes, 3), (outputs, 1)] if bottleneck else [(planes, 3)] * 2
            before = inputs
            for k, (channels, side) in enumerate(sides, start=1):
                shapes[f"{block}.conv{k}.weight"] = (channels, before, side, side)
                shapes |= norm(f"{block}.bn{k}", channels)
                before = channels
            if number == 0 and (layer > 1 or inputs != outputs):
                shapes[f"{block}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= norm(f"{block}.downsample.1", outputs)
            inputs = outputs
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


def mobilenet_v2(*, timm=False):
    """Returns the shapes of torchvision's MobileNetV2, or of timm's mobilenetv2_100."""
    stages = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    stem, stem_norm = ("conv_stem", "bn1") if timm else ("features.0.0", "features.0.1")
    shapes = {f"{stem}.weight": (32, 3, 3, 3)} | norm(stem_norm, 32)
    inputs, number = 32, 0
    for stage, (expansion, outputs, count) in enumerate(stages):
        for index in range(count):
            number += 1
            hidden = inputs * expansion
            convs = [("dw", (hidden, 1, 3, 3)), ("out", (outputs, hidden, 1, 1))]
            if expansion > 1:
                convs.insert(0, ("in", (hidden, inputs, 1, 1)))
            for place, (kind, shape) in enumerate(convs):
                if timm:
                    out = "conv_pwl" if expansion > 1 else "conv_pw"
                    name = {"in": "conv_pw", "dw": "conv_dw", "out": out}[kind]
                    block = f"blocks.{stage}.{index}"
                    conv, batch_norm = f"{block}.{name}", f"{block}.bn{place + 1}"
                else:
                    block = f"features.{number}.conv"
                    last = kind == "out"
                    conv = f"{block}.{place}" if last else f"{block}.{place}.0"
                    batch_norm = f"{block}.{place + 1}" if last else f"{block}.{place}.1"
                shapes[f"{conv}.weight"] = shape
                shapes |= norm(batch_norm, shape[0])
            inputs = outputs
    head, head_norm = ("conv_head", "bn2") if timm else ("features.18.0", "features.18.1")
    classifier = "classifier" if timm else "classifier.1"
    shapes |= {f"{head}.weight": (1280, inputs, 1, 1)} | norm(head_norm, 1280)
    return shapes | {f"{classifier}.weight": (1000, 1280), f"{classifier}.bias": (1000,)}


def densenet(blocks=(6, 12, 24, 16), growth=32):
    """Returns the shapes of torchvision's and timm's DenseNet."""
    channels = 2 * growth
    shapes = {"features.conv0.weight": (channels, 3, 7, 7)} | norm("features.norm0", channels)
    for block, count in enumerate(blocks, start=1):
        for layer in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            shapes |= norm(f"{name}.norm1", channels)
            shapes[f"{name}.conv1.weight"] = (4 * growth, channels, 1, 1)
            shapes |= norm(f"{name}.norm2", 4 * growth)
            shapes[f"{name}.conv2.weight"] = (growth, 4 * growth, 3, 3)
            channels += growth
        if block < len(blocks):
            name = f"features.transition{block}"
            shapes |= norm(f"{name}.norm", channels)
            shapes[f"{name}.conv.weight"] = (channels // 2, channels, 1, 1)
            channels //= 2
    shapes |= norm("features.norm5", channels)
    return shapes | {"classifier.weight": (1000, channels), "classifier.bias": (1000,)}


def official(
    *, classes, levels, scales, planes, sfam=True, backbone=None, base_channels=(512, 1024)
):
    """Returns the shapes of the official M2Det's tensors by name; shared modules are repeated.

    Args:
        classes: number of classes, including the background.
        levels, scales, planes: number of TUMs, of scales, and channels of a TUM's output.
        sfam: whether the network has SFAM.
        backbone: shapes by name, without the prefix `base.`; None: those of the reduced VGG16.
        base_channels: channels of the two maps of the backbone.
    """
    base = reduced_vgg16() if backbone is None else backbone
    shapes = {f"base.{name}": shape for name, shape in base.items()}

    def block(name, outputs, inputs, side):
        return {f"{name}.conv.weight": (outputs, inputs, side, side)} | norm(f"{name}.bn", outputs)

    shapes |= block("reduce", 256, base_channels[0], 3) | block(
        "up_reduce", 512, base_channels[1], 1
    )
    half = planes // 2
    for level in range(levels):
        shapes |= block(f"leach.{level}", half, 768, 1)
        # The first TUM takes the base feature alone, the others also the previous TUM's map.
        inputs = half if level == 0 else half + planes
        unet = f"unet{level + 1}"
        shapes |= block(f"{unet}.toplayer.0", planes, planes, 1)
        for i in range(scales - 1):
            shapes |= block(f"{unet}.layers.{i}", planes, planes if i else inputs, 3)
            last = i == scales - 2
            shapes |= block(f"{unet}.latlayer.{i}", planes, inputs if last else planes, 3)
            shapes |= block(f"{unet}.smooth.{i}", planes, planes, 1)
    wide = levels * planes
    for scale in range(scales):
        for head, outputs in (("loc", 4 * 6), ("conf", classes * 6)):
            shapes |= {f"{head}.{scale}.weight": (outputs, wide, 3, 3),
                       f"{head}.{scale}.bias": (outputs,)}  # fmt: skip
        if sfam:
            for layer, (outputs, inputs) in (
                ("fc1", (wide // 16, wide)),
                ("fc2", (wide, wide // 16)),
            ):
                name = f"sfam_module.{layer}.{scale}"
                shapes |= {f"{name}.weight": (outputs, inputs, 1, 1), f"{name}.bias": (outputs,)}
    return shapes | norm("Norm", wide)


def with_equal_copies(tensors):
    """Returns the state dict of an official M2Det; the repeats of a shared module are equal."""
    equal = dict(tensors)
    for name in tensors:
        for shared in ("leach.", "sfam_module.fc1.", "sfam_module.fc2."):
            if name.startswith(shared):
                first = shared + "0" + name[len(shared) :].lstrip("0123456789")
                equal[name] = tensors[first]
    return equal
