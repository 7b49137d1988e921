"""Settings of resize and augmentation: plain values, checked when they are made."""

import dataclasses
import math

# RGB means of ImageNet: the colour of the canvas where there is no image.
FILL = (124, 116, 104)


@dataclasses.dataclass(frozen=True)
class ResizeSettings:
    """Settings of the resize to the network input.

    Attributes:
        image_size: (height, width) of the network input, pixels.
        mode: "stretch" fills the input; "letterbox" keeps the aspect and centres the image.
        fill: RGB, 0..255, where there is no image.
    """

    image_size: tuple[int, int]
    mode: str = "stretch"
    fill: tuple[int, int, int] = FILL

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or any(int(s) != s or s < 1 for s in self.image_size):
            raise ValueError(f"image_size: expected (height, width) pixels, got {self.image_size}")
        if self.mode not in ("stretch", "letterbox"):
            raise ValueError(f'mode: expected "stretch" or "letterbox", got {self.mode!r}')


STEP_NAMES = (
    "expand", "crop", "flip", "photometric", "affine", "scale_jitter", "mosaic", "mixup", "paste",
)  # fmt: skip
_SHARES = ("contrast", "saturation", "min_visible", "paste_max_covered", "affine_translation")
_RANGES = ("affine_scale", "jitter_scale", "mosaic_scale", "paste_scale")


@dataclasses.dataclass(frozen=True)
class AugmentSettings(ResizeSettings):
    """Settings of what is done to a training image; the defaults are SSD's augmentation.

    Attributes:
        enabled: False: resize only.
        pipeline: names of the steps, in their order, each at most once: expand, crop, flip,
            photometric (arXiv 1512.02325, section 2.2), affine (keras-retinanet), scale_jitter
            (arXiv 2012.07177), mosaic (arXiv 2004.10934), mixup (arXiv 1710.09412) and paste.
            mosaic must be the first, as it makes the picture that the others change, and mixup
            the last, as it blends two finished pictures.
        flip_probability: of mirroring left-right.
        expand_probability, expand_max: of laying the image at random on a canvas 1 to expand_max
            times its width and height.
        crop_probability: of cropping; a crop follows one of six rules, drawn evenly, see
            `steps.crop_window`.
        crop_min_scale: smallest side of a crop, as a share of the side of the (expanded) image.
        photometric_probability: of each of brightness, contrast, saturation and hue.
        brightness: largest shift, 0..255.
        contrast, saturation: largest relative change, 0..1.
        hue: largest rotation, degrees.
        affine_probability: of the affine map as a whole.
        affine_rotation, affine_shear: largest angle, degrees, both ways; to 180 and 80.
        affine_scale: (smallest, largest) factor, drawn for each axis.
        affine_translation: largest move, as a share of the picture's side.
        jitter_probability, jitter_scale: of showing the picture at a factor in (smallest, largest),
            cut or padded to its size.
        mosaic_probability: of putting three more images beside this one.
        mosaic_scale: (smallest, largest) factor of each image, 1: as large as it would be alone.
        mosaic_joint: the joint keeps that share of the sides from the edges, above 0, to 0.5.
        mixup_probability: of blending with another sample, made by the same steps.
        mixup_min_share: smallest share of the fainter picture, 0..0.5.
        paste_probability, paste_max: of pasting 1 to paste_max objects of other images.
        paste_scale: (smallest, largest) factor of an object.
        paste_max_covered: most of a box that pasted objects may cover, a share of its area.
        min_visible: affine and mosaic: a box of which a smaller share is seen is left out.
    """

    enabled: bool = True
    pipeline: tuple[str, ...] = ("expand", "crop", "flip", "photometric")
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
    affine_probability: float = 0.5
    affine_rotation: float = 10.0
    affine_shear: float = 5.0
    affine_scale: tuple[float, float] = (0.9, 1.1)
    affine_translation: float = 0.1
    jitter_probability: float = 1.0
    jitter_scale: tuple[float, float] = (0.1, 2.0)
    mosaic_probability: float = 0.5
    mosaic_scale: tuple[float, float] = (0.4, 1.0)
    mosaic_joint: float = 0.25
    mixup_probability: float = 0.15
    mixup_min_share: float = 0.4
    paste_probability: float = 0.5
    paste_max: int = 3
    paste_scale: tuple[float, float] = (0.5, 1.5)
    paste_max_covered: float = 0.3
    min_visible: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_pipeline(self.pipeline)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            share = field.name.endswith("_probability") or field.name in _SHARES
            if share and not 0 <= value <= 1:
                raise ValueError(f"{field.name}: expected a number in 0..1, got {value}")
        for name, limit in (("brightness", 255), ("hue", 180)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}: expected 0..{limit}, got {getattr(self, name)}")
        for name in _RANGES:
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                raise ValueError(f"{name}: expected (smallest, largest) above 0, got {value}")
        for name in ("affine_rotation", "affine_shear"):
            limit = 180 if name == "affine_rotation" else 80
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(
                    f"{name}: expected degrees in 0..{limit}, got {getattr(self, name)}"
                )
        if not self.expand_max >= 1:
            raise ValueError(f"expand_max: expected a number from 1, got {self.expand_max}")
        if not 0 < self.crop_min_scale <= 1:
            raise ValueError(
                f"crop_min_scale: expected a share in (0, 1], got {self.crop_min_scale}"
            )
        if not 0 < self.mosaic_joint <= 0.5:
            raise ValueError(f"mosaic_joint: expected a share in (0, 0.5], got {self.mosaic_joint}")
        if not 0 <= self.mixup_min_share <= 0.5:
            raise ValueError(
                f"mixup_min_share: expected a share in 0..0.5, got {self.mixup_min_share}"
            )
        if not self.paste_max >= 1:
            raise ValueError(f"paste_max: expected at least 1, got {self.paste_max}")

    def most_objects(self, most_in_image: int) -> int:
        """Returns the most objects that a picture can have, of images with most_in_image."""
        steps = self.pipeline if self.enabled else ()
        most = most_in_image * (4 if "mosaic" in steps else 1)
        most += self.paste_max if "paste" in steps else 0
        return most * (2 if "mixup" in steps else 1)


def _check_pipeline(pipeline: tuple[str, ...]) -> None:
    known = ", ".join(STEP_NAMES)
    if isinstance(pipeline, str):
        raise ValueError(f"pipeline: expected a tuple of names of {known}, got {pipeline!r}")
    for i, name in enumerate(pipeline):
        if name not in STEP_NAMES:
            raise ValueError(f"pipeline: unknown step {name!r}; known are {known}")
        if name in pipeline[:i]:
            raise ValueError(f"pipeline: {name!r} is there twice; each step may be there once")
    if "mosaic" in pipeline[1:]:
        raise ValueError(
            "pipeline: 'mosaic' must come first, as it makes the picture that the other steps "
            f"change; got {pipeline}"
        )
    if "mixup" in pipeline[:-1]:
        raise ValueError(
            "pipeline: 'mixup' must come last, as it blends two finished pictures, each made by "
            f"the steps before it; got {pipeline}"
        )


_WORDS = {
    "expand": "probability {expand_probability:g}, onto a canvas 1 to {expand_max:g} times as wide",
    "crop": "probability {crop_probability:.3g}, sides from {crop_min_scale:g} of the picture's",
    "flip": "probability {flip_probability:g}, left-right",
    "photometric": (
        "probability {photometric_probability:g} each: brightness +-{brightness:g}, contrast "
        "+-{contrast:g}, saturation +-{saturation:g}, hue +-{hue:g} degrees"
    ),
    "affine": (
        "probability {affine_probability:g}: rotation +-{affine_rotation:g} degrees, shear "
        "+-{affine_shear:g} degrees, scale {affine_scale[0]:g} to {affine_scale[1]:g}, moved by "
        "up to {affine_translation:g} of the sides"
    ),
    "scale_jitter": (
        "probability {jitter_probability:g}, factor {jitter_scale[0]:g} to {jitter_scale[1]:g}, "
        "cut or padded"
    ),
    "mosaic": (
        "probability {mosaic_probability:g}, four images at {mosaic_scale[0]:g} to "
        "{mosaic_scale[1]:g} of their size"
    ),
    "mixup": (
        "probability {mixup_probability:g}, two samples of the steps above, the fainter with a "
        "share of at least {mixup_min_share:g}"
    ),
    "paste": (
        "probability {paste_probability:g}, up to {paste_max} objects of other images at "
        "{paste_scale[0]:g} to {paste_scale[1]:g} of their size, covering at most "
        "{paste_max_covered:g} of a box"
    ),
}


def describe_augmentation(
    settings: AugmentSettings, sizes: tuple[tuple[int, int], ...] = ()
) -> str:
    """Returns the steps in their order, the resize, and the rule for boxes, a line each.

    Args:
        sizes: (height, width) of the pictures, if one of several is drawn for each step.
    """
    names = settings.pipeline if settings.enabled else ()
    width = max(map(len, names), default=0)
    values = vars(settings)
    lines = [
        f"  {i}. {name:{width}}  {_WORDS[name].format(**values)}" for i, name in enumerate(names, 1)
    ]
    off = "" if settings.enabled else " (config.augment.enabled is False)"
    lines = lines or [f"  none{off}"]
    shown = " or ".join(f"{h} x {w}" for h, w in sizes or (settings.image_size,))
    drawn = ", one size drawn for each step" if len(sizes) > 1 else ""
    lines.append(f"  then {settings.mode} to {shown} (height x width){drawn}")
    if {"affine", "mosaic"} & set(names):
        lines.append(
            f"  boxes: of affine and mosaic pictures those stay of which {settings.min_visible:g} "
            "is seen, of others those whose centre is seen"
        )
    elif names:
        lines.append("  boxes: those stay whose centre is seen, cut to the picture")
    return "\n".join(lines)
