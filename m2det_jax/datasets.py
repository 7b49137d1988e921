"""Which images a run trains on and which it is validated on."""

import dataclasses
import hashlib
import logging
import os
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from m2det_jax import splits
from m2det_jax.data import (
    EFFECTS,
    KINDS,
    AugmentSettings,
    DetectionIndex,
    Findings,
    read_classes,
    read_csv,
    split_by_image,
    write_classes,
    write_csv,
)
from m2det_jax.data.combine import use_classes
from m2det_jax.devices import wait_for_all

log = logging.getLogger("m2det_jax")


def load_datasets(
    config: ConfigDict, workdir: pathlib.Path
) -> tuple[DetectionIndex, DetectionIndex]:
    """Reads the training and the validation set that a config names.

    Where the config names no validation set, a part of the training images is split off by seed
    and noted in workdir/split, from where a resumed run takes it again.

    Raises:
      ValueError: a file is missing or has malformed rows; all findings are in the message.
    """
    _require_files(config.data)
    class_names = ()
    if config.data.format == "csv":
        class_names = read_classes(config.data.classes_csv)
    train = read_split(config, "train", class_names)
    if splits.names_validation(config.data):
        val = read_split(config, "val", class_names)
        train, val = splits.agree(config.data.format, train, val)
    elif config.data.format == "csv":
        train, val = _split_csv(config, workdir, train)
    else:
        train, val = _split(config, workdir, train)
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


def load_validation(
    config: ConfigDict,
    workdir: pathlib.Path,
    class_names: tuple[str, ...],
    class_ids: tuple[int | str, ...] = (),
) -> tuple[DetectionIndex, str]:
    """Reads the validation set of a finished run; returns it and what it was read from.

    Args:
      class_names, class_ids: of the checkpoint.
    """
    data, split = config.data, workdir / "split" / "val.csv"
    if data.format == "csv" and not data.val_csv:
        index, what = read_csv(split, class_names), str(split)
    elif splits.names_validation(data):
        names = class_names
        if data.format == "csv" and (data.class_map or data.labels_filter):
            names = read_classes(data.classes_csv)
        index = read_split(config, "val", names)
        what = splits.describe(data, "val")
    else:
        index = _split(config, workdir, read_split(config, "train", ()))[1]
        what = f"part of {splits.describe(data, 'train')}"
    index = use_classes(index, class_names, f"the validation set {what}")
    return dataclasses.replace(index, class_ids=class_ids), what


def read_split(config: ConfigDict, role: str, class_names: tuple[str, ...]) -> DetectionIndex:
    """Reads what a config names for "train" or "val", and logs what was left out or cut.

    Raises:
      DataError: something is wrong for which training is refused.
    """
    index, findings, remarks = splits.inspect_split(config.data, role, class_names)
    findings.raise_if_any()
    what = {"train": "training", "val": "validation"}[role]
    for (kind, effect), count in sorted(findings.counts.items()):
        log.warning("%s: %s, %d times: %s", what, KINDS[kind], count, EFFECTS[effect])
    for remark in remarks:
        log.info("%s: %s", what, remark)
    return index


def inspect_datasets(config: ConfigDict) -> dict[str, tuple[DetectionIndex, Findings]]:
    """Reads like `load_datasets`, but refuses nothing that can be read, and writes nothing.

    Returns:
      {"train": (what is sound of the split, what is wrong with the rest), "val": the same}.

    Raises:
      FileNotFoundError: the config names files that are not there.
      DataError: nothing at all can be read.
    """
    data = config.data
    _require_files(data)
    classes = str(pathlib.Path(data.classes_csv).absolute())
    whole, findings, _ = splits.inspect_split(data, "train", classes)
    if splits.names_validation(data):
        val, val_findings, _ = splits.inspect_split(data, "val", classes)
        train, val = splits.agree(data.format, whole, val)
    else:
        train, val = split_by_image(whole, data.val_fraction, config.seed)
        val_findings = Findings()
    return {"train": (train, findings), "val": (val, val_findings)}


def _require_files(data: ConfigDict) -> None:
    if data.format != "csv":
        return
    keys = ["train_csv", "classes_csv"] + (["val_csv"] if data.val_csv else [])
    missing = [f"{key}={data[key]}" for key in keys if not pathlib.Path(data[key]).is_file()]
    if missing:
        given = " ".join(f"--config.data.{key}=FILE" for key in keys)
        raise FileNotFoundError(
            f"no such file: {', '.join(missing)}; give {given}, or train on the built-in drawn "
            "set with `make demo` or `python -m m2det_jax.demo`"
        )


def _split_csv(config: ConfigDict, workdir: pathlib.Path, whole: DetectionIndex):
    """Writes both parts as CSV files where there are none yet, and reads them."""
    folder, class_names = workdir / "split", whole.class_names
    files = folder / "train.csv", folder / "val.csv"
    if jax.process_index() == 0 and not all(file.is_file() for file in files):
        parts = split_by_image(whole, config.data.val_fraction, config.seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_classes(class_names, folder / "classes.csv")
        for part, file in zip(parts, files, strict=True):
            # A file cut short by a kill would be taken for whole.
            beside = file.with_suffix(".tmp")
            write_csv(part, beside)
            beside.replace(file)
        log.info("split off %d of %d images for validation, see %s", parts[1].num_images,
                 whole.num_images, folder)  # fmt: skip
    wait_for_all("the validation split is written")
    return tuple(read_csv(file, class_names) for file in files)


def _split(config: ConfigDict, workdir: pathlib.Path, whole: DetectionIndex):
    """Splits by seed, and notes in workdir/split/val.txt which images are for validation.

    CSV files cannot hold all that other formats do; the split is a function of data and config.
    """
    train, val = split_by_image(whole, config.data.val_fraction, config.seed)
    file = workdir / "split" / "val.txt"
    root = pathlib.Path(config.data.root).absolute()
    text = "".join(f"{os.path.relpath(path, root)}\n" for path in val.image_paths)
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    wait_for_all("all processes have looked for the validation split")
    if before is not None:
        if before != text:
            raise ValueError(
                f"{file}: the data set, config.seed or config.data.val_fraction is not what it was "
                "when this validation part was split off; use another --workdir"
            )
        return train, val
    if jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".tmp")
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    wait_for_all("the validation split is written")
    log.info("split off %d of %d images for validation, see %s", val.num_images,
             whole.num_images, file)  # fmt: skip
    return train, val


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


def fill_colour(config: ConfigDict) -> tuple[int, int, int]:
    """Returns what the network input shows where there is no image: the mean, RGB."""
    return tuple(round(value) for value in config.data.mean)


def augment_settings(config: ConfigDict) -> AugmentSettings:
    """Returns the plain values of config.augment and of the resize that follows.

    Raises:
      ValueError: a value or the order of the steps is impossible; names the key.
    """
    try:
        return AugmentSettings(
            image_size=tuple(config.data.image_size),
            mode=config.data.resize,
            fill=fill_colour(config),
            **config.augment.to_dict(),
        )
    except ValueError as error:
        raise ValueError(f"config.augment.{error}") from None


def train_sizes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """Returns the (height, width) that training steps may have; one, or those of train_sizes."""
    sizes = config.data.train_sizes or (config.data.image_size,)
    return tuple((int(height), int(width)) for height, width in sizes)
