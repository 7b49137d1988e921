"""Classes of data sets: renamed, chosen, and made the same in several of them."""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from m2det_jax.data.index import DetectionIndex
from m2det_jax.errors import InputError


def class_remedy(name: str, class_names: tuple[str, ...]) -> str:
    """Returns what to do about a class that is not in the list."""
    if name.strip() in class_names:
        return f"remove the blanks around it: {name.strip()}"
    folded = {known.casefold(): known for known in reversed(class_names)}
    if close := difflib.get_close_matches(name.strip().casefold(), list(folded), n=1):
        return f"did you mean {folded[close[0]]}?"
    listed = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
    return f"the classes are {listed or '(none)'}; add it to the class file or correct it"


def map_classes(
    index: DetectionIndex, class_map: Sequence[tuple[str, str]]
) -> tuple[DetectionIndex, int]:
    """Renames classes by (from, to) pairs; several may become one, and "" drops a class.

    Pairs whose class the data set does not have change nothing.

    Returns:
        (the index, the number of objects that were dropped).

    Raises:
        InputError: if a class is mapped twice.
    """
    mapping = dict(class_map)
    if len(mapping) < len(class_map):
        given = [name for name, _ in class_map]
        twice = next(name for name in given if given.count(name) > 1)
        raise InputError(f"class_map: {twice} is mapped twice; give one pair for it")
    renamed = [mapping.get(name, name) for name in index.class_names]
    names = tuple(dict.fromkeys(name for name in renamed if name))
    labels = {name: i for i, name in enumerate(names)}
    return _relabel(index, [labels.get(name, -1) for name in renamed], names)


def select_classes(index: DetectionIndex, class_names: Sequence[str]) -> tuple[DetectionIndex, int]:
    """Keeps the named classes, in that order; returns (the index, the number of objects lost)."""
    order = {name: i for i, name in enumerate(class_names)}
    return _relabel(index, [order.get(name, -1) for name in index.class_names], tuple(class_names))


def use_classes(index: DetectionIndex, class_names: Sequence[str], what: str) -> DetectionIndex:
    """Gives an index the classes of another data set; its own must be among them.

    Args:
        what: names the data set in the error.

    Raises:
        InputError: if it has other classes; names them.
    """
    if index.class_names == tuple(class_names):
        return index
    known = set(class_names)
    unknown = [name for name in index.class_names if name not in known]
    if unknown:
        remedy = class_remedy(unknown[0], tuple(class_names))
        raise InputError(
            f"{what} has classes that the training set has not: {', '.join(unknown[:20])} "
            f"({unknown[0]}: {remedy}); rename or drop them with "
            "config.data.class_map, or name those to keep in config.data.labels_filter"
        )
    return select_classes(index, class_names)[0]


def all_classes(indices: Sequence[DetectionIndex]) -> tuple[str, ...]:
    """Returns the classes of all data sets, for formats that do not list their classes.

    The order is that of the first data set that has them all, else they are sorted.
    """
    names = {name for index in indices for name in index.class_names}
    whole = (index.class_names for index in indices if names == set(index.class_names))
    return next(whole, tuple(sorted(names)))


def _relabel(
    index: DetectionIndex, mapping: Sequence[int], class_names: tuple[str, ...]
) -> tuple[DetectionIndex, int]:
    """Gives class k the label mapping[k]; -1 drops it. Returns (index, objects dropped)."""
    new = np.array([*mapping, -1], np.int32)
    labels, region_labels = new[index.labels], new[index.region_labels]
    keep = np.flatnonzero(labels >= 0)
    keep_regions = np.flatnonzero((region_labels >= 0) | (index.region_labels < 0))
    old_ids = index.class_ids or range(len(index.class_names))
    ids = {target: old_ids[k] for k, target in reversed(list(enumerate(mapping))) if target >= 0}
    known = index.class_ids and len(ids) == len(class_names)
    places = index.places
    return dataclasses.replace(
        index,
        boxes=index.boxes[keep],
        labels=labels[keep],
        offsets=_recounted(index.offsets, keep),
        class_names=class_names,
        difficult=index.difficult[keep],
        areas=index.areas[keep],
        regions=index.regions[keep_regions],
        region_labels=region_labels[keep_regions],
        region_offsets=_recounted(index.region_offsets, keep_regions),
        class_ids=tuple(ids[k] for k in range(len(class_names))) if known else (),
        places=places and places.subset(np.arange(index.num_images), keep),
    ), len(labels) - len(keep)


def _recounted(offsets: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Returns the offsets after only some rows, in rising order, were kept."""
    return np.searchsorted(keep, offsets).astype(np.int64)
