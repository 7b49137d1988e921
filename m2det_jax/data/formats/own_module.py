"""Own format: a data set from a user's Python module, checked like those from files.

The module has one function, `read(root: str, split: str) -> DetectionIndex`; `make_index` builds
the index from plain lists. docs/data.md has an example.
"""

import importlib
from collections.abc import Iterable, Sequence

import numpy as np

from m2det_jax.data.errors import Findings
from m2det_jax.data.images import read_size
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.places import Places
from m2det_jax.data.rows import Rows
from m2det_jax.errors import InputError, in_one_line

Box = tuple[float, float, float, float, str]


def make_index(
    images: Iterable[tuple[str, Sequence[Box]]], class_names: Sequence[str]
) -> DetectionIndex:
    """Builds an index of (path, [(x1, y1, x2, y2, class name), ...]) entries.

    Boxes are in pixels of the upright image, x2 and y2 exclusive; an empty list is an image
    without objects. Images whose header cannot be read are reported when the index is checked.

    Raises:
        InputError: if a class is not among class_names.
    """
    labels = {name: i for i, name in enumerate(class_names)}
    paths: list[str] = []
    sizes: list[tuple[int, int]] = []
    rows: list[tuple[float, ...]] = []
    counts: list[int] = []
    for path, boxes in images:
        paths.append(str(path))
        sizes.append(_size_or_zero(path))
        counts.append(len(boxes))
        for *corners, name in boxes:
            if name not in labels:
                listed = ", ".join(class_names)
                raise InputError(
                    f"{path}: unknown class ({name}); class_names has {listed or 'none'}: correct "
                    "the name or add it"
                )
            rows.append((*corners, labels[name]))
    table = np.array(rows, np.float64).reshape(-1, 5)
    return DetectionIndex(
        image_paths=tuple(paths),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        boxes=table[:, :4].astype(np.float32),
        labels=table[:, 4].astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        class_names=tuple(class_names),
    )


def _size_or_zero(path: str) -> tuple[int, int]:
    try:
        return read_size(path)
    except ValueError:
        return 0, 0


def read_own(module: str, root: str, split: str, findings: Findings) -> Rows | None:
    """Calls a user's module and returns what it gives as rows, to be checked like all others.

    Raises:
        InputError: if there is no such module, it has no `read`, or that fails or returns no index.
    """
    try:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ImportError("no name of a module")
        source = importlib.import_module(module)
    except Exception as error:  # whatever the module does when it is imported
        raise InputError(
            f"data format {module!r}: not imported ({in_one_line(error, module)}); give csv, coco, "
            "voc, kitti, openimages, yolo, or a Python module, with PYTHONPATH if need be"
        ) from error
    read = getattr(source, "read", None)
    if not callable(read):
        raise InputError(f"data format {module!r}: the module has no function read(root, split)")
    try:
        index = read(root, split)
    except InputError:
        raise
    except Exception as error:  # a program of the user's
        raise InputError(
            f"{module}.read({root!r}, {split!r}): {in_one_line(error, module)}; correct the "
            "module, M2DET_TRACEBACK=1 shows how it came there"
        ) from error
    if not isinstance(index, DetectionIndex):
        kind = type(index).__name__
        raise InputError(
            f"{module}.read({root!r}, {split!r}): not a DetectionIndex but {kind}; make one with "
            "m2det_jax.data.make_index"
        )
    if not index.num_images:
        findings.add(f"{module}.read", 0, "no images", "check root and split", kind="no-rows")
        return None
    return _rows_of(index, f"{module}.read")


def _rows_of(index: DetectionIndex, name: str) -> Rows:
    number = index.num_images
    objects, regions = np.arange(len(index.labels)), np.arange(len(index.regions))
    images = [
        np.repeat(np.arange(number), np.diff(offsets))
        for offsets in (index.offsets, index.region_offsets)
    ]
    return Rows(
        class_names=index.class_names,
        image_paths=list(index.image_paths),
        places=Places(
            files=(name,),
            image_files=np.zeros(number, np.int64),
            image_lines=np.zeros(number, np.int64),
            box_lines=np.zeros(len(objects) + len(regions), np.int64),
            items=(("images[{}]", "boxes[{}]"),),
            image_items=np.arange(number),
            box_items=np.concatenate([objects, regions]),
        ),
        numbers=np.concatenate([index.boxes, index.regions]).astype(np.float64),
        style="xyxy",
        images=np.concatenate(images),
        labels=np.concatenate([index.labels, index.region_labels]).astype(np.int64),
        regions=np.repeat([False, True], [len(objects), len(regions)]),
        difficult=np.concatenate([index.difficult, np.zeros(len(regions), np.bool_)]),
        areas=np.concatenate([index.areas, np.zeros(len(regions))]).astype(np.float64),
        sizes=index.sizes.astype(np.int64),
        class_ids=index.class_ids,
        image_ids=index.image_ids,
    )
