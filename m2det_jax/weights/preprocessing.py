"""Preprocessing of the images that weights were trained on; it is stored with the weights."""

import dataclasses

import numpy as np

from m2det_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The network sees (image - mean) / std with its channels in `channel_order`.

    Attributes:
        mean, std: of red, green and blue, in this order whatever `channel_order` is; 0..255.
        channel_order: "rgb" or "bgr", the order in which the network takes the channels.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str

    def __post_init__(self) -> None:
        if not all(0 <= value <= 255 for value in self.mean):
            raise InputError(f"mean={self.mean}: give the means of red, green and blue, 0..255")
        if not all(0 < value <= 255 for value in self.std):
            raise InputError(f"std={self.std}: the image is divided by it; give above 0, to 255")

    def agrees_with(self, other: "Preprocessing") -> bool:
        """Says whether the two differ by less than a tenth of a grey level."""
        pairs = ((self.mean, other.mean), (self.std, other.std))
        near = all(np.allclose(ours, theirs, rtol=0, atol=0.1) for ours, theirs in pairs)
        return near and self.channel_order == other.channel_order

    def flags(self) -> str:
        """Returns the command-line flags that set a config to it."""
        mean, std = (tuple(round(value, 4) for value in v) for v in (self.mean, self.std))
        return (
            f"--config.data.mean='{mean}' --config.data.std='{std}' "
            f"--config.data.channel_order={self.channel_order}"
        )


# That of torchvision's ImageNet weights, and of nearly all of timm's.
IMAGENET = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "rgb")
# That of Caffe's VGG16, from which SSD's reduced one comes, and of all official M2Det weights.
CAFFE = Preprocessing((123.0, 117.0, 104.0), (1.0, 1.0, 1.0), "bgr")
