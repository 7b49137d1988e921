"""Which images a run trains on and which it is validated on."""

import dataclasses
import hashlib
import logging
import os
import pathlib

import numpy as np

from m2det_jax.config.keys import FORMATS, Config, Data
from m2det_jax.config.paths import find_paths, missing_paths
from m2det_jax.data import (
    EFFECTS,
    KINDS,
    DetectionIndex,
    Findings,
    read_classes,
    read_size,
    split_by_image,
)
from m2det_jax.data.reading.combine import use_classes
from m2det_jax.data.reading.size_checks import ReadSize
from m2det_jax.data.size_cache import SizeCache
from m2det_jax.datasets import record, splits
from m2det_jax.errors import InputError
from m2det_jax.run.checksums import finished_steps

log = logging.getLogger("m2det_jax")


def load_datasets(
    config: Config, workdir: pathlib.Path, sizes: SizeCache | None = None
) -> tuple[DetectionIndex, DetectionIndex]:
    """Reads the training and the validation set that a config names; writes nothing.

    Where the config names no validation set, a part of the training images is split off: by seed,
    or the images that an earlier start in workdir has decided on, see `datasets.record`.

    Args:
      sizes: knows sizes of images; None: every header is read.

    Raises:
      ValueError: a file is missing or has malformed rows; all findings are in the message.
    """
    _require_files(config.data)
    class_names = ()
    if config.data.format == "csv":
        class_names = read_classes(config.data.classes_csv)
    read = sizes.read_size if sizes else read_size
    train = read_split(config, "train", class_names, read)
    if splits.names_validation(config.data):
        val = read_split(config, "val", class_names, read)
        train, val = splits.agree(config.data.format, train, val)
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


def load_validation(
    config: Config,
    workdir: pathlib.Path,
    class_names: tuple[str, ...],
    class_ids: tuple[int | str, ...] = (),
    *,
    trust: bool = False,
) -> tuple[DetectionIndex, str]:
    """Reads the validation set of a finished run; returns it and what it was read from.

    Args:
      class_names, class_ids: of the checkpoint.
      trust: a Python module that the config names as data.format may be imported.

    Raises:
      ValueError: the data are not there, have malformed rows, or are not to be trusted.
    """
    refuse_untrusted(config.data.format, trust, workdir)
    config = find_paths(config, workdir)
    data, read = config.data, record.size_cache(workdir).read_size
    own = splits.names_validation(data)
    role, names = ("val" if own else "train"), class_names
    _require_there(config, role, workdir)
    if data.format == "csv" and (data.class_map or data.labels_filter):
        names = read_classes(data.classes_csv)
    elif data.format != "csv" and not own:
        names = ()
    index, what = read_split(config, role, names, read), splits.describe(data, role)
    if not own:
        index, what = record.split_off(config, workdir, index)[1], f"part of {what}"
    index = use_classes(index, class_names, f"the validation set {what}")
    if changes := record.what_changed(config, workdir, "validation", index):
        log.warning("the validation set is not what it was in training: %s", changes)
    return dataclasses.replace(index, class_ids=class_ids), what


def refuse_untrusted(format: str, trust: bool, workdir: pathlib.Path) -> None:
    """Refuses to import a Python module that only a workdir names: it is data, not code.

    Raises:
      ValueError: the format is a module, and not trusted.
    """
    if format not in FORMATS and not trust:
        raise InputError(
            f"{workdir} names the Python module {format!r} as config.data.format, and importing it "
            "runs its code; give --trust if you trust it"
        )


def _require_there(config: Config, role: str, workdir: pathlib.Path) -> None:
    missing = missing_paths(config, role)
    if not missing:
        return
    remedy = "give --csv FILE" if config.data.format == "csv" else "give --root DIR"
    if role == "train":
        keys = " ".join(f"--config.data.{entry.partition('=')[0]}=PATH" for entry in missing)
        remedy = (
            "start the run once more with the place where they lie now, so that its validation "
            f"part is found: m2det-train --workdir {workdir} {keys}"
        )
    if not all(os.path.isabs(entry.partition("=")[2]) for entry in missing):
        remedy = f"start the command where the run was started, or {remedy}"
    raise InputError(
        f"{workdir}: the data of the run are not there, {', '.join(missing)}, seen from "
        f"{os.getcwd()}; {remedy}"
    )


def read_split(
    config: Config, role: str, class_names: tuple[str, ...], read: ReadSize = read_size
) -> DetectionIndex:
    """Reads what a config names for "train" or "val", and logs what was left out or cut.

    Args:
      read: gives the size of an image.

    Raises:
      DataError: something is wrong for which training is refused.
    """
    index, findings, remarks = splits.inspect_split(config.data, role, class_names, read)
    findings.raise_if_any()
    what = {"train": "training", "val": "validation"}[role]
    for (kind, effect), count in sorted(findings.counts.items()):
        log.warning("%s: %s, %d times: %s", what, KINDS[kind], count, EFFECTS[effect])
    for remark in remarks:
        log.info("%s: %s", what, remark)
    return index


def inspect_datasets(config: Config) -> dict[str, tuple[DetectionIndex, Findings]]:
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
