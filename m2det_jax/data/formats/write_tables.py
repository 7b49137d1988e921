"""Writing an index as CSV, COCO JSON or Open Images CSV: one table a split."""

import csv
import json
from pathlib import Path

import numpy as np

from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.reading.csv_source import write_classes, write_csv


def write_csv_set(index: DetectionIndex, root: Path, split: str) -> None:
    """Writes ROOT/SPLIT.csv and ROOT/classes.csv."""
    write_classes(index.class_names, root / "classes.csv")
    write_csv(index, root / f"{split}.csv")


def coco_ids(ids: tuple[int | str, ...], count: int) -> list[int]:
    """Returns the whole numbers that COCO needs: the ids themselves if they are such, else 1..N."""
    whole = len(ids) == count and all(isinstance(i, int) for i in ids)
    return list(ids) if whole else list(range(1, count + 1))


def write_coco(index: DetectionIndex, root: Path, split: str) -> None:
    """Writes ROOT/annotations/instances_SPLIT.json."""
    folder = root / split
    image_ids = coco_ids(index.image_ids, index.num_images)
    class_ids = coco_ids(index.class_ids, len(index.class_names))
    annotations = []
    for i, image_id in enumerate(image_ids):
        rows = slice(index.offsets[i], index.offsets[i + 1])
        for box, label, area in zip(
            index.boxes[rows], index.labels[rows], index.areas[rows].tolist(), strict=True
        ):
            annotations.append(_annotation(image_id, class_ids[label], box, area, 0))
        for box, label in zip(*index.regions_of(i), strict=True):
            # A region of every class is a crowd of each.
            for k in range(len(class_ids)) if label < 0 else [label]:
                area = float(np.prod(box[2:] - box[:2]))
                annotations.append(_annotation(image_id, class_ids[k], box, area, 1))
    for k, annotation in enumerate(annotations, 1):
        annotation["id"] = k
    images = [
        {"id": image_id, "file_name": _name_in(folder, path), "width": w, "height": h}
        for image_id, path, (w, h) in zip(
            image_ids, index.image_paths, index.sizes.tolist(), strict=True
        )
    ]
    categories = [
        {"id": k, "name": name} for k, name in zip(class_ids, index.class_names, strict=True)
    ]
    target = root / "annotations" / f"instances_{split}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    target.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _annotation(image_id: int, class_id: int, box: np.ndarray, area: float, crowd: int) -> dict:
    x1, y1, x2, y2 = box.astype(np.float64).tolist()
    bbox = [int(v) if v == int(v) else v for v in (x1, y1, x2 - x1, y2 - y1)]
    return {
        "id": 0,
        "image_id": image_id,
        "category_id": class_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": crowd,
    }


def _name_in(folder: Path, path: str) -> str:
    inside = Path(path).is_relative_to(folder)
    return Path(path).relative_to(folder).as_posix() if inside else path


def write_openimages(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    """Writes the table of the boxes, the list of the images and the names of the classes."""
    mids = index.class_ids
    if not all(isinstance(mid, str) for mid in mids) or not mids:
        mids = tuple(f"/x/{i}" for i in range(len(index.class_names)))
    with open(root / "class-descriptions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(zip(mids, index.class_names, strict=True))
    with open(root / f"{split}-images.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["ImageID"], *([s] for s in stems)])
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    header += "IsGroupOf,IsDepiction,IsInside"
    with open(root / f"{split}-annotations-bbox.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        for i, stem in enumerate(stems):
            objects = [(*pair, 0) for pair in zip(*index.objects(i), strict=True)]
            groups = [(*pair, 1) for pair in zip(*index.regions_of(i), strict=True)]
            for box, label, group in objects + groups:
                shares = box.astype(np.float64) / np.tile(index.sizes[i], 2)
                x1, y1, x2, y2 = (f"{share:.10g}" for share in shares)
                for k in range(len(mids)) if label < 0 else [label]:
                    flags = [-1, -1, group, -1, -1]
                    writer.writerow([stem, "xclick", mids[k], 1, x1, x2, y1, y2, *flags])
