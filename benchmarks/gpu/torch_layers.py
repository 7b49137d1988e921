"""The layers of our M2Det with VGG16 in PyTorch, written anew, for a ratio of speeds.

Same convolutions, norms and sizes as `m2det_jax.model`; weights are random. Maps are [B, C, H, W]
in memory format channels_last.
"""

import torch
from torch import nn
from torch.nn import functional as F

STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)


def block(inputs: int, features: int, size: int = 3, stride: int = 1, padding: int | None = None):
    """Returns a convolution without bias, BatchNorm and ReLU."""
    padding = size // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(inputs, features, size, stride, padding, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
    )


class VGG(nn.Module):
    """VGG16 up to conv7; gives the maps of stage 4 and of conv7."""

    def __init__(self, width: float):
        super().__init__()
        inputs, self.stages = 3, nn.ModuleList()
        for channels in STAGES:
            layers = []
            for features in channels:
                features = round(features * width)
                layers += [nn.Conv2d(inputs, features, 3, 1, 1), nn.ReLU(inplace=True)]
                inputs = features
            self.stages.append(nn.Sequential(*layers))
        last = round(1024 * width)
        self.conv6 = nn.Conv2d(inputs, last, 3, 1, 6, dilation=6)
        self.conv7 = nn.Conv2d(last, last, 1)
        self.channels = inputs, last

    def forward(self, x):
        for number, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2, ceil_mode=True) if number else x)
            if number == 3:
                shallow = x
        x = F.max_pool2d(x, 3, 1, 1)
        return shallow, F.relu(self.conv7(F.relu(self.conv6(x))))


class TUM(nn.Module):
    """Encoder of stride 2, decoder that adds, 1x1 smoothing."""

    def __init__(self, inputs: int, width: int, out: int, scales: int):
        super().__init__()
        channels = [inputs] + [width] * (scales - 1)
        self.encoder = nn.ModuleList(
            block(channels[i], width, 3, *((1, 0) if i == scales - 2 and scales > 2 else (2, 1)))
            for i in range(scales - 1)
        )
        self.top = block(width, width, 1)
        self.lateral = nn.ModuleList(block(channels[i], width) for i in range(scales - 1))
        self.smooth = nn.ModuleList(block(width, out, 1) for _ in range(scales))

    def forward(self, x):
        encoded = [x]
        for layer in self.encoder:
            encoded.append(layer(encoded[-1]))
        decoded = [self.top(encoded.pop())]
        for layer, skip in zip(reversed(self.lateral), reversed(encoded), strict=True):
            side = layer(skip)
            decoded.append(side + F.interpolate(decoded[-1], side.shape[2:], mode="nearest"))
        return [smooth(y) for smooth, y in zip(self.smooth, reversed(decoded), strict=True)]


class Excite(nn.Module):
    """SFAM of one scale: squeeze and excitation."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // 16))
        self.excite = nn.Linear(max(1, channels // 16), channels)

    def forward(self, x):
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * weights[:, :, None, None]


class TorchM2Det(nn.Module):
    """Gives class logits [B, A, C] and box deltas [B, A, 4], float32."""

    def __init__(self, model):
        """model: our Flax module, for its fields."""
        super().__init__()
        m, k = model, model.anchors_per_cell
        self.classes = m.num_class_outputs
        self.backbone = VGG(m.backbone_width)
        shallow, deep = self.backbone.channels
        self.shallow, self.deep = (
            block(shallow, m.shallow_channels),
            block(deep, m.deep_channels, 1),
        )
        base = m.shallow_channels + m.deep_channels
        self.reduce = nn.ModuleList(block(base, m.reduced_channels, 1) for _ in range(m.num_levels))
        self.tums = nn.ModuleList(
            TUM(m.reduced_channels + (m.tum_out if level else 0), m.tum_width, m.tum_out,
                m.num_scales)
            for level in range(m.num_levels)
        )  # fmt: skip
        out = m.num_levels * m.tum_out
        scales = range(m.num_scales)
        self.sfam = nn.ModuleList(Excite(out) if m.sfam else nn.Identity() for _ in scales)
        self.box = nn.ModuleList(nn.Conv2d(out, 4 * k, 3, 1, 1) for _ in scales)
        self.label = nn.ModuleList(nn.Conv2d(out, self.classes * k, 3, 1, 1) for _ in scales)

    def forward(self, x):
        shallow, deep = self.backbone(x)
        shallow, deep = self.shallow(shallow), self.deep(deep)
        deep = F.interpolate(deep, shallow.shape[2:], mode="nearest")
        base, pyramids = torch.cat([shallow, deep], 1), []
        for reduce, tum in zip(self.reduce, self.tums, strict=True):
            fused = reduce(base)
            if pyramids:
                fused = torch.cat([fused, pyramids[-1][0]], 1)
            pyramids.append(tum(fused))
        maps = [torch.cat(scale, 1) for scale in zip(*pyramids, strict=True)]
        maps = [weigh(y) for weigh, y in zip(self.sfam, maps, strict=True)]

        def flat(heads, outputs):
            found = (head(y) for head, y in zip(heads, maps, strict=True))
            found = (y.permute(0, 2, 3, 1).reshape(len(x), -1, outputs) for y in found)
            return torch.cat(list(found), 1).float()

        return flat(self.label, self.classes), flat(self.box, 4)


def focal_and_box_loss(logits, deltas, labels, targets):
    """Focal loss and smooth L1 over positives, as ours.

    Args:
        labels: int64 [B, A], a class, or -1 for background.
        targets: float32 [B, A, 4].
    """
    positive = labels >= 0
    wanted = F.one_hot(labels.clamp(min=0), logits.shape[-1]) * positive[..., None]
    p, wanted = torch.sigmoid(logits), wanted.float()
    right = torch.where(wanted > 0, p, 1 - p)
    weight = torch.where(wanted > 0, 0.25, 0.75) * (1 - right) ** 2
    cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    box = F.smooth_l1_loss(deltas, targets, reduction="none", beta=0.11).sum(-1)
    return ((weight * cross).sum() + (box * positive).sum()) / positive.sum().clamp(min=1)
