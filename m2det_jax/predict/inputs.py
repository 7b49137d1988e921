"""Input images of prediction: files, folders, globs, URLs, and lists of them or of COCO."""

import collections
import dataclasses
import glob
import logging
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from m2det_jax.data import DetectionIndex, read_size
from m2det_jax.data.errors import Findings
from m2det_jax.data.file_names import distinct_names
from m2det_jax.data.files import read_text, resolve_path
from m2det_jax.data.formats.parsers import ParseError, stream_lists
from m2det_jax.data.images import IMAGE_SUFFIXES
from m2det_jax.errors import InputError
from m2det_jax.inference.urls import is_url, path_of
from m2det_jax.run.outputs import Outputs

log = logging.getLogger("m2det_jax")

_LONGEST_NAME = 200  # bytes; file systems allow 255, and a number may be added


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images to detect objects in.

    Attributes:
        paths: N absolute paths, or URLs.
        ids: N image ids of an image list; (): the positions 0..N-1.
        lists: the lists that were read.
    """

    paths: tuple[str, ...]
    ids: tuple[int | str, ...] = ()
    lists: tuple[str, ...] = ()


def find_inputs(
    paths: Sequence[str | os.PathLike], root: str, outputs: Outputs, list_file: str = ""
) -> Inputs:
    """Returns the images of files, folders (to any depth, in order of name), globs and lists.

    Other files of a folder or glob are counted in one log line. Pictures of an earlier run are
    ignored.

    Args:
        paths: files, folders, globs and http or https URLs, or a single .json file with COCO's
            "images".
        root: folder of the images of a COCO list; "": the folder of the list.
        outputs: the output files of the command.
        list_file: a text file with a file, folder or URL a line; "-": standard input; "": none.

    Raises:
        InputError: if a path does not exist, a folder holds no image, or a list is not valid. The
            message names all such paths.
    """
    lists = [path for path in map(pathlib.Path, paths) if path.suffix.lower() == ".json"]
    lists = [path for path in lists if not is_url(str(path))]
    if lists and (len(paths) > 1 or list_file):
        raise InputError(f"{lists[0]}: give an image list alone, without other paths")
    if root and not lists:
        raise InputError("--root: needs a COCO image list, whose images are in that folder")
    if lists:
        return read_image_list(lists[0], root)
    found: list[str] = []
    problems: list[str] = []
    ignored: collections.Counter[str] = collections.Counter()
    listed = read_list(list_file) if list_file else []
    for path, where in [*((os.fspath(path), "") for path in paths), *listed]:
        if is_url(path):
            found.append(path)
        elif os.path.isdir(path):
            inside = _images_in(pathlib.Path(path), outputs, ignored)
            found += map(_absolute, inside)
            if not inside:
                problems.append(f"{where}{path}: no images in this folder")
        elif os.path.isfile(path):
            found.append(_absolute(path))
        elif not where and glob.has_magic(path):
            matches = [p for p in glob.glob(path, recursive=True) if not os.path.isdir(p)]
            inside = _images_of(map(pathlib.Path, matches), outputs, ignored)
            found += map(_absolute, inside)
            if not inside:
                problems.append(f"{path}: no image matches")
        else:
            problems.append(f"{where}{path}: no such file or folder")
    if ignored:
        kinds = [f"{count} {kind}" for kind, count in ignored.most_common(20)]
        log.info("ignored in folders: %s", ", ".join(kinds))
    if problems:
        raise InputError("; ".join(problems))
    own_list = (list_file,) if list_file not in ("", "-") else ()
    return Inputs(tuple(dict.fromkeys(found)), lists=own_list)


def _absolute(path: str | pathlib.Path) -> str:
    return str(pathlib.Path(path).absolute())


def read_list(path: str) -> list[tuple[str, str]]:
    """Reads a list of images: a path or URL a line, relative to the current folder.

    Blank lines are ignored. Names are taken as they are, so a glob is none here.

    Args:
        path: a text file; "-": standard input.

    Returns:
        (path or URL, "FILE:LINE: " for messages) of each line.

    Raises:
        InputError: if the list is empty, or no UTF-8 text.
    """
    name = "standard input" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else pathlib.Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--list {path}: cannot be read as UTF-8 text: {error}") from None
    # Not splitlines: a file name may hold a form feed or one of Unicode's line separators.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    found = [(line, f"{name}:{i}: ") for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"--list {path}: no line with a path or URL in it")
    for line, where in found:
        if "\0" in line:
            raise InputError(f"{where}a path or URL expected, got {line[:60]!r}")
    return found


def _images_in(
    folder: pathlib.Path, outputs: Outputs, ignored: collections.Counter[str]
) -> list[pathlib.Path]:
    files = []

    def unreadable(error: OSError) -> None:
        ignored["folders that cannot be read"] += 1

    for inside, folders, names in os.walk(folder, onerror=unreadable):
        files += [pathlib.Path(inside, name) for name in names]
        if links := sum(os.path.islink(os.path.join(inside, name)) for name in folders):
            ignored["links to folders"] += links
    return _images_of(files, outputs, ignored)


def _images_of(
    files: Iterable[pathlib.Path], outputs: Outputs, ignored: collections.Counter[str]
) -> list[pathlib.Path]:
    """Returns the files that have the suffix of an image and are not of an earlier run, sorted."""
    images, written = [], outputs.folder.resolve()
    for path in sorted(files):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            ignored[path.suffix.lower() or "without suffix"] += 1
            continue
        folder = path.parent.resolve()
        below = folder == written or written in folder.parents
        if below and outputs.wrote((folder.relative_to(written) / path.name).as_posix()):
            ignored["of an earlier run"] += 1
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
    inputs: Inputs,
    files: Mapping[int, str],
    class_names: tuple[str, ...],
    class_ids: tuple[int | str, ...],
) -> tuple[DetectionIndex, list[int], dict[int, str]]:
    """Returns the images whose header can be read, as a data set without objects.

    Args:
        inputs: the images.
        files: file of each input that has one, by position; the others have a problem already.
        class_names: name of each class id of the model.
        class_ids: category id of each class; (): 0..C-1.

    Returns:
        (index, kept, problems): `kept` has the position among the inputs of each image in the
        index; `problems` maps the other positions to what is wrong. The image ids of the index are
        those of the list, or the positions.
    """
    sizes, kept, problems = [], [], {}
    for position, path in files.items():
        try:
            sizes.append(read_size(path))
            kept.append(position)
        except ValueError as error:
            problems[position] = str(error)
    index = DetectionIndex(
        image_paths=tuple(files[i] for i in kept),
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
    return [f"{name}.jpg" for name in image_names(paths)]


def image_names(paths: Sequence[str]) -> list[str]:
    """Returns a name of its own for each image, without suffix and folder."""
    stems = (pathlib.PurePath(path_of(path)).stem for path in paths)
    plain = ("".join(c if c.isprintable() else "_" for c in stem) for stem in stems)
    return distinct_names(map(_shortened, plain))


def _shortened(name: str) -> str:
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore")
