"""Settings of the transforms: plain values, checked when they are made."""

import dataclasses

# RGB means of ImageNet: what the canvas shows where there is no image.
FILL = (124, 116, 104)


@dataclasses.dataclass(frozen=True)
class ResizeSettings:
    """How an image is brought to the size of the network input.

    Attributes:
        image_size: (height, width) of the network input, pixels.
        mode: "stretch" fills the input; "letterbox" keeps the aspect and centres the image.
        fill: RGB of what the image leaves free.
    """

    image_size: tuple[int, int]
    mode: str = "stretch"
    fill: tuple[int, int, int] = FILL

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or any(int(s) != s or s < 1 for s in self.image_size):
            raise ValueError(f"image_size: expected (height, width) pixels, got {self.image_size}")
        if self.mode not in ("stretch", "letterbox"):
            raise ValueError(f'mode: expected "stretch" or "letterbox", got {self.mode!r}')


@dataclasses.dataclass(frozen=True)
class AugmentSettings(ResizeSettings):
    """SSD's augmentation (arXiv 1512.02325, section 2.2), before the resize.

    Attributes:
        enabled: False: resize only.
        flip_probability: of mirroring left-right.
        expand_probability, expand_max: of laying the image at random on a canvas 1 to expand_max
            times its width and height.
        crop_probability: of cropping; a crop follows one of six rules, drawn evenly, see `crop`.
        crop_min_scale: smallest side of a crop, as a share of the side of the (expanded) image.
        photometric_probability: of each of brightness, contrast, saturation and hue.
        brightness: largest shift, 0..255.
        contrast, saturation: largest relative change, 0..1.
        hue: largest rotation, degrees.
    """

    enabled: bool = True
    flip_probability: float = 0.5
    expand_probability: float = 0.5
    expand_max: float = 4.0
    crop_probability: float = 6 / 7
    crop_min_scale: float = 0.3
    photometric_probability: float = 0.5
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            share = field.name.endswith("_probability") or field.name in ("contrast", "saturation")
            if share and not 0 <= value <= 1:
                raise ValueError(f"{field.name}: expected a number in 0..1, got {value}")
        if not self.expand_max >= 1:
            raise ValueError(f"expand_max: expected a number from 1, got {self.expand_max}")
        if not 0 < self.crop_min_scale <= 1:
            raise ValueError(
                f"crop_min_scale: expected a share in (0, 1], got {self.crop_min_scale}"
            )
