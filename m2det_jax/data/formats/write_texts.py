"""Writing an index as VOC XML, KITTI labels or YOLO text: one small file an image."""

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import yaml

from m2det_jax.data.image_files import shortest
from m2det_jax.data.index import DetectionIndex
from m2det_jax.errors import InputError


def write_voc(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    """Writes ImageSets/Main/SPLIT.txt and an XML file an image; coordinates may have fractions."""
    lists, folder = root / "ImageSets" / "Main", root / "Annotations"
    lists.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    for i, stem in enumerate(stems):
        rows = slice(index.offsets[i], index.offsets[i + 1])
        width, height = index.sizes[i].tolist()
        suffix = Path(index.image_paths[i]).suffix
        lines = [
            "<annotation>",
            "\t<folder>JPEGImages</folder>",
            f"\t<filename>{escape(stem + suffix)}</filename>",
            f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        ]
        for box, label, difficult in zip(
            index.boxes[rows], index.labels[rows], index.difficult[rows].tolist(), strict=True
        ):
            # VOC counts pixels from 1 and includes both ends.
            corners = box.astype(np.float64) + (1, 1, 0, 0)
            inner = "".join(
                f"<{name}>{_number(value)}</{name}>"
                for name, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            )
            name = escape(index.class_names[label])
            lines += [
                f"\t<object><name>{name}</name><difficult>{int(difficult)}</difficult>"
                f"<bndbox>{inner}</bndbox></object>"
            ]
        text = "\n".join([*lines, "</annotation>", ""])
        (folder / f"{stem}.xml").write_text(text, encoding="utf-8")


def kitti_names(class_names: tuple[str, ...]) -> list[str]:
    """Returns the names as KITTI's blank-separated lines can hold them.

    Raises:
        ValueError: two of them become the same, or one is DontCare.
    """
    names = ["_".join(name.split()) for name in class_names]
    if len(set(names)) < len(names) or "DontCare" in names:
        raise InputError(
            f"KITTI cannot hold these classes, blanks becoming _: {', '.join(class_names)}"
        )
    return names


def write_kitti(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    """Writes SPLIT/label_2/ID.txt; what is not known of an object is -1, -10 or -1000, as there."""
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


def write_yolo(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    """Writes labels/SPLIT/ID.txt and adds the split to data.yaml."""
    folder = root / "labels" / split
    folder.mkdir(parents=True, exist_ok=True)
    for i, stem in enumerate(stems):
        boxes, labels = index.objects(i)
        corners = boxes.astype(np.float64).reshape(-1, 2, 2) / index.sizes[i]  # [n, corner, xy]
        shares = np.concatenate([corners.mean(axis=1), corners[:, 1] - corners[:, 0]], axis=1)
        lines = [
            f"{label} {' '.join(f'{share:.10g}' for share in row)}\n"
            for label, row in zip(labels.tolist(), shares.tolist(), strict=True)
        ]
        (folder / f"{stem}.txt").write_text("".join(lines), encoding="utf-8")


def write_yolo_yaml(class_names: tuple[str, ...], root: Path, splits: list[str]) -> None:
    """Writes data.yaml for all splits."""
    content = {split: f"images/{split}" for split in splits}
    content |= {"nc": len(class_names), "names": dict(enumerate(class_names))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")


def _number(value: float) -> str:
    return shortest(float(value))
