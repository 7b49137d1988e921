"""Which images a run trains on and which it is validated on."""

import hashlib
import logging
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from m2det_jax.data import (
    AugmentSettings,
    DetectionIndex,
    Findings,
    Source,
    inspect_dataset,
    read_classes,
    read_csv,
    split_by_image,
    write_classes,
    write_csv,
)
from m2det_jax.devices import wait_for_all

log = logging.getLogger("m2det_jax")


def load_datasets(
    config: ConfigDict, workdir: pathlib.Path
) -> tuple[DetectionIndex, DetectionIndex]:
    """Reads the training and the validation set that a config names.

    Where config.data.val_csv is "", a part of the training images is split off by seed, and both
    parts are written to workdir/split, from where a resumed run takes them again.

    Raises:
      ValueError: a file is missing or has malformed rows; all findings are in the message.
    """
    data = config.data
    _require_files(data)
    class_names = read_classes(data.classes_csv)
    if data.val_csv:
        train, val = read_csv(data.train_csv, class_names), read_csv(data.val_csv, class_names)
    else:
        train, val = _split(config, workdir, class_names)
    for what, index in (("training", train), ("validation", val)):
        log.info(
            "%s: %d images, %d objects, %d classes",
            what,
            index.num_images,
            len(index.boxes),
            len(class_names),
        )
    return train, val


def inspect_datasets(config: ConfigDict) -> dict[str, tuple[DetectionIndex, Findings]]:
    """Reads like `load_datasets`, but refuses nothing and writes nothing.

    Returns:
      {"train": (what is sound of the split, what is wrong with the rest), "val": the same}.

    Raises:
      FileNotFoundError: the config names files that are not there.
    """
    data = config.data
    _require_files(data)
    classes = str(pathlib.Path(data.classes_csv).absolute())
    splits = {}
    for name, file in (("train", data.train_csv), ("val", data.val_csv)):
        if file:
            splits[name] = inspect_dataset(Source("csv", split=file, classes=classes))
    if "val" not in splits:
        whole, findings = splits["train"]
        parts = split_by_image(whole, data.val_fraction, config.seed)
        splits = {"train": (parts[0], findings), "val": (parts[1], Findings())}
    return splits


def _require_files(data: ConfigDict) -> None:
    keys = ["train_csv", "classes_csv"] + (["val_csv"] if data.val_csv else [])
    missing = [f"{key}={data[key]}" for key in keys if not pathlib.Path(data[key]).is_file()]
    if missing:
        given = " ".join(f"--config.data.{key}=FILE" for key in keys)
        raise FileNotFoundError(
            f"no such file: {', '.join(missing)}; give {given}, or train on the built-in drawn "
            "set with `make demo` or `python -m m2det_jax.demo`"
        )


def _split(config: ConfigDict, workdir: pathlib.Path, class_names: tuple[str, ...]):
    folder = workdir / "split"
    files = folder / "train.csv", folder / "val.csv"
    if not all(file.is_file() for file in files):
        whole = read_csv(config.data.train_csv, class_names)
        parts = split_by_image(whole, config.data.val_fraction, config.seed)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_classes(class_names, folder / "classes.csv")
            for part, file in zip(parts, files, strict=True):
                # A file cut short by a kill would be taken for whole.
                beside = file.with_suffix(".tmp")
                write_csv(part, beside)
                beside.replace(file)
        wait_for_all("the validation split is written")
        log.info("split off %d of %d images for validation, see %s", parts[1].num_images,
                 whole.num_images, folder)  # fmt: skip
    return tuple(read_csv(file, class_names) for file in files)


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
