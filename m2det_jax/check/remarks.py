"""Remarks on a data set: things to know about it before training."""

import dataclasses

from m2det_jax.data import EFFECTS, KINDS, Finding
from m2det_jax.data.places import Place
from m2det_jax.pages.contents import ERROR, NOTE, WARNING, Remark


@dataclasses.dataclass(frozen=True)
class RemarkKind:
    """A kind of remarks.

    Attributes:
        title: the head of the group.
        severity: "error": training refuses or stops; "warning": it runs, but its result is likely
            worse; "note": handled by a stated rule.
        effect: what training does about it.
    """

    title: str
    severity: str
    effect: str


def remark(
    kind: str,
    split: str,
    what: str,
    place: Place | None = None,
    *,
    image: str = "",
    remedy: str = "",
) -> Remark:
    """Returns a remark of one of REMARK_KINDS; place: where it is annotated, if that is known."""
    group = REMARK_KINDS[kind]
    return Remark(
        kind=kind,
        severity=group.severity,
        split=split,
        what=what,
        effect=group.effect,
        image=image,
        remedy=remedy,
        **place or {},
    )


def title_of(kind: str) -> str:
    """Returns the head of a group of remarks, of REMARK_KINDS or of a reader's findings."""
    if kind in REMARK_KINDS:
        return REMARK_KINDS[kind].title
    text = KINDS[kind]
    return text[0].upper() + text[1:]


_SEVERITIES = {"refuse": ERROR, "clip": WARNING, "drop": WARNING, "note": NOTE}


def from_finding(finding: Finding, split: str) -> Remark:
    """Returns a reader's finding as a remark."""
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

REMARK_KINDS = {
    "missing-image": RemarkKind("Missing image files", ERROR, "training refuses to start"),
    "empty-image": RemarkKind("Empty image files", ERROR, "training refuses to start"),
    "truncated-image": RemarkKind("Truncated image files", ERROR, _STOPS),
    "unreadable-image": RemarkKind("Unreadable image files", ERROR, _STOPS),
    "float-image": RemarkKind("Images of float pixels", ERROR, _STOPS),
    "changed-image": RemarkKind("Header and pixels disagree", ERROR, _STOPS),
    "no-boxes": RemarkKind("Splits without boxes", WARNING, "nothing can be learnt or measured"),
    "split-leak": RemarkKind(
        "Same image in training and validation",
        WARNING,
        "training goes on; the validation figures are too good",
    ),
    "repeated-image": RemarkKind(
        "Same image more than once in a split",
        WARNING,
        "training goes on; the image counts as often as it is there",
    ),
    "tiny-box": RemarkKind(
        "Boxes too small after resizing", WARNING, "kept; the network can hardly see them"
    ),
    "twin-box": RemarkKind(
        "Boxes that nearly coincide", WARNING, "kept; they compete for the same anchors"
    ),
    "unused-class": RemarkKind(
        "Classes without boxes",
        WARNING,
        "the class keeps its output, and learns to be never there",
    ),
    "unmeasured-class": RemarkKind(
        "Classes without boxes in validation", WARNING, "the class has no AP, and AP leaves it out"
    ),
    "untrained-class": RemarkKind(
        "Classes in validation only", WARNING, "the class is not learnt, and lowers AP"
    ),
    "crowded-image": RemarkKind(
        "More objects than detections allowed",
        WARNING,
        "kept; config.eval.max_detections cuts the detections of the image",
    ),
    "exif-turned": RemarkKind(
        "EXIF orientation", NOTE, "the picture is turned upright; boxes must fit it as seen"
    ),
    "deep-image": RemarkKind("16-bit images", NOTE, "scaled to 8 bits"),
    "grey-image": RemarkKind("Grey or 1-bit images", NOTE, "repeated in three channels"),
    "palette-image": RemarkKind("Palette images", NOTE, "converted to RGB"),
    "alpha-image": RemarkKind("Images with transparency", NOTE, "laid over white"),
    "cmyk-image": RemarkKind("CMYK and other colour spaces", NOTE, "converted to RGB by Pillow"),
    "animated-image": RemarkKind("Animations", NOTE, "the first frame is taken"),
    "unlabelled-images": RemarkKind(
        "Images without boxes", NOTE, "used as background; they teach what is no object"
    ),
    "unchecked-images": RemarkKind(
        "Not checked", NOTE, "only a sample of the image files was decoded"
    ),
}
