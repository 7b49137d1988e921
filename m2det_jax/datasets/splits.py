"""What the keys of config.data name: sources, put together and with their classes agreed."""

import dataclasses
import os

from m2det_jax.config.keys import Data
from m2det_jax.data import DataError, DetectionIndex, Findings, Source, inspect_dataset, read_size
from m2det_jax.data.reading.combine import (
    all_classes,
    concatenate,
    map_classes,
    select_classes,
    use_classes,
)
from m2det_jax.data.reading.csv_rows import class_remedy
from m2det_jax.data.reading.size_checks import ReadSize
from m2det_jax.errors import InputError

# Formats without a list of classes: training and validation may each lack some.
_NAMED_BY_BOXES = ("voc", "kitti")

Classes = str | tuple[str, ...]


def names_validation(data: Data) -> bool:
    """Says whether the config names a validation set, or leaves it to be split off."""
    return bool(data.val_csv if data.format == "csv" else data.val_split)


def describe(data: Data, role: str) -> str:
    """Returns what a split is read from, in words."""
    split = _named_split(data, role)
    return split if data.format == "csv" else f"{data.format} {os.path.join(data.root, split)}"


def _named_split(data: Data, role: str) -> str:
    """Returns the split as the config names it, which for CSV is a file."""
    if data.format == "csv":
        return {"train": data.train_csv, "val": data.val_csv}[role]
    return {"train": data.train_split, "val": data.val_split}[role]


def sources_of(data: Data, role: str, classes: Classes) -> list[Source]:
    """Returns the sources of "train" (several with extra_train) or "val".

    classes: of CSV files, their class file or the names.
    """
    split, extra = _named_split(data, role), data.extra_train if role == "train" else ()
    if data.format == "csv":
        return [Source("csv", split=file, classes=classes) for file in (split, *extra)]
    roots = [data.root, *extra]
    return [Source(data.format, root, split, parent_label=data.parent_label) for root in roots]


def inspect_split(
    data: Data, role: str, classes: Classes, read: ReadSize = read_size
) -> tuple[DetectionIndex, Findings, list[str]]:
    """Reads all sources of a split as one.

    Returns:
      (what is sound, what is wrong, what was left out on purpose, one sentence each).

    Raises:
      DataError: nothing can be read of a source.
      ValueError: the classes of the sources do not agree, or a name is not among them.
    """
    findings, parts, remarks = Findings(), [], []
    for source in sources_of(data, role, classes):
        index, found = inspect_dataset(source, on_bad_box=data.on_bad_box, read=read)
        findings.extend(found)
        if index is None:
            findings.raise_if_any()
            raise DataError(f"{describe(data, role)}: nothing to read")
        parts.append(_chosen(data, index, remarks))
    if data.format in _NAMED_BY_BOXES and not data.labels_filter:
        names = all_classes(parts)
    else:
        names = parts[0].class_names
    extra = ["", *data.extra_train]
    parts = [
        use_classes(part, names, f"config.data.extra_train {what}")
        for part, what in zip(parts, extra, strict=False)
    ]
    return concatenate(parts), findings, remarks


def _chosen(data: Data, index: DetectionIndex, remarks: list[str]) -> DetectionIndex:
    """Applies class_map, then labels_filter."""
    if data.class_map:
        index, dropped = map_classes(index, [tuple(pair) for pair in data.class_map])
        if dropped:
            remarks.append(f"class_map left out {dropped} objects")
    names = tuple(data.labels_filter)
    if not names:
        return index
    unknown = [name for name in names if name not in index.class_names]
    if unknown and data.format not in _NAMED_BY_BOXES:
        remedy = class_remedy(unknown[0], index.class_names)
        raise InputError(
            f"config.data.labels_filter: the data set has no class {unknown[0]!r}; {remedy}"
        )
    index, dropped = select_classes(index, names)
    remarks.append(f"labels_filter left out {dropped} objects")
    return index


def agree(
    format: str, train: DetectionIndex, val: DetectionIndex
) -> tuple[DetectionIndex, DetectionIndex]:
    """Gives both splits the same classes in the same order, by name.

    Raises:
      ValueError: the validation set has a class that the training set does not know.
    """
    names = train.class_names
    if format in _NAMED_BY_BOXES:
        known = set(names) | set(val.class_names)
        # Names chosen by labels_filter are the same in both, and in an order of their own.
        names = names if known == set(names) else all_classes([train, val])
        train = use_classes(train, names, "the training set")
    val = use_classes(val, names, "the validation set")
    return train, dataclasses.replace(val, class_ids=train.class_ids)
