"""Data sets to evaluate on: a run's own validation set, or any other, matched by class names."""

import argparse
import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

from m2det_jax.config.keys import FORMATS, Config
from m2det_jax.config.paths import find_paths, missing_paths
from m2det_jax.data import (
    EFFECTS,
    KINDS,
    DataError,
    DetectionIndex,
    Findings,
    Source,
    check_dataset,
    read_classes,
)
from m2det_jax.data.classes import class_remedy, map_classes, select_classes, use_classes
from m2det_jax.datasets import record
from m2det_jax.datasets.loading import describe, read_split
from m2det_jax.datasets.record import names_validation
from m2det_jax.errors import InputError
from m2det_jax.trained import Restored

log = logging.getLogger("m2det_jax")


@dataclasses.dataclass(frozen=True)
class DataChoice:
    """A data set to evaluate on, as the flags name it; what is not given is as in the run.

    Attributes:
        csv: an annotations file: short for format "csv" with it as the split.
        format: a key of `data.formats.sources.FORMATS`, or a module of the user's.
        root: folder of the data set; with a format, "" is the current one.
        split: its name, as in training; "csv": the annotations file.
        classes: "csv": the class file; "": the classes of the model.
        on_bad_box: "error", "clip" or "drop", as in training.
        class_map: "FROM=TO" renames or merges, "FROM=" drops a class.
        labels_filter: classes to keep, after class_map.
        parent_label: "openimages": only classes under this one.

    Raises:
        InputError: if the fields contradict each other, or one is missing.
    """

    csv: str = ""
    format: str = ""
    root: str = ""
    split: str = ""
    classes: str = ""
    on_bad_box: str = ""
    class_map: Sequence[str] = ()
    labels_filter: Sequence[str] = ()
    parent_label: str = ""

    def __post_init__(self) -> None:
        if self.csv and (self.format or self.root or self.split):
            raise InputError(
                "--csv FILE is short for --format csv --split FILE; leave --csv or the others out"
            )
        given = [name for name, value in dataclasses.asdict(self).items() if value]
        if given and not self.names_data:
            raise InputError(
                f"--{given[0]} needs the data set that it is for: add --split NAME (csv, or "
                "coco: a name or the annotations file), with --format and --root unless they are "
                "those of the run"
            )

    @property
    def files(self) -> list[str]:
        """Paths of it that may be files, so that none of them is written to."""
        named = (self.csv, self.classes, self.split, os.path.join(self.root, self.split))
        return [path for path in named if path]

    @property
    def names_data(self) -> bool:
        """Whether a data set is named, in place of the run's own validation set."""
        return bool(self.csv or self.split)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of DataChoice."""
    data = parser.add_argument_group(
        "data set", "Default: the run's validation set. docs/data.md has the layout of each format."
    )
    add = data.add_argument
    add("--csv", default="", metavar="FILE", help="annotations; the same as --format csv --split")
    add("--format", default="", help=f"{', '.join(FORMATS)}, or a Python module of your own; "
        "default: that of the run")  # fmt: skip
    add("--root", default="", metavar="DIR", help="folder of the data set")
    add("--split", default="", metavar="NAME", help="name of the split; csv: the annotations")
    add("--classes", default="", metavar="FILE", help="csv: class file; default: the model's")
    add("--on_bad_box", default="", choices=("error", "clip", "drop"),
        help="boxes without area, or beyond their image; default: as the run")  # fmt: skip
    add("--class_map", nargs="+", default=(), metavar="FROM=TO",
        help="rename or merge classes; FROM= drops one; default: as the run")  # fmt: skip
    add("--labels_filter", nargs="+", default=(), metavar="CLASS",
        help="count only these; default: as the run")  # fmt: skip
    add("--parent_label", default="", help="openimages: only this class and those under it")


def read_data(
    choice: DataChoice, restored: Restored, workdir: pathlib.Path, *, trust: bool = False
) -> tuple[DetectionIndex, str]:
    """Reads a data set, with the classes of the model in their order; returns it and its name.

    The ids of a chosen one are its own: of the images, and of the categories, where None stands
    for a class that it does not have. Where it has no category ids they are the checkpoint's.

    Args:
        trust: a Python module that only the run names as its format may be imported.

    Raises:
        DataError: if anything is wrong for which training is refused.
        InputError: if there are no annotations, or the classes do not fit; says what to do.
    """
    if choice.names_data:
        if not (choice.csv or choice.format):
            refuse_untrusted(restored.config.data.format, trust, workdir)
        return _read_chosen(choice, restored)
    config, names, ids = restored.config, restored.class_names, restored.class_ids
    try:
        return load_validation(config, workdir, names, ids, trust=trust)
    except DataError as error:
        raise DataError(
            f"{error}; this is the run's own validation set: another data set is named by --csv, "
            "or by --format, --root and --split"
        ) from None


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
        ValueError: if the data are not there, have malformed rows, or are not to be trusted.
    """
    refuse_untrusted(config.data.format, trust, workdir)
    config = find_paths(config, workdir)
    data, read = config.data, record.size_cache(workdir).read_size
    own = names_validation(data)
    role, names = ("val" if own else "train"), class_names
    _require_there(config, role, workdir)
    if data.format == "csv" and (data.class_map or data.labels_filter):
        names = read_classes(data.classes_csv)
    elif data.format != "csv" and not own:
        names = ()
    index, what = read_split(config, role, names, read), describe(data, role)
    if not own:
        index, what = record.split_off(config, workdir, index)[1], f"part of {what}"
    index = use_classes(index, class_names, f"the validation set {what}")
    if changes := record.what_changed(config, workdir, "validation", index):
        log.warning("the validation set is not what it was in training: %s", changes)
    return dataclasses.replace(index, class_ids=class_ids), what


def refuse_untrusted(format: str, trust: bool, workdir: pathlib.Path) -> None:
    """Refuses to import a Python module that only a workdir names: it is data, not code.

    Raises:
        InputError: if the format is a module, and not trusted.
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


def _read_chosen(choice: DataChoice, restored: Restored) -> tuple[DetectionIndex, str]:
    data = restored.config.data
    pairs = _pairs(choice.class_map) or [tuple(pair) for pair in data.class_map]
    source = _source(choice, restored, pairs)
    what = os.path.join(source.root, source.split)
    what = what if source.format == "csv" else f"{source.format} {what}"
    found, findings = check_dataset(source, on_bad_box=choice.on_bad_box or data.on_bad_box)
    index = _sound(found, findings, source, what)
    for (kind, effect), count in sorted(findings.counts.items()):
        log.warning("%s: %s, %d times: %s", what, KINDS[kind], count, EFFECTS[effect])
    index, dropped = map_classes(index, pairs)
    index, more = _filtered(index, choice.labels_filter, tuple(data.labels_filter), what)
    if dropped + more:
        log.info("%s: %d objects of classes that do not count are left out", what, dropped + more)
    return _matched(index, restored, what), what


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, new_name = text.partition("=")
        if not name or not equals:
            raise InputError(f"--class_map {text!r}: give FROM=TO, or FROM= to drop a class")
        pairs.append((name, new_name))
    return pairs


def _source(choice: DataChoice, restored: Restored, pairs: list[tuple[str, str]]) -> Source:
    data = restored.config.data
    format = "csv" if choice.csv else choice.format or data.format
    if format != "csv":
        root = choice.root if choice.root or choice.format else data.root
        parent = choice.parent_label or (data.parent_label if format == data.format else "")
        return Source(format, root, choice.split, parent_label=parent)
    classes: str | tuple[str, ...] = choice.classes
    if not classes:
        # What the run has mapped or left out has other names than the model's.
        file = pathlib.Path(data.classes_csv).absolute()
        if (pairs or data.labels_filter) and data.format == "csv" and file.is_file():
            classes = str(file)
        else:
            classes = tuple(dict.fromkeys([*restored.class_names, *(name for name, _ in pairs)]))
    return Source("csv", choice.root, choice.csv or choice.split, classes)


def _sound(
    index: DetectionIndex | None, findings: Findings, source: Source, what: str
) -> DetectionIndex:
    """Returns the index, or raises DataError for findings and InputError without annotations."""
    refused = [finding for finding in findings if finding.effect == "refuse"]
    unannotated = index is not None and not len(index.labels)
    if unannotated and {finding.kind for finding in refused} <= {"no-rows"}:
        raise InputError(
            f"{what}: no annotated objects, so there is nothing to compare with; "
            "`python -m m2det_jax.predict` detects objects in images without annotations"
        )
    try:
        findings.raise_if_any()
    except DataError as error:
        text = refused[0].text if len(refused) == 1 else str(error)
        given = source.format != "csv" or isinstance(source.classes, str)
        if not given and "unknown-class" in {finding.kind for finding in refused}:
            text += (
                "; the classes are those of the model: give the file's own with --classes FILE, "
                "for --class_map and --labels_filter to choose from"
            )
        raise DataError(text) from None
    if index is None:
        raise DataError(f"{what}: nothing to read")
    return index


def _filtered(
    index: DetectionIndex, given: Sequence[str], of_run: tuple[str, ...], what: str
) -> tuple[DetectionIndex, int]:
    """Keeps the classes of --labels_filter, else those of the run's that the data set has."""
    for name in given:
        if name not in index.class_names:
            remedy = class_remedy(name, index.class_names)
            raise InputError(f"--labels_filter: {what} has no class {name!r}; {remedy}")
    names = given or [name for name in of_run if name in index.class_names]
    return select_classes(index, tuple(dict.fromkeys(names))) if names else (index, 0)


def _matched(index: DetectionIndex, restored: Restored, what: str) -> DetectionIndex:
    """Gives the index the classes of the model."""
    names = restored.class_names
    used = {*index.labels.tolist(), *index.region_labels.tolist()}
    unknown = [n for k, n in enumerate(index.class_names) if k in used and n not in names]
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise InputError(
            f"{what} has classes that the model has not: {', '.join(unknown[:10])}{more} "
            f"({unknown[0]}: {_remedy(unknown[0], names)}); rename them with --class_map "
            f"'{unknown[0]}=CLASS', drop them with --class_map '{unknown[0]}=', or name those to "
            "keep with --labels_filter"
        )
    own = dict(zip(index.class_names, index.class_ids, strict=False))
    if absent := [name for name in names if name not in index.class_names]:
        log.info("%s: no classes %s; what is detected of them does not count%s", what,
                 ", ".join(absent), " and is not in the results" if own else "")  # fmt: skip
    index, _ = select_classes(index, names)
    ids = tuple(own.get(name) for name in names) if own else restored.class_ids
    if not len(index.labels):
        raise InputError(f"{what}: no object is of a class of the model ({', '.join(names[:10])})")
    return dataclasses.replace(index, class_ids=ids)


def _remedy(name: str, names: tuple[str, ...]) -> str:
    """Returns which class may be meant."""
    remedy = class_remedy(name, names)
    return remedy.partition(";")[0]  # there is no class file to correct
