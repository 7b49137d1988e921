"""Converts data sets between CSV, COCO, Pascal VOC, KITTI, Open Images and YOLO.

    python -m m2det_jax.convert_dataset --from csv --input data --split train.csv --split val.csv \
        --classes classes.csv --to coco --output data_coco
    python -m m2det_jax.convert_dataset --from voc --input VOCdevkit/VOC2012 --split train \
        --split val --to yolo --output voc_yolo

The data set is checked as training does it. What the new format cannot hold is listed. CSV and COCO
name the images where they are; the other formats want them in folders of their own, where they are
put as hard links. docs/data.md says how each format is laid out.
"""

import argparse
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from m2det_jax.config.keys import FORMATS
from m2det_jax.errors import BUG, InputError, in_words

if TYPE_CHECKING:
    from m2det_jax.data import DetectionIndex
    from m2det_jax.data.formats.write import Written

_VERB = "convert-dataset"
_STAGED = ".m2det-partial"  # folder for files on their way into a folder that is not empty


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "m2det convert-dataset", description=__doc__, formatter_class=raw
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="FORMAT",
        help=f"{', '.join(FORMATS)}, or a Python module of your own")  # fmt: skip
    add("--to", dest="target", required=True, choices=FORMATS)
    add("--input", default="", help="folder of the data set; default: the current one")
    add("--split", action="append", required=True, dest="splits",
        help="its name, or the CSV or JSON file; repeat it for more")  # fmt: skip
    add("--as", action="append", default=[], dest="names",
        help="name of each split in the output, in the same order; default: the same")  # fmt: skip
    add("--classes", default="", help="csv: the class file")
    add("--output", required=True, help="folder for the new data set")
    add("--copy_images", action="store_true", help="copy the images, also for csv and coco")
    add("--force", action="store_true",
        help="write into a folder that is not empty; no file of yours is replaced")  # fmt: skip
    add("--on_bad_box", choices=("error", "clip", "drop"), default="error",
        help="boxes without area, or beyond their image (default: refuse)")  # fmt: skip
    add("--class_map", nargs="+", default=[], metavar="FROM=TO",
        help="rename or merge classes; FROM= drops one")  # fmt: skip
    add("--labels_filter", nargs="+", default=[], metavar="CLASS", help="keep only these")
    add("--parent_label", default="", help="openimages: only this class and those under it")
    return parser.parse_args(argv)


def convert_dataset(options: argparse.Namespace) -> None:
    """Reads a data set, lists what the new format cannot hold, and writes it.

    Raises:
        ValueError: if the data are refused, or options or output do not fit.
        OSError: if files cannot be written.
    """
    # Imported late: `--help` and a misspelt flag answer at once.
    from m2det_jax.data.formats import sources
    from m2det_jax.data.formats.write import not_held

    output = pathlib.Path(options.output)
    _check_options(options)
    names = _output_names(options)
    _check_output(output, options)
    splits = dict(zip(names, _read(options), strict=True))
    for name, index in splits.items():
        print(
            f"{name}: {index.num_images} images, {len(index.boxes)} objects, "
            f"{len(index.class_names)} classes"
        )
        inside = [path for path in index.image_paths if _is_inside(path, output)]
        if inside:
            raise InputError(f"--output {output} holds images of the input, such as {inside[0]}")
    source = sources.FORMATS.get(options.source)
    if source is not None and source.not_read:
        print(f"not read of {options.source}: {source.not_read}")
    for name, index in splits.items():
        for loss in not_held(index, options.target):
            print(f"{name}: not held by {options.target}: {loss}")
    done = _write(splits, options, output)
    images = [
        f"{count} {what}"
        for count, what in (
            (done.referred, "named where they are"),
            (done.linked, "hard links"),
            (done.copied, "copies"),
            (done.renamed, "with a new name"),
        )
        if count
    ]
    print(f"written: {options.target} in {output}; images: {', '.join(images) or 'none'}")


def _write(
    splits: dict[str, "DetectionIndex"], options: argparse.Namespace, output: pathlib.Path
) -> "Written":
    """Writes into a folder beside or in the output, then moves the files; returns their numbers."""
    from m2det_jax.data.formats.write import write_dataset
    from m2det_jax.run.outputs import Outputs, new_folder

    def files_in(folder: pathlib.Path) -> list[str]:
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    def write(folder: pathlib.Path) -> "Written":
        return write_dataset(splits, options.target, folder, copy_images=options.copy_images)

    if not output.exists():
        with new_folder(output) as staged:
            done = write(staged)
            Outputs(staged, _VERB).record(*files_in(staged))
        return done
    outputs, staged = Outputs(output, _VERB), output / _STAGED
    shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed
    staged.mkdir()
    try:
        done = write(staged)
        names = [n for n in files_in(staged) if not _is_same_file(staged / n, output / n)]
        outputs.claim(names, [path for index in splits.values() for path in index.image_paths])
        for name in names:
            with outputs.replacing(name) as partial:
                (staged / name).replace(partial)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return done


def _is_same_file(staged: pathlib.Path, target: pathlib.Path) -> bool:
    """Returns whether a hard link to the same image is there already."""
    return not target.is_symlink() and target.exists() and os.path.samefile(staged, target)


def _output_names(options: argparse.Namespace) -> list[str]:
    names = options.names or [_plain_name(split) for split in options.splits]
    # Some file systems take two names for one that differ in case.
    if len(names) != len(options.splits) or len({name.casefold() for name in names}) < len(names):
        raise InputError(
            f"{len(options.splits)} splits and the names {', '.join(names)}: give --as once for "
            "each --split, all different"
        )
    wrong = [name for name in names if not name or set(name) & set("/\\") or name.startswith(".")]
    if wrong:
        raise InputError(f"--as {wrong[0]!r}: a name without / is needed; give --as")
    if "classes" in map(str.casefold, names):
        raise InputError("--as classes: classes.csv is the list of the classes; give --as")
    return names


def _plain_name(split: str) -> str:
    name = pathlib.PurePath(split).name
    for ending in (".csv", ".json"):
        name = name.removesuffix(ending)
    return name.removeprefix("instances_")


def _check_output(output: pathlib.Path, options: argparse.Namespace) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output}: there is a file of that name")
    # Files that a killed run left do not count.
    full = output.is_dir() and any(path.name != _STAGED for path in output.iterdir())
    if full and not options.force:
        raise InputError(f"--output {output}: not empty; give another folder, or --force")
    if output.is_dir() and os.path.samefile(output, options.input or "."):
        raise InputError(f"--output {output}: that is the input; give another folder")


def _is_inside(path: str, folder: pathlib.Path) -> bool:
    """Returns whether a file lies in a folder, by whatever names and links they are given."""
    return pathlib.Path(path).resolve().is_relative_to(folder.resolve())


def _read(options: argparse.Namespace) -> "list[DetectionIndex]":
    """Returns the splits, with the same classes."""
    from m2det_jax.data import EFFECTS, KINDS, Source, check_dataset
    from m2det_jax.data.classes import all_classes, map_classes, select_classes, use_classes
    from m2det_jax.data.formats.sources import lists_classes

    pairs = [tuple(pair.partition("=")[::2]) for pair in options.class_map]
    splits: list[DetectionIndex] = []
    found: set[str] = set()
    for split in options.splits:
        source = Source(options.source, options.input, split, options.classes, options.parent_label)
        index, findings = check_dataset(source, on_bad_box=options.on_bad_box)
        findings.raise_if_any()
        if index is None:
            raise InputError(f"{split}: nothing to read")
        for (kind, effect), count in sorted(findings.counts.items()):
            print(f"{split}: {KINDS[kind]}, {count} times: {EFFECTS[effect]}")
        _check_file_names(index.image_paths)
        found.update(index.class_names)
        index, dropped = map_classes(index, pairs)
        found.update(index.class_names)
        if options.labels_filter:
            known = [name for name in options.labels_filter if name in index.class_names]
            index, more = select_classes(index, known)
            dropped += more
        if dropped:
            print(f"{split}: {dropped} objects of other classes left out")
        splits.append(index)
    _check_chosen(options, found, splits)
    names = splits[0].class_names if lists_classes(options.source) else all_classes(splits)
    return [
        use_classes(index, names, f"--split {split}")
        for split, index in zip(options.splits, splits, strict=True)
    ]


def _check_options(options: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together, before anything is read."""
    for pair in options.class_map:
        if not pair.partition("=")[0] or "=" not in pair:
            raise InputError(f"--class_map {pair}: give FROM=TO, or FROM= to drop a class")
    filtered = options.labels_filter
    if twice := [name for name in filtered if filtered.count(name) > 1]:
        raise InputError(f"--labels_filter: {twice[0]} is there twice; name it once")
    if options.source == "csv" and not options.classes:
        raise InputError("--from csv needs --classes, the file with rows class_name,id")
    if options.source != "csv" and options.classes:
        raise InputError(f"--classes {options.classes}: is for --from csv; leave it out")
    if options.parent_label and options.source != "openimages":
        raise InputError(f"--parent_label {options.parent_label}: is for --from openimages")


def _check_file_names(paths: Sequence[str]) -> None:
    """Raises InputError for a name that the text files of a data set cannot hold."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            what = f"{os.fsencode(path)!r}: no UTF-8 name; rename the image"
            raise InputError(what) from None


def _check_chosen(
    options: argparse.Namespace, found: set[str], splits: "list[DetectionIndex]"
) -> None:
    """Raises InputError where a class that an option names is in no split, or none is left.

    Args:
        found: the classes of all splits, before and after --class_map.
    """
    from m2det_jax.data.classes import class_remedy

    mapped = [pair.partition("=")[0] for pair in options.class_map]
    for flag, names in (("class_map", mapped), ("labels_filter", options.labels_filter)):
        if unknown := [name for name in names if name not in found]:
            remedy = class_remedy(unknown[0], tuple(sorted(found)))
            raise InputError(f"--{flag}: no split has the class {unknown[0]}; {remedy}")
    if not any(index.class_names for index in splits):
        raise InputError("--class_map drops all classes; keep one")


def cli(argv: Sequence[str] | None = None) -> None:
    """Entry point of `m2det-convert-dataset`."""
    options = parse(argv)
    try:
        convert_dataset(options)
    except (InputError, OSError) as error:
        if os.environ.get("M2DET_TRACEBACK"):
            raise
        from m2det_jax.pages.markup import printable_lines

        sys.exit(printable_lines(f"error: {in_words(error)}"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        error.add_note(BUG)
        raise


if __name__ == "__main__":
    cli()
