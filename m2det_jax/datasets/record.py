"""Record of a run's data in its workdir: the images for validation, and what all images were.

It is never a copy of the annotations, which are read anew at every start:
  split/val.txt       the images of a validation part that was split off, one a line
  data_record.json    names and digests by which a change is found and named, and where the data lay
  image_sizes.json    sizes of the images, see `SizeCache`
Workdirs of older versions have split/train.csv and split/val.csv in place of the first file. These
are left as they are, and read for what was decided and what the annotations were.
"""

import json
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np

from m2det_jax.config.keys import Config, Data
from m2det_jax.config.paths import RECORD, relative_paths
from m2det_jax.data import DetectionIndex, Findings, read_classes, split_by_image
from m2det_jax.data.changes import Note, align, describe_changes, image_names, note_images, shown
from m2det_jax.data.files import write_whole
from m2det_jax.data.formats.csv_boxes import RowReader
from m2det_jax.data.sizes import SizeCache
from m2det_jax.errors import InputError
from m2det_jax.run.checksums import finished_steps
from m2det_jax.run.outputs import Outputs

log = logging.getLogger("m2det_jax")

ROLES = {"train": "training", "val": "validation"}  # of the keys of a config, in words
_FORMAT = 1


def size_cache(workdir: pathlib.Path) -> SizeCache:
    """Returns the cache of image sizes of a workdir, empty where there is none."""
    return SizeCache(workdir / "image_sizes.json")


def names_validation(data: Data) -> bool:
    """Returns whether the config names a validation set, or leaves it to be split off."""
    return bool(data.val_csv if data.format == "csv" else data.val_split)


def image_root(data: Data) -> str:
    """Returns the folder from which images are named in a workdir."""
    folder = os.path.dirname(data.train_csv) if data.format == "csv" else data.root
    return os.path.abspath(folder)


def split_off(
    config: Config, workdir: pathlib.Path, whole: DetectionIndex
) -> tuple[DetectionIndex, DetectionIndex]:
    """Splits the training images in (training, validation), as an earlier start has decided.

    Images that were for validation stay so, and new ones are for training. Where nothing was
    decided, or another seed or fraction is given before anything is trained, the seed decides.

    Raises:
        InputError: if none of the images for validation is there, or there are no others.
    """
    listed, file = _listed(config, workdir)
    drawn = split_by_image(whole, config.data.val_fraction, config.seed)
    begun = bool(finished_steps(workdir))
    if listed is not None:
        names = image_names(whole.image_paths, image_root(config.data))
        found = align(listed, names)
        chosen = set(found.values())
        held_out = np.array([name in chosen for name in names])
        possible = held_out.any() and not held_out.all()
        asked = [config.seed, config.data.val_fraction]
        if begun or (possible and _read(workdir).get("split", asked) == asked):
            if not possible:
                raise InputError(
                    f"{file} lists {len(listed)} images for validation, of which {len(found)} are "
                    f"among the {whole.num_images} of the data set; give the data of this run, or "
                    "another --workdir"
                )
            _log_kept(file, listed, found, whole.num_images, config.data.val_fraction)
            return whole.subset(np.flatnonzero(~held_out)), whole.subset(np.flatnonzero(held_out))
        log.info("nothing is trained yet: config.seed, config.data.val_fraction or all images are "
                 "others than when %s was written, and it is decided anew", file)  # fmt: skip
    log.info("split off %d of %d images for validation, see %s", drawn[1].num_images,
             whole.num_images, _list_file(workdir))  # fmt: skip
    return drawn


def _log_kept(
    file: pathlib.Path, listed: list[str], found: dict[str, str], number: int, fraction: float
) -> None:
    log.info("validation: %d of %d images, those listed in %s", len(found), number, file)
    if not fraction / 2 <= len(found) / number <= 2 * fraction:
        log.warning("WARNING: these are %.3g%% of the images, and config.data.val_fraction is %g; "
                    "delete %s before anything is trained, or give another --workdir, to draw "
                    "anew", 100 * len(found) / number, fraction, file)  # fmt: skip
    if gone := [name for name in listed if name not in found]:
        log.warning("%d of the %d images listed in %s are no longer in the data %s", len(gone),
                    len(listed), file, shown(gone))  # fmt: skip


def _list_file(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "split" / "val.txt"


def _listed(config: Config, workdir: pathlib.Path) -> tuple[list[str] | None, pathlib.Path]:
    """Returns the names of the images for validation that were decided, and the file with them."""
    file = _list_file(workdir)
    if file.is_file():
        # People may write one: with whatever their editor puts at its beginning.
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
        return [name for name in text.split("\n") if name], file
    old = workdir / "split" / "val.csv"
    index = _read_copy(old)
    if index is None:
        return None, file
    return image_names(index.image_paths, image_root(config.data)), old


def what_changed(
    config: Config,
    workdir: pathlib.Path,
    what: str,
    index: DetectionIndex,
    before: str | None = None,
) -> str:
    """Returns how the "training" or "validation" set differs from before; "": nothing is known.

    Args:
        before: the fingerprint that it had then; None: compare with the last start.
    """
    noted = _read(workdir).get(what)
    if noted and before in (None, noted["fingerprint"]):
        old = noted["images"]
    else:
        role = next(role for role, word in ROLES.items() if word == what)
        old = _note_copy(config, workdir / "split" / f"{role}.csv")
    return ", ".join(describe_changes(old, _note(config, index))) if old else ""


def log_changes(config: Config, workdir: pathlib.Path, **parts: DetectionIndex) -> None:
    """Logs how the data of a run that has trained nothing yet differ from its last start."""
    if jax.process_index() != 0:
        return
    for what, index in parts.items():
        if found := what_changed(config, workdir, what, index):
            log.info("%s: %s since the last start", what, found)


def remember(
    config: Config,
    workdir: pathlib.Path,
    train: DetectionIndex,
    val: DetectionIndex,
    fingerprints: dict[str, str],
    sizes: SizeCache,
) -> None:
    """Notes the data of a run that is not refused; only process 0 writes.

    Args:
        fingerprints: of "training" and "validation", as checkpoints have them.
        sizes: of all images.

    Raises:
        OSError: if the disk is full, or the folder gone.
    """
    if jax.process_index() != 0:
        return
    split = None
    if not names_validation(config.data):
        split = [config.seed, config.data.val_fraction]
        _write_list(config, workdir, train, val)
    record: dict[str, Any] = {
        "format": _FORMAT,
        "split": split,
        "paths": relative_paths(config, workdir),
    }
    before = _read(workdir)
    for what, index in (("training", train), ("validation", val)):
        record[what] = before.get(what, {})
        if record[what].get("fingerprint") != fingerprints[what]:
            record[what] = {"fingerprint": fingerprints[what], "images": _note(config, index)}
    if record != before:
        write_whole(workdir / RECORD, json.dumps(record) + "\n")
    sizes.write()


def _write_list(
    config: Config, workdir: pathlib.Path, train: DetectionIndex, val: DetectionIndex
) -> None:
    root, file = image_root(config.data), _list_file(workdir)
    names = image_names(val.image_paths, root)
    listed, found_in = _listed(config, workdir)
    if listed is not None and found_in == file:
        # What was decided stays as it was written, also where images have moved or are missing.
        whole = names + image_names(train.image_paths, root)
        if set(align(listed, whole).values()) == set(names):
            return
    # Through the list of what runs wrote: one that people have made or changed is not replaced.
    name = file.relative_to(workdir).as_posix()
    Outputs(workdir, "train").write(name, os.fsencode("".join(f"{line}\n" for line in names)))


def _note(config: Config, index: DetectionIndex) -> Note:
    return note_images(index, image_root(config.data))


def _read(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the record of the last start; {}: none, or it is damaged or of another version."""
    try:
        record = json.loads((workdir / RECORD).read_bytes())
        notes = [
            record[what]["images"].values()
            for what in ROLES.values()
            if record[what]["fingerprint"]
        ]
        sound = all([type(x) for x in entry] == [int, int, str] for note in notes for entry in note)
        return record if record["format"] == _FORMAT and sound else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _note_copy(config: Config, file: pathlib.Path) -> Note:
    index = _read_copy(file)
    return {} if index is None else _note(config, index)


def _read_copy(file: pathlib.Path) -> DetectionIndex | None:
    """Reads the annotations that an older version copied, without sizes; None: there are none."""
    classes, findings = file.with_name("classes.csv"), Findings()
    if not (file.is_file() and classes.is_file()):
        return None
    rows = RowReader(file, read_classes(classes), findings).read()
    findings.raise_if_any()
    number = len(rows.image_paths)
    counts = np.bincount(rows.images, minlength=number)
    return DetectionIndex(
        image_paths=tuple(rows.image_paths),
        sizes=np.zeros((number, 2), np.int32),
        boxes=rows.numbers.astype(np.float32),
        labels=rows.labels.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        class_names=rows.class_names,
    )
