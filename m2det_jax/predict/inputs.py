"""Input images of prediction: files, folders and COCO image lists."""

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from m2det_jax.data import DetectionIndex, read_size
from m2det_jax.data.errors import Findings
from m2det_jax.data.file_names import distinct_names
from m2det_jax.data.files import read_text, resolve_path
from m2det_jax.data.formats.parsers import ParseError, stream_lists
from m2det_jax.data.images import IMAGE_SUFFIXES
from m2det_jax.errors import InputError
from m2det_jax.run.outputs import Outputs

log = logging.getLogger("m2det_jax")

_LONGEST_NAME = 200  # bytes; file systems allow 255, and a number may be added


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images to detect objects in.

    Attributes:
        paths: N absolute paths.
        ids: N image ids of an image list; (): the positions 0..N-1.
        lists: the image lists that were read.
    """

    paths: tuple[str, ...]
    ids: tuple[int | str, ...] = ()
    lists: tuple[str, ...] = ()


def find_inputs(paths: Sequence[str | os.PathLike], root: str, outputs: Outputs) -> Inputs:
    """Returns the images of files, folders (to any depth, in order of name), or an image list.

    Other files of a folder are counted in one log line. Pictures of an earlier run are ignored.

    Args:
        paths: files and folders, or a single .json file with COCO's "images".
        root: folder of the images of a list; "": the folder of the list.
        outputs: the output files of the command.

    Raises:
        InputError: if a path does not exist, a folder holds no image, or a list is not valid. The
            message names all such paths.
    """
    lists = [path for path in map(pathlib.Path, paths) if path.suffix.lower() == ".json"]
    if lists and len(paths) > 1:
        raise InputError(f"{lists[0]}: give an image list alone, got {len(paths)} paths")
    if root and not lists:
        raise InputError("--root: needs a COCO image list, whose images are in that folder")
    if lists:
        return read_image_list(lists[0], root)
    found, problems = [], []
    passed_over: collections.Counter[str] = collections.Counter()
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            inside = _images_in(path, outputs, passed_over)
            found += inside
            if not inside:
                problems.append(f"{path}: no images in this folder")
        elif path.is_file():
            found.append(path)
        else:
            problems.append(f"{path}: no such file or folder")
    if passed_over:
        kinds = [f"{count} {kind}" for kind, count in passed_over.most_common(20)]
        log.info("ignored in folders: %s", ", ".join(kinds))
    if problems:
        raise InputError("; ".join(problems))
    return Inputs(tuple(dict.fromkeys(str(path.absolute()) for path in found)))


def _images_in(
    folder: pathlib.Path, outputs: Outputs, passed_over: collections.Counter[str]
) -> list[pathlib.Path]:
    files, images = [], []

    def unreadable(error: OSError) -> None:
        passed_over["folders that cannot be read"] += 1

    for inside, folders, names in os.walk(folder, onerror=unreadable):
        files += [pathlib.Path(inside, name) for name in names]
        if links := sum(os.path.islink(os.path.join(inside, name)) for name in folders):
            passed_over["links to folders"] += links
    written = outputs.folder.resolve()
    for path in sorted(files):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            passed_over[path.suffix.lower() or "without suffix"] += 1
        elif path.parent.resolve() == written and outputs.wrote(path.name):
            passed_over["of an earlier run"] += 1
        else:
            images.append(path)
    return images


def read_image_list(path: pathlib.Path, root: str) -> Inputs:
    """Reads the "images" of a COCO file, such as image_info_test2017.json, with their ids.

    Args:
        path: the JSON file.
        root: folder of the images; "": the folder of the file.

    Raises:
        InputError: if the file is not valid, or an entry has no file_name or no unique id.
    """
    findings = Findings()
    text = read_text(path, findings) or ""
    findings.raise_if_any()
    folder = pathlib.Path(root or path.parent).absolute()
    images: dict[int | str, str] = {}
    try:
        for _, position, _, entry in stream_lists(text, ("images",)):
            if position < 0:
                break
            where = f"{path}: images[{position}]"
            if not isinstance(entry, dict):
                raise InputError(f"{where}: an object with id and file_name expected")
            number, name = entry.get("id"), entry.get("file_name")
            if not isinstance(number, int | str) or type(number) is bool or number in images:
                raise InputError(f"{where}: id: a unique number or text expected, got {number!r}")
            if not isinstance(name, str) or not name.strip() or "\0" in name:
                raise InputError(f"{where}: file_name: a path expected, got {name!r}")
            images[number] = resolve_path(str(folder), name)
    except ParseError as error:
        raise InputError(f"{path}: {error}") from None
    if not images:
        raise InputError(f'{path}: no "images" in it; give image files, folders or a COCO file')
    return Inputs(tuple(images.values()), tuple(images), (str(path),))


def index_inputs(
    inputs: Inputs, class_names: tuple[str, ...], class_ids: tuple[int | str, ...]
) -> tuple[DetectionIndex, list[int], dict[int, str]]:
    """Returns the images whose header can be read, as a data set without objects.

    Args:
        inputs: the images.
        class_names: name of each class id of the model.
        class_ids: category id of each class; (): 0..C-1.

    Returns:
        (index, kept, problems): `kept` has the position among the inputs of each image in the
        index; `problems` maps the other positions to what is wrong. The image ids of the index are
        those of the list, or the positions.
    """
    sizes, kept, problems = [], [], {}
    for position, path in enumerate(inputs.paths):
        try:
            sizes.append(read_size(path))
            kept.append(position)
        except ValueError as error:
            problems[position] = str(error)
    index = DetectionIndex(
        image_paths=tuple(inputs.paths[i] for i in kept),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros((0,), np.int32),
        offsets=np.zeros(len(sizes) + 1, np.int64),
        class_names=class_names,
        class_ids=class_ids,
        image_ids=tuple(inputs.ids[i] if inputs.ids else i for i in kept),
    )
    return index, kept, problems


def picture_names(paths: Sequence[str]) -> list[str]:
    """Returns a file name for the picture of each image; equal names are numbered."""
    stems = (pathlib.PurePath(path).stem for path in paths)
    plain = ("".join(c if c.isprintable() else "_" for c in stem) for stem in stems)
    return [f"{name}.jpg" for name in distinct_names(map(_shortened, plain))]


def _shortened(name: str) -> str:
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore")
