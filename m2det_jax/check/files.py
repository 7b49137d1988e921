"""Remarks on image files, and on images that are there more than once."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from m2det_jax.check.image_facts import ImageFacts
from m2det_jax.check.remarks import remark
from m2det_jax.data.places import Place
from m2det_jax.pages.contents import WARNING, Remark

# Position of an image in its split -> where it is annotated.
PlaceOf = Callable[[int], Place]

_SKIPPED = "config.data.on_bad_image: training takes the next image instead, and says so"

_REMEDIES = {
    "missing-image": "correct the path, or remove its rows",
    "empty-image": "copy the file again, or remove its rows",
    "truncated-image": "copy the file again, or remove its rows",
    "unreadable-image": "save it again as JPEG or PNG, or remove its rows",
    "float-image": "save it with 8 or 16 bits",
}


def check_files(
    split: str,
    facts: Mapping[int, ImageFacts],
    sizes: np.ndarray,
    place: PlaceOf,
    *,
    skipped: bool = False,
) -> list[Remark]:
    """Returns remarks on image files, each on its own.

    Args:
        split: "train" or "val".
        facts: by position of the image in the split.
        sizes: int [N, 2], (width, height) of every image of the split, as read from the headers.
        place: of an image.
        skipped: training takes another image for one that it cannot read.
    """
    remarks = []
    for i, fact in facts.items():
        width, height = sizes[i].tolist()
        for kind, what in _file_remarks(fact, (width, height)):
            remedy = _REMEDIES.get(kind, "")
            found = remark(kind, split, what, place(i), image=fact.path, remedy=remedy)
            if skipped and fact.problem:
                found = dataclasses.replace(found, severity=WARNING, effect=_SKIPPED)
            remarks.append(found)
    return remarks


def _file_remarks(fact: ImageFacts, size: tuple[int, int]) -> Iterable[tuple[str, str]]:
    """Yields (kind, what) of one file."""
    if fact.problem:
        reason = fact.message.partition(f"{fact.path}: ")[2] or fact.message
        yield fact.problem, reason
        return
    if fact.size != size:
        yield "changed-image", f"the header says {_times(size)}, the pixels are {_times(fact.size)}"
    if fact.orientation != 1:
        yield "exif-turned", f"orientation {fact.orientation}, {_times(fact.size)} as seen"
    if ";16" in fact.mode or fact.mode.startswith("I"):
        yield "deep-image", f"{fact.format}, mode {fact.mode}"
    elif fact.mode in ("L", "LA", "1"):
        yield "grey-image", f"{fact.format}, mode {fact.mode}"
    elif fact.mode in ("P", "PA"):
        yield "palette-image", f"{fact.format}, mode {fact.mode}"
    elif fact.mode not in ("RGB", "RGBA", "RGB;16"):
        yield "cmyk-image", f"{fact.format}, mode {fact.mode}"
    if fact.transparent:
        yield "alpha-image", f"{fact.format}, mode {fact.mode}"
    if fact.frames > 1:
        yield "animated-image", f"{fact.format}, {fact.frames} frames"


def check_repeats(
    splits: Mapping[str, Mapping[int, ImageFacts]], places: Mapping[str, PlaceOf]
) -> list[Remark]:
    """Returns images whose content is there more than once, within a split or across both.

    Content is the same if the bytes of the files are, or if the decoded upright pixels are.
    """
    first: dict[str, tuple[str, ImageFacts]] = {}
    remarks = []
    for split, facts in splits.items():
        for i, fact in facts.items():
            if fact.problem:
                continue
            known = first.setdefault(fact.pixel_hash, (split, fact))
            if known[1] is fact:
                continue
            alike = "the same file" if known[1].file_hash == fact.file_hash else "the same pixels"
            leak = known[0] != split
            where = f" ({known[0]})" if leak else ""
            what = f"{alike} as {known[1].path}{where}"
            remedy = "keep it in one of the two" if leak else "keep one of them"
            kind = "split-leak" if leak else "repeated-image"
            place = places[split](i)
            remarks.append(remark(kind, split, what, place, image=fact.path, remedy=remedy))
    return remarks


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
