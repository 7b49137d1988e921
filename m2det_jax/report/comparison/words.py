"""Words of a comparison: what got better and worse, and what may be chance."""

import math
from collections.abc import Sequence

from m2det_jax.metrics.bootstrap import FIGURES, MIN_IMAGES, SIZES, Difference, Differences
from m2det_jax.pages.markup import count, shorten

_NAMED = 8
_MANY_CLASSES = 20


def signed(value: float) -> str:
    """Returns +0.012, or a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:+.3f}"


def interval(found: Difference) -> str:
    """Returns the interval in brackets; "too few images" if there is none."""
    if math.isnan(found.low):
        return "too few images"
    return f"{signed(found.low)} to {signed(found.high)}"


def sentence(found: Difference) -> str:
    """Returns what can be said of one figure of A and B."""
    if math.isnan(found.a):
        return "There are no objects, so nothing can be compared."
    values, apart = f"A {found.a:.3f}, B {found.b:.3f}", found.a - found.b
    if math.isnan(found.low):
        return (
            f"{values}, A - B {signed(apart)}. Fewer than {MIN_IMAGES} images have objects, so the "
            "difference may be chance."
        )
    if not found.sign:
        return (
            f"{values}, A - B {signed(apart)}. The 95 % interval of the difference, "
            f"{interval(found)}, holds 0: it may be chance."
        )
    return (
        f"{values}: {'A' if found.sign > 0 else 'B'} is better by {abs(apart):.3f}. The 95 % "
        f"interval of A - B, {interval(found)}, excludes 0."
    )


def verdict(found: Difference) -> tuple[str, str]:
    """Returns (style, short sentence) about AP of all objects."""
    if found.sign:
        return ("fine" if found.sign > 0 else "refused"), (
            f"{'A' if found.sign > 0 else 'B'} is better."
        )
    return "warned", "No clear difference."


def sentences(differences: Differences, names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (heading, text) about all objects, sizes and classes.

    Args:
        names: of the classes.
    """
    said = [
        (figure, sentence(found)) for figure, found in zip(FIGURES, differences["all"], strict=True)
    ]
    groups: dict[str | int, str] = {size: f"{size} objects" for size in SIZES[1:]}
    groups |= {k: shorten(name, 60) for k, name in enumerate(names)}
    for heading, sign in (("A is better at", 1), ("B is better at", -1)):
        some = [key for key in groups if differences[key][0].sign == sign]
        some.sort(key=lambda key: -abs(differences[key][0].a - differences[key][0].b))
        if some:
            listed = [_group(groups[key], differences[key][0]) for key in some[:_NAMED]]
            more = f" and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
            said.append((heading, f"AP of {'; '.join(listed)}{more}."))
    classes = [differences[k][0] for k in range(len(names))]
    unsure = sum(not one.sign and not math.isnan(one.a) for one in classes)
    if unsure:
        said.append(
            ("May be chance", f"the difference in AP of {count(unsure)} of {count(len(names))} "
             "classes: their interval holds 0, or fewer than "
             f"{MIN_IMAGES} images have objects of them.")
        )  # fmt: skip
    if len(names) >= _MANY_CLASSES:
        chance = count(round(0.05 * len(names)))
        said.append(
            ("Many classes", f"of {count(len(names))} classes about {chance} seem to differ by "
             "chance alone, because one interval in twenty misses the truth.")
        )  # fmt: skip
    return said


def _group(name: str, found: Difference) -> str:
    return f"{name} {signed(found.a - found.b)} ({interval(found)})"
