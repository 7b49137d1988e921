"""Remarks on a data set: what a person should know of it before training."""

import dataclasses

from m2det_jax.data.errors import EFFECTS, Finding
from m2det_jax.data.errors import KINDS as FINDINGS

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A group of remarks.

    Attributes:
        title: for the head of the group.
        severity: "error": training refuses or stops; "warning": it runs, and is likely the worse
            for it; "note": handled by a stated rule.
        effect: what training does about it.
    """

    title: str
    severity: str
    effect: str


@dataclasses.dataclass(frozen=True, slots=True)
class Remark:
    """One thing about one box, image, class or file.

    Attributes:
        kind: names the group.
        severity: one of SEVERITIES.
        split: "train", "val", or "" for both together.
        what: the finding, in one clause.
        effect: what training does about it.
        file, line, item: the annotation file, the line in it, from 1 (0: the file as a whole),
            and, where lines say little, the item, such as "annotations[17]".
        image: path of the image that it is about, or "".
        remedy: what to do, or "".
    """

    kind: str
    severity: str
    split: str
    what: str
    effect: str
    file: str = ""
    line: int = 0
    item: str = ""
    image: str = ""
    remedy: str = ""


def remark(
    kind: str,
    split: str,
    what: str,
    place: dict | None = None,
    *,
    image: str = "",
    remedy: str = "",
) -> Remark:
    """Returns a remark of one of KINDS; place has its file, line and item, where they are known."""
    severity, effect = KINDS[kind].severity, KINDS[kind].effect
    return Remark(kind, severity, split, what, effect, image=image, remedy=remedy, **place or {})


def title_of(kind: str) -> str:
    """Returns what stands above a group of remarks, of KINDS or of what readers find."""
    if kind in KINDS:
        return KINDS[kind].title
    text = FINDINGS[kind]
    return text[0].upper() + text[1:]


_SEVERITIES = {"refuse": ERROR, "clip": WARNING, "drop": WARNING, "note": NOTE}


def from_finding(finding: Finding, split: str) -> Remark:
    """Returns what a reader has found as a remark."""
    return Remark(
        kind=finding.kind,
        severity=_SEVERITIES[finding.effect],
        split=split,
        what=finding.what + (f" ({finding.value})" if finding.value else ""),
        effect=EFFECTS[finding.effect],
        file=finding.file,
        line=finding.line,
        item=finding.item,
        image=finding.image,
        remedy=finding.remedy,
    )


_STOPS = "training starts from the headers and stops when it meets the image"

KINDS = {
    "missing-image": Kind("Missing image files", ERROR, "training refuses to start"),
    "empty-image": Kind("Empty image files", ERROR, "training refuses to start"),
    "truncated-image": Kind("Truncated image files", ERROR, _STOPS),
    "unreadable-image": Kind("Unreadable image files", ERROR, _STOPS),
    "float-image": Kind("Images of float pixels", ERROR, _STOPS),
    "changed-image": Kind("Header and pixels disagree", ERROR, _STOPS),
    "no-boxes": Kind("Splits without boxes", WARNING, "nothing can be learnt or measured"),
    "split-leak": Kind(
        "Same image in training and validation",
        WARNING,
        "training goes on; the validation figures are too good",
    ),
    "repeated-image": Kind(
        "Same image more than once in a split",
        WARNING,
        "training goes on; the image counts as often as it is there",
    ),
    "tiny-box": Kind(
        "Boxes too small after resizing", WARNING, "kept; the network can hardly see them"
    ),
    "twin-box": Kind(
        "Boxes that nearly coincide", WARNING, "kept; they compete for the same anchors"
    ),
    "unused-class": Kind(
        "Classes without boxes",
        WARNING,
        "the class keeps its output, and learns to be never there",
    ),
    "unmeasured-class": Kind(
        "Classes without boxes in validation", WARNING, "the class has no AP, and AP leaves it out"
    ),
    "untrained-class": Kind(
        "Classes in validation only", WARNING, "the class is not learnt, and lowers AP"
    ),
    "crowded-image": Kind(
        "More objects than detections allowed",
        WARNING,
        "kept; config.eval.max_detections cuts the detections of the image",
    ),
    "exif-turned": Kind(
        "EXIF orientation", NOTE, "the picture is turned upright; boxes must fit it as seen"
    ),
    "deep-image": Kind("16-bit images", NOTE, "scaled to 8 bits"),
    "grey-image": Kind("Grey or 1-bit images", NOTE, "repeated in three channels"),
    "palette-image": Kind("Palette images", NOTE, "converted to RGB"),
    "alpha-image": Kind("Images with transparency", NOTE, "laid over white"),
    "cmyk-image": Kind("CMYK and other colour spaces", NOTE, "converted to RGB by Pillow"),
    "animated-image": Kind("Animations", NOTE, "the first frame is taken"),
    "unlabelled-images": Kind(
        "Images without boxes", NOTE, "used as background; they teach what is no object"
    ),
    "unchecked-images": Kind("Not checked", NOTE, "only a sample of the image files was decoded"),
}
