"""Data sets of a run: the images that a config names for training and for validation."""

import dataclasses
import hashlib
import logging
import os
import pathlib

import numpy as np

from m2det_jax.config.keys import Config, Data
from m2det_jax.data import (
    EFFECTS,
    KINDS,
    DataError,
    DetectionIndex,
    Findings,
    Source,
    check_dataset,
    read_classes,
    read_size,
    split_by_image,
)
from m2det_jax.data.classes import (
    all_classes,
    class_remedy,
    map_classes,
    select_classes,
    use_classes,
)
from m2det_jax.data.formats.sources import lists_classes
from m2det_jax.data.index import concatenate
from m2det_jax.data.sizes import ReadSize, SizeCache
from m2det_jax.datasets import record
from m2det_jax.datasets.record import ROLES, names_validation
from m2det_jax.errors import InputError
from m2det_jax.run.checksums import finished_steps

log = logging.getLogger("m2det_jax")

Classes = str | tuple[str, ...]


def load_datasets(
    config: Config, workdir: pathlib.Path, sizes: SizeCache | None = None
) -> tuple[DetectionIndex, DetectionIndex]:
    """Reads the training and the validation set that a config names; writes nothing.

    Where the config names no validation set, a part of the training images is split off: by seed,
    or the images that an earlier start in workdir has decided on, see `datasets.record`.

    Args:
        sizes: knows sizes of images; None: every header is read.

    Raises:
        FileNotFoundError: if the config names files that are not there.
        ValueError: if a file has malformed rows or the data do not fit; names all findings.
    """
    _require_files(config.data)
    class_names: tuple[str, ...] = ()
    if config.data.format == "csv":
        class_names = read_classes(config.data.classes_csv)
    read = sizes.read_size if sizes else read_size
    train = read_split(config, "train", class_names, read)
    if names_validation(config.data):
        val = read_split(config, "val", class_names, read)
        train, val = _agree(config.data.format, train, val)
    else:
        train, val = record.split_off(config, workdir, train)
    if not finished_steps(workdir):  # else the run is refused, see resume
        record.log_changes(config, workdir, training=train, validation=val)
    for what, index in (("training", train), ("validation", val)):
        log.info(
            "%s: %d images, %d objects, %d classes",
            what,
            index.num_images,
            len(index.boxes),
            len(index.class_names),
        )
        if len(index.regions):
            log.info("%s: %d ignore regions (crowds, don't-care areas), no part of training, "
                     "left out of account in evaluation", what, len(index.regions))  # fmt: skip
    return train, val


def read_split(
    config: Config, role: str, class_names: tuple[str, ...], read: ReadSize = read_size
) -> DetectionIndex:
    """Reads what a config names for "train" or "val", and logs what was left out or cut.

    Args:
        class_names: of CSV files.
        read: reads the size of an image.

    Raises:
        DataError: if anything is wrong for which training is refused.
    """
    index, findings, remarks = check_split(config.data, role, class_names, read)
    findings.raise_if_any()
    what = ROLES[role]
    for (kind, effect), count in sorted(findings.counts.items()):
        log.warning("%s: %s, %d times: %s", what, KINDS[kind], count, EFFECTS[effect])
    for remark in remarks:
        log.info("%s: %s", what, remark)
    return index


def check_datasets(config: Config) -> dict[str, tuple[DetectionIndex, Findings]]:
    """Reads like `load_datasets`, but refuses nothing that can be read, and writes nothing.

    Returns:
        {"train": (what is sound of the split, what is wrong with the rest), "val": the same}.

    Raises:
        FileNotFoundError: if the config names files that are not there.
        DataError: if nothing at all can be read.
    """
    data = config.data
    _require_files(data)
    classes = str(pathlib.Path(data.classes_csv).absolute())
    whole, findings, _ = check_split(data, "train", classes)
    if names_validation(data):
        val, val_findings, _ = check_split(data, "val", classes)
        train, val = _agree(data.format, whole, val)
    else:
        train, val = split_by_image(whole, data.val_fraction, config.seed)
        val_findings = Findings()
    return {"train": (train, findings), "val": (val, val_findings)}


def check_split(
    data: Data, role: str, classes: Classes, read: ReadSize = read_size
) -> tuple[DetectionIndex, Findings, list[str]]:
    """Reads all sources of a split as one, but refuses nothing that can be read.

    Args:
        role: "train" or "val".
        classes: of CSV files, their class file or the names.
        read: reads the size of an image.

    Returns:
        (what is sound, what is wrong, what was left out on purpose, one sentence each).

    Raises:
        DataError: if nothing can be read of a source.
        InputError: if the classes of the sources do not agree, or a name is not among them.
    """
    findings = Findings()
    parts: list[DetectionIndex] = []
    remarks: list[str] = []
    for source in _sources_of(data, role, classes):
        index, found = check_dataset(source, on_bad_box=data.on_bad_box, read=read)
        findings.extend(found)
        if index is None:
            findings.raise_if_any()
            raise DataError(f"{describe(data, role)}: nothing to read")
        parts.append(_chosen(data, index, remarks))
    if len(parts) == 1:
        return parts[0], findings, remarks
    if lists_classes(data.format) or data.labels_filter:
        names = parts[0].class_names
    else:
        names = all_classes(parts)
    extra = ["", *data.extra_train]
    parts = [
        use_classes(part, names, f"config.data.extra_train {what}")
        for part, what in zip(parts, extra, strict=False)
    ]
    return concatenate(parts), findings, remarks


def describe(data: Data, role: str) -> str:
    """Returns what a split is read from, in words."""
    split = _named_split(data, role)
    return split if data.format == "csv" else f"{data.format} {os.path.join(data.root, split)}"


def _named_split(data: Data, role: str) -> str:
    """Returns the split as the config names it, which for CSV is a file."""
    if data.format == "csv":
        return {"train": data.train_csv, "val": data.val_csv}[role]
    return {"train": data.train_split, "val": data.val_split}[role]


def _sources_of(data: Data, role: str, classes: Classes) -> list[Source]:
    """Returns the sources of "train" (several with extra_train) or "val"."""
    split, extra = _named_split(data, role), data.extra_train if role == "train" else ()
    if data.format == "csv":
        return [Source("csv", split=file, classes=classes) for file in (split, *extra)]
    roots = [data.root, *extra]
    return [Source(data.format, root, split, parent_label=data.parent_label) for root in roots]


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
    if unknown and lists_classes(data.format):
        remedy = class_remedy(unknown[0], index.class_names)
        raise InputError(
            f"config.data.labels_filter: the data set has no class {unknown[0]!r}; {remedy}"
        )
    index, dropped = select_classes(index, names)
    remarks.append(f"labels_filter left out {dropped} objects")
    return index


def _agree(
    format: str, train: DetectionIndex, val: DetectionIndex
) -> tuple[DetectionIndex, DetectionIndex]:
    """Gives both splits the same classes in the same order, by name.

    Raises:
        InputError: if the validation set has a class that the training set does not know.
    """
    names = train.class_names
    if not lists_classes(format):
        known = set(names) | set(val.class_names)
        # Names chosen by labels_filter are the same in both, and in an order of their own.
        names = names if known == set(names) else all_classes([train, val])
        train = use_classes(train, names, "the training set")
    if val.class_names != names:
        val = use_classes(val, names, "the validation set")
    return train, dataclasses.replace(val, class_ids=train.class_ids)


def _require_files(data: Data) -> None:
    if data.format != "csv":
        return
    keys = {"train_csv": data.train_csv, "classes_csv": data.classes_csv}
    if data.val_csv:
        keys["val_csv"] = data.val_csv
    missing = [f"{key}={path}" for key, path in keys.items() if not pathlib.Path(path).is_file()]
    if missing:
        given = " ".join(f"--config.data.{key}=FILE" for key in keys)
        raise FileNotFoundError(
            f"no such file: {', '.join(missing)}, seen from {os.getcwd()}; give {given}, or train "
            "on the built-in drawn set with `make demo` or `python -m m2det_jax.demo`"
        )


def fingerprint(index: DetectionIndex) -> str:
    """Returns a short text that differs where two data sets would train or evaluate differently.

    Of the images it takes file names and sizes, not folders or pixels: a data set may move.
    """
    names = "\n".join(pathlib.Path(path).name for path in index.image_paths)
    arrays = (index.sizes, index.boxes, index.labels, index.offsets, index.difficult)
    digest = hashlib.sha256(names.encode())
    for array in (*arrays, index.regions, index.region_labels, index.region_offsets):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{index.num_images} images, {len(index.labels)} objects, {digest.hexdigest()[:12]}"
