"""KITTI's object labels: a text file an image, 15 columns an object.

    ROOT/SPLIT/image_2/ID.png  ROOT/SPLIT/label_2/ID.txt      SPLIT: training, ...; all its images
or  ROOT/ImageSets/SPLIT.txt   with the images in ROOT/training/ or in ROOT itself
    ROOT/classes.csv           optional, our own: classes in their order, those without objects too

The columns are type, truncated, occluded, alpha, left, top, right, bottom, and seven of the object
in space; only type and box are read. Pixels count from 0; right and bottom are edges, as KITTI's
own evaluation takes them. DontCare lines are regions of every class.
"""

from pathlib import Path

from m2det_jax.data.errors import Findings
from m2det_jax.data.files import SMALL, read_text
from m2det_jax.data.formats.gather import (
    Gather,
    images_by_stem,
    listed_classes,
    parse_number,
    read_ids,
)
from m2det_jax.data.reading.rows import Rows

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
    box = [parse_number(field) for field in fields[4:8]]
    for name, field, number in zip(_EDGES, fields[4:8], box, strict=True):
        if number is None:
            what = f"{name} is not a number"
            findings.add(path, line, what, "give pixels", kind="bad-row", value=field)
    if None in box:
        return
    if fields[0] == "DontCare":
        gather.add_box(image, tuple(box), -1, line, region=True)
    else:
        gather.add_box(image, tuple(box), fields[0], line)
