"""PASCAL VOC, read and written: an XML file an image, and lists of the images of each split.

    ROOT/ImageSets/Main/SPLIT.txt    ROOT/Annotations/ID.xml    ROOT/JPEGImages/ID.jpg
    ROOT/classes.csv    optional, our own: classes in their order, those without objects too

or ROOT holds several such folders, as VOCdevkit does with VOC2007 and VOC2012. Pixels count from 1
and both ends belong to the box: xmin..xmax are the edges xmin - 1 and xmax. Coordinates may have
fractions. `difficult` objects are kept and flagged; parts of objects are not read.
"""

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from m2det_jax.data.errors import Findings
from m2det_jax.data.files import SMALL, parse_number, read_bytes, shortest
from m2det_jax.data.formats.class_file import write_classes
from m2det_jax.data.formats.gather import Gather, images_by_stem, listed_classes, read_ids
from m2det_jax.data.formats.parsers import Node, ParseError, parse_xml
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.rows import Rows

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path, split: str, findings: Findings) -> Rows | None:
    """Reads a split; None where there is no such list. Classes are those of the objects."""
    lists = [root / "ImageSets" / "Main" / f"{split}.txt"]
    if not lists[0].is_file():
        inside = sorted(root.glob(f"*/ImageSets/Main/{split}.txt")) if split else []
        lists = inside or lists
    gather, ids = Gather(first_names=listed_classes(root, findings)), {}
    for file in lists:
        folder = file.parent.parent.parent
        pictures = images_by_stem(folder / "JPEGImages")
        for line, name in read_ids(file, findings):
            unique = f"{folder.name}/{name}" if name in ids else name
            ids[unique] = True
            if len(name.split()) > 1:
                remedy = "give a split of all classes, such as train, val or trainval"
                findings.add(file, line, "not a list of images", remedy, kind="bad-row", value=name)
                continue
            _read_image(folder, name, unique, pictures, gather, findings)
    if not ids:
        return None
    return gather.rows(
        style="xyxy_from_1",
        names=_CORNERS,
        missing_remedy="an image lies in JPEGImages and is called as in the list of the split",
    )


def _read_image(
    folder: Path,
    name: str,
    image_id: str,
    pictures: dict[str, Path],
    gather: Gather,
    findings: Findings,
) -> None:
    path = folder / "Annotations" / f"{name}.xml"
    content = read_bytes(path, findings, limit=SMALL)
    if content is None:
        return
    try:
        tree = parse_xml(content)
    except ParseError as error:
        remedy = "write it as plain XML, without DOCTYPE"
        findings.add(path, error.line, "not usable XML", remedy, kind="not-text", value=error.what)
        return
    if tree.tag != "annotation":
        remedy = "a VOC file holds <annotation> with <object> in it"
        findings.add(
            path, tree.line, "not a VOC annotation", remedy, kind="not-text", value=f"<{tree.tag}>"
        )
        return
    # The list of the split names the image; <filename> often still holds an older name.
    picture = pictures.get(name) or folder / "JPEGImages" / (
        tree.value("filename") or f"{name}.jpg"
    )
    image = gather.add_image(picture, path, image_id=image_id, size=_size(tree))
    for node in tree.all("object"):
        _read_object(node, path, image, gather, findings)


def _size(tree: Node) -> tuple[int, int]:
    texts = [tree.value("size", side) or "" for side in ("width", "height")]
    width, height = (int(text) if text.isascii() and text.isdecimal() else 0 for text in texts)
    return width, height


def _read_object(node: Node, path: Path, image: int, gather: Gather, findings: Findings) -> None:
    name, difficult = node.value("name") or "", node.value("difficult") or "0"
    box: list[float] = []
    problems = []
    if len(node.all("bndbox")) > 1:
        problems.append(("the object has several bndbox", name))
    if not name:
        problems.append(("the object has no name", ""))
    for corner in _CORNERS:
        text = node.value("bndbox", corner)
        number = None if text is None else parse_number(text)
        if text is None:
            problems.append((f"the object has no {corner}", name))
        elif number is None:
            problems.append((f"{corner} is not a number", text))
        else:
            box.append(number)
    if difficult not in ("0", "1"):
        problems.append(("difficult is not 0 or 1", difficult))
    for what, value in problems:
        findings.add(path, node.line, what, "correct the object", kind="bad-row", value=value)
    if not problems:
        gather.add_box(image, box, name, node.line, difficult=difficult == "1")


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
                f"<{name}>{shortest(float(value))}</{name}>"
                for name, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            )
            name = escape(index.class_names[label])
            lines += [
                f"\t<object><name>{name}</name><difficult>{int(difficult)}</difficult>"
                f"<bndbox>{inner}</bndbox></object>"
            ]
        text = "\n".join([*lines, "</annotation>", ""])
        (folder / f"{stem}.xml").write_text(text, encoding="utf-8")


def write_voc_classes(class_names: tuple[str, ...], root: Path, splits: list[str]) -> None:
    """Writes classes.csv, our list: VOC itself names classes only with their objects."""
    write_classes(class_names, root / "classes.csv")
