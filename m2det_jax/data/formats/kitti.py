"""KITTI's object labels, read and written: a text file an image, 15 columns an object.

    ROOT/SPLIT/image_2/ID.png  ROOT/SPLIT/label_2/ID.txt      SPLIT: training, ...; all its images
or  ROOT/ImageSets/SPLIT.txt   with the images in ROOT/training/ or in ROOT itself
    ROOT/classes.csv           optional, our own: classes in their order, those without objects too

The columns are type, truncated, occluded, alpha, left, top, right, bottom, and seven of the object
in space; only type and box are read. Pixels count from 0; right and bottom are edges, as KITTI's
own evaluation takes them. DontCare lines are regions of every class.
"""

from pathlib import Path

from m2det_jax.data.errors import Findings
from m2det_jax.data.files import SMALL, parse_number, read_text, shortest
from m2det_jax.data.formats.class_file import write_classes
from m2det_jax.data.formats.gather import Gather, images_by_stem, listed_classes, read_ids
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.rows import Rows
from m2det_jax.errors import InputError

_EDGES = ("left", "top", "right", "bottom")
_COLUMNS = 15
_FORM = (
    "a line is type truncated occluded alpha left top right bottom and 7 numbers of the object in "
    "space"
)


def read_kitti(root: Path, split: str, findings: Findings) -> Rows | None:
    """Reads a split; None where there is none. Classes are those of the objects."""
    folder, ids = _find_split(root, split, findings)
    if not ids:
        return None
    pictures = images_by_stem(folder / "image_2")
    gather = Gather(first_names=listed_classes(root, findings))
    for name in ids:
        path = folder / "label_2" / f"{name}.txt"
        text = read_text(path, findings, limit=SMALL)
        if text is None:
            continue
        picture = pictures.get(name, folder / "image_2" / f"{name}.png")
        image = gather.add_image(picture, path, image_id=name)
        for line, row in enumerate(text.splitlines(), 1):
            if row.strip():
                _read_line(row, path, line, image, gather, findings)
    remedy = "an image lies in image_2 and is called like its file in label_2"
    return gather.rows(style="xyxy", names=_EDGES, missing_remedy=remedy)


def _find_split(root: Path, split: str, findings: Findings) -> tuple[Path, list[str]]:
    """Returns the folder with image_2 and label_2, and the images of the split."""
    folder = root / split
    if split and (folder / "image_2").is_dir():
        ids = sorted(images_by_stem(folder / "image_2"))
        if not ids:
            remedy = "put the images of the split there"
            findings.add(folder / "image_2", 0, "no images", remedy, kind="no-rows")
        return folder, ids
    inside = root / "training"
    folder = inside if (inside / "image_2").is_dir() else root
    names = read_ids(root / "ImageSets" / f"{split}.txt", findings)
    return folder, [name for _, name in names]


def _read_line(
    row: str, path: Path, line: int, image: int, gather: Gather, findings: Findings
) -> None:
    fields = row.split()
    if len(fields) != _COLUMNS:
        what = f"{len(fields)} column(s) where {_COLUMNS} are expected"
        findings.add(path, line, what, _FORM, kind="bad-row", value=row.strip()[:100])
        return
    box: list[float] = []
    for name, field in zip(_EDGES, fields[4:8], strict=True):
        number = parse_number(field)
        if number is None:
            what = f"{name} is not a number"
            findings.add(path, line, what, "give pixels", kind="bad-row", value=field)
        else:
            box.append(number)
    if len(box) < len(_EDGES):
        return
    if fields[0] == "DontCare":
        gather.add_box(image, box, -1, line, region=True)
    else:
        gather.add_box(image, box, fields[0], line)


def kitti_names(class_names: tuple[str, ...]) -> list[str]:
    """Returns the names as KITTI's blank-separated lines can hold them.

    Raises:
        InputError: if two of them become the same, or one is DontCare.
    """
    names = ["_".join(name.split()) for name in class_names]
    if len(set(names)) < len(names) or "DontCare" in names:
        raise InputError(
            f"KITTI cannot hold these classes, blanks becoming _: {', '.join(class_names)}"
        )
    return names


def write_kitti(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    """Writes SPLIT/label_2/ID.txt; columns of no known value are -1, -10 or -1000, as in KITTI."""
    folder = root / split / "label_2"
    folder.mkdir(parents=True, exist_ok=True)
    names = kitti_names(index.class_names)
    for i, stem in enumerate(stems):
        found = [(box, names[label]) for box, label in zip(*index.objects(i), strict=True)]
        found += [(box, "DontCare") for box in index.regions_of(i)[0]]
        lines = [
            f"{name} -1 -1 -10 {' '.join(map(shortest, box))} -1 -1 -1 -1000 -1000 -1000 -10\n"
            for box, name in found
        ]
        (folder / f"{stem}.txt").write_text("".join(lines), encoding="utf-8")


def write_kitti_classes(class_names: tuple[str, ...], root: Path, splits: list[str]) -> None:
    """Writes classes.csv, our list: KITTI itself names classes only with their objects."""
    write_classes(kitti_names(class_names), root / "classes.csv")
