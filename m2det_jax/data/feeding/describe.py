"""The effective augmentation and sampling in words, for the log of a run."""

import numpy as np

from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.feeding.sampling import class_factors, epoch_length, image_factors
from m2det_jax.data.index import DetectionIndex

_MOST_CLASSES = 40  # lines of the table of factors

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
    """Returns the steps in their order, the resize, and the rule for boxes, a line each."""
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


def describe_sampling(index: DetectionIndex, threshold: float) -> str:
    """Returns the repeat factor of every class that is raised, rarest first, and the epoch."""
    factors = class_factors(index, threshold)
    images = image_factors(index, threshold)
    raised = [int(i) for i in np.argsort(-factors, kind="stable") if factors[i] > 1]
    width = max((len(index.class_names[i]) for i in raised[:_MOST_CLASSES]), default=0)
    lines = [f"  {index.class_names[i]:{width}}  {factors[i]:.2f}" for i in raised]
    if len(lines) > _MOST_CLASSES:
        lines[_MOST_CLASSES:] = [f"  and {len(lines) - _MOST_CLASSES} more"]
    empty = [name for name, r in zip(index.class_names, factors, strict=True) if np.isnan(r)]
    if empty:
        lines.append(f"  without objects: {', '.join(empty)}")
    others = len(factors) - len(raised) - len(empty)
    lines.append(f"  the other {others} classes: 1" if raised else "  1 for every class")
    lines.append(
        f"  images: factors {images.min():.2f} to {images.max():.2f}, an epoch has "
        f"{epoch_length(images):.1f} of {index.num_images}"
    )
    return "\n".join(lines)
