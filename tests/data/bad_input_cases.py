# ruff: noqa: E501
"""Inputs that people have, and what becomes of each: `ACCEPTED` (as its plain twin) or a message.

A message that ends in ... goes on as the library that found the fault puts it.
"""

import json
import os

from bad_inputs import COCO, KITTI, OPEN_HEADER, OPEN_ROW, XML, YOLO, huge_png, jpeg, noisy_png, png

ACCEPTED = ""
ROW = "a.png,1,2,10,12,cat\n"


def coco(**changes) -> dict:
    return {"annotations/instances_train.json": json.dumps(COCO | changes)}


def annotation(**changes) -> dict:
    return coco(annotations=[COCO["annotations"][0] | changes])


def raw_coco(text: str | bytes) -> dict:
    return {"annotations/instances_train.json": text}


def voc(old: str, new: str) -> dict:
    assert old in XML
    return {"Annotations/a.xml": XML.replace(old, new)}


def csv(text: str | bytes) -> dict:
    return {"train.csv": text}


def yolo_yaml(text: str | bytes) -> dict:
    return {"data.yaml": text}


def open_row(old: str, new: str) -> dict:
    return {"train-annotations-bbox.csv": f"{OPEN_HEADER}\n{OPEN_ROW.replace(old, new)}\n"}


def loop(path) -> None:
    os.symlink(path.name, path)


def pipe(path) -> None:
    os.mkfifo(path)


def folder(path) -> None:
    path.mkdir()


LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(20)
) + "]><annotation>&u;</annotation>"  # fmt: skip

# (name, format, files that differ from the sound set, expected message)
CASES = [
    # Text files: encodings, line ends, blanks.
    ("csv bom", "csv", csv(b"\xef\xbb\xbf" + ROW.encode()), ACCEPTED),
    ("csv crlf", "csv", csv(ROW.replace("\n", "\r\n")), ACCEPTED),
    ("csv old mac line ends", "csv", csv(ROW.replace("\n", "\r")), ACCEPTED),
    ("csv quoted", "csv", csv('"a.png","1","2","10","12","cat"\n'), ACCEPTED),
    ("csv blanks around numbers", "csv", csv("a.png, 1,2 , 10,12,cat\n"), ACCEPTED),
    ("csv exponents", "csv", csv("a.png,1e0,2.0,1E1,+12,cat\n"), ACCEPTED),
    ("csv windows path", "csv", csv(".\\" + ROW), ACCEPTED),
    ("csv blank lines", "csv", csv(f"\n\n{ROW}\n"), ACCEPTED),
    ("csv unicode name", "csv", csv("ä 图.png,1,2,10,12,cat\n") | {"ä 图.png": png(), "a.png": None}, ACCEPTED),
    ("csv name with comma", "csv", csv('"a,b.png",1,2,10,12,cat\n') | {"a,b.png": png(), "a.png": None}, ACCEPTED),
    ("csv utf-16", "csv", csv(ROW.encode("utf-16")),
     "train.csv: not UTF-8 text (byte 0xff at offset 0); save the file as UTF-8"),
    ("csv latin-1", "csv", csv("ä.png,1,2,10,12,cat\n".encode("latin-1")),
     "train.csv: not UTF-8 text (byte 0xe4 at offset 0); save the file as UTF-8"),
    ("csv binary", "csv", csv(bytes(range(128)) + b"\n"),
     ("train.csv:1: 1 column(s) where 6 are expected (\\x00\\x01\\x02\\x03\\x04\\x05\\x06\\x07\\x08\\t); separate the fields with commas, not tabs\n" 'train.csv:3: 2 column(s) where 6 are expected (\\x0e\\x0f\\x10\\x11\\x12\\x13\\x14\\x15\\x16\\x17\\x18\\x19\\x1a\\x1b\\x1c\\x1d\\x1e\\x1f !"#$%&\'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmn...); a row is path,x1,y1,x2,y2,class_name, or path,,,,, for an image without objects')),
    ("csv nul in path", "csv", csv("a\0.png,1,2,10,12,cat\n"),
     "train.csv:1: cannot read image a\\x00.png: embedded null byte; repair or remove the image"),
    ("csv header", "csv", csv("path,x1,y1,x2,y2,class\n" + ROW),
     "train.csv:1: a header row (path,x1,y1,x2,y2,class); remove it: a row is path,x1,y1,x2,y2,class_name, or path,,,,, for an image without objects"),
    ("csv semicolons", "csv", csv(ROW.replace(",", ";")),
     "train.csv:1: 1 column(s) where 6 are expected (a.png;1;2;10;12;cat); separate the fields with commas, not semicolons"),
    ("csv tabs", "csv", csv(ROW.replace(",", "\t")),
     "train.csv:1: 1 column(s) where 6 are expected (a.png\\t1\\t2\\t10\\t12\\tcat); separate the fields with commas, not tabs"),
    ("csv unclosed quote", "csv", csv('"' + ROW),
     'train.csv:1: not valid CSV (unexpected end of data); nothing is read from here on; look for an unclosed or stray "'),
    ("csv field of a megabyte", "csv", csv("a" * 2**20 + ",1,2,3,4,cat\n"),
     'train.csv:1: not valid CSV (field larger than field limit (131072)); nothing is read from here on; look for an unclosed or stray "'),
    ("csv too few columns", "csv", csv("a.png,1,2,10,12\n"),
     "train.csv:1: 5 column(s) where 6 are expected (a.png,1,2,10,12); a row is path,x1,y1,x2,y2,class_name, or path,,,,, for an image without objects"),
    ("csv nan", "csv", csv("a.png,nan,2,10,12,cat\n"),
     "train.csv:1: a coordinate is not finite (nan,2,10,12); give pixels"),
    ("csv infinity", "csv", csv("a.png,1,2,inf,12,cat\n"),
     "train.csv:1: a coordinate is not finite (1,2,inf,12); give pixels"),
    ("csv huge number", "csv", csv("a.png,1,2,1e300,12,cat\n"),
     "train.csv:1: a coordinate is not finite (1,2,1e+300,12); give pixels"),
    ("csv number of a thousand digits", "csv", csv(f"a.png,1,2,{'9' * 1000},12,cat\n"),
     "train.csv:1: a coordinate is not finite (1,2,inf,12); give pixels"),
    ("csv negative", "csv", csv("a.png,-1,2,10,12,cat\n"),
     "train.csv:1: the box leaves the image, 40 x 30 pixels (-1,2,10,12); clip the box to the image, or correct it"),
    ("csv swapped corners", "csv", csv("a.png,10,12,1,2,cat\n"),
     ("train.csv:1: x2 is less than x1 (10,12,1,2); swap the corners: x1 is left, x2 is right\n" "train.csv:1: y2 is less than y1 (10,12,1,2); swap the corners: y1 is top, y2 is bottom")),
    ("csv no area", "csv", csv("a.png,1,2,1,12,cat\n"),
     "train.csv:1: the box has no width, x2 equals x1 (1,2,1,12); x2 is the right edge, exclusive"),
    ("csv text for a number", "csv", csv("a.png,one,2,10,12,cat\n"),
     "train.csv:1: x1 is not a number (one); give pixels"),
    ("csv hexadecimal", "csv", csv("a.png,0x1,2,10,12,cat\n"),
     "train.csv:1: x1 is not a number (0x1); give pixels"),
    ("csv twice", "csv", csv(ROW * 2),
     "train.csv:2: repeats line 1 (1,2,10,12); remove one of them: same image, box and class"),
    ("csv empty file", "csv", csv(""),
     "train.csv: no rows; a row is path,x1,y1,x2,y2,class_name, or path,,,,, for an image without objects"),
    ("csv folder", "csv", {"train.csv": folder},
     "train.csv: cannot read the file (it is a directory); check the path"),
    ("csv missing", "csv", {"train.csv": None},
     "train.csv: cannot read the file (No such file or directory); check the path"),
    ("csv symlink loop", "csv", {"train.csv": loop},
     "train.csv: cannot read the file (Too many levels of symbolic links); check the path"),
    ("csv pipe", "csv", {"train.csv": pipe},
     "train.csv: cannot read the file (it is no regular file); check the path"),
    ("csv unknown class", "csv", csv("a.png,1,2,10,12,cats\n"),
     "train.csv:1: unknown class (cats); did you mean cat?"),
    ("classes twice", "csv", {"classes.csv": "cat,0\ncat,1\n"},
     "classes.csv:2: class name repeats line 1 (cat); names must differ"),
    ("classes with header", "csv", {"classes.csv": "name,id\ncat,0\n"},
     "classes.csv:1: a header row (name,id); remove it: a row is class_name,id, with ids 0, 1, 2, ... and no header"),
    ("classes with a gap", "csv", {"classes.csv": "cat,0\ndog,2\n"},
     "classes.csv: ids have a gap (1 is missing, 2 is the largest); number the 2 classes 0 to 1"),
    # Images.
    ("image missing", "csv", {"a.png": None},
     "train.csv:1: cannot read image a.png: no such file; relative paths start from the folder of the CSV file, ."),
    ("image of no bytes", "csv", {"a.png": b""},
     "train.csv:1: cannot read image a.png: the file is empty (0 bytes); repair or remove the image"),
    ("image is text", "csv", {"a.png": "hello"},
     "train.csv:1: cannot read image a.png: not an image file that Pillow knows; repair or remove the image"),
    ("image is a folder", "csv", {"a.png": folder},
     "train.csv:1: cannot read image a.png: it is a directory; repair or remove the image"),
    ("image is a pipe", "csv", {"a.png": pipe},
     "train.csv:1: cannot read image a.png: it is no regular file; repair or remove the image"),
    ("image is a symlink loop", "csv", {"a.png": loop},
     "train.csv:1: cannot read image a.png: Too many levels of symbolic links; repair or remove the image"),
    ("image truncated png", "csv", {"a.png": noisy_png()[:600]},
     "cannot read image a.png: image file is truncated"),
    ("image truncated jpeg", "csv", {"a.png": jpeg()[:9000]},
     "cannot read image a.png: image file is truncated..."),
    ("image cut in its header", "csv", {"a.png": jpeg()[:100]},
     "train.csv:1: cannot read image a.png: Truncated File Read; repair or remove the image"),
    ("image bomb", "csv", {"a.png": huge_png()},
     "train.csv:1: cannot read image a.png: it says that it is 100000 x 100000 pixels large, the limit is 178956970 pixels: make it smaller or cut it into tiles; repair or remove the image"),
    ("image name too long", "csv", csv("a" * 300 + ",1,2,10,12,cat\n"),
     "train.csv:1: cannot read image aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: File name too long; repair or remove the image"),
    # COCO.
    ("coco bom", "coco", raw_coco("\ufeff" + json.dumps(COCO)), ACCEPTED),
    ("coco crlf", "coco", raw_coco(json.dumps(COCO, indent=1).replace("\n", "\r\n")), ACCEPTED),
    ("coco annotations first", "coco", raw_coco(json.dumps(dict(reversed(COCO.items())))), ACCEPTED),
    ("coco other keys", "coco", annotation(segmentation=[[1, 2]], iscrowd=0, keypoints=[]), ACCEPTED),
    ("coco without sizes", "coco", coco(images=[{"id": 7, "file_name": "a.png"}]), ACCEPTED),
    ("coco escaped name", "coco", coco(images=[{"id": 7, "file_name": "\u0061.png"}]), ACCEPTED),
    ("coco windows path", "coco", coco(images=[{"id": 7, "file_name": ".\\a.png"}]), ACCEPTED),
    ("coco utf-16", "coco", raw_coco(json.dumps(COCO).encode("utf-16")),
     "annotations/instances_train.json: not UTF-8 text (byte 0xff at offset 0); save the file as UTF-8"),
    ("coco empty", "coco", raw_coco(""),
     "annotations/instances_train.json:1: the file holds no JSON object (nothing); nothing is read from here on; correct the file"),
    ("coco cut short", "coco", raw_coco(json.dumps(COCO)[:150]),
     "annotations/instances_train.json:1: not valid JSON (Expecting value); nothing is read from here on; correct the file"),
    ("coco trailing comma", "coco", raw_coco(json.dumps(COCO)[:-1] + ",}"),
     "annotations/instances_train.json:1: not valid JSON (Expecting value); nothing is read from here on; correct the file"),
    ("coco something behind", "coco", raw_coco(json.dumps(COCO) + "{}"),
     "annotations/instances_train.json:1: something follows the end of the JSON object ({); nothing is read from here on; correct the file"),
    ("coco a list", "coco", raw_coco("[]"),
     "annotations/instances_train.json:1: the file holds no JSON object (a list); nothing is read from here on; correct the file"),
    ("coco nested deeply", "coco", raw_coco('{"info": ' + "[" * 100_000),
     "annotations/instances_train.json:1: not usable JSON (nested too deeply); nothing is read from here on; correct the file"),
    ("coco key twice", "coco", raw_coco('{"images": [], "images": []}'),
     "annotations/instances_train.json:1: the key is there twice (images); nothing is read from here on; correct the file"),
    ("coco key twice in an entry", "coco", raw_coco('{"images": [{"id": 1, "id": 2}]}'),
     "annotations/instances_train.json:1: the key is there twice (id); nothing is read from here on; correct the file"),
    ("coco no annotations", "coco", coco(annotations=None),
     'annotations/instances_train.json:1: "annotations" is not a list (None); nothing is read from here on; correct the file'),
    ("coco no images", "coco", coco(images=[], annotations=[]),
     'annotations/instances_train.json: no "images"; a COCO file has the lists images, annotations and categories'),
    ("coco annotations an object", "coco", coco(annotations={}),
     'annotations/instances_train.json:1: "annotations" is not a list ({}); nothing is read from here on; correct the file'),
    ("coco image id twice", "coco", coco(images=COCO["images"] * 2),
     "annotations/instances_train.json:1: images[1]: id repeats images[0] (7); correct or remove the entry"),
    ("coco file twice", "coco", coco(images=[COCO["images"][0], {"id": 8, "file_name": "a.png"}]),
     "annotations/instances_train.json:1: images[1]: file_name repeats images[0] (train/a.png); correct or remove the entry"),
    ("coco annotation id twice", "coco", coco(annotations=[COCO["annotations"][0] | {"bbox": [1, 2, 3, k]} for k in (4, 5)]),
     "annotations/instances_train.json:1: annotations[1]: id repeats annotations[0] (1); correct or remove the entry"),
    ("coco bbox of texts", "coco", annotation(bbox=["1", "2", "9", "10"]),
     "annotations/instances_train.json:1: annotations[0]: bbox is not x, y, width, height (['1', '2', '9', '10']); correct or remove the entry"),
    ("coco bbox of booleans", "coco", annotation(bbox=[True, 2, 9, 10]),
     "annotations/instances_train.json:1: annotations[0]: bbox is not x, y, width, height ([True, 2, 9, 10]); correct or remove the entry"),
    ("coco bbox of three", "coco", annotation(bbox=[1, 2, 9]),
     "annotations/instances_train.json:1: annotations[0]: bbox is not x, y, width, height ([1, 2, 9]); correct or remove the entry"),
    ("coco bbox missing", "coco", annotation(bbox=None),
     "annotations/instances_train.json:1: annotations[0]: bbox is not x, y, width, height (nothing); correct or remove the entry"),
    ("coco nan", "coco", annotation(bbox=[float("nan"), 2, 9, 10]),
     "annotations/instances_train.json:1: annotations[0]: a coordinate is not finite (nan,2,9,10); give pixels"),
    ("coco whole number beyond floats", "coco", annotation(bbox=[1, 2, 10**400, 10]),
     "annotations/instances_train.json:1: annotations[0]: a coordinate is not finite (inf,inf,inf,inf); give pixels"),
    ("coco number of 10,000 digits", "coco", raw_coco('{"images": [' + "9" * 10_000 + "]}"),
     "annotations/instances_train.json:1: not usable JSON (a number of thousands of digits); nothing is read from here on; correct the file"),
    ("coco negative width", "coco", annotation(bbox=[10, 2, -9, 10]),
     "annotations/instances_train.json:1: annotations[0]: the width is negative (10,2,-9,10); give the left edge and the distance to the right one"),
    ("coco no height", "coco", annotation(bbox=[1, 2, 9, 0]),
     "annotations/instances_train.json:1: annotations[0]: the box has no height (1,2,9,0); correct or remove it"),
    ("coco outside", "coco", annotation(bbox=[1, 2, 40, 10]),
     "annotations/instances_train.json:1: annotations[0]: the box leaves the image, 40 x 30 pixels (1,2,40,10); clip the box to the image, or correct it"),
    ("coco unknown image", "coco", annotation(image_id=8),
     "annotations/instances_train.json:1: annotations[0]: image_id names no image (8); correct or remove the entry"),
    ("coco unknown category", "coco", annotation(category_id=4),
     "annotations/instances_train.json:1: annotations[0]: category_id names no category (4); correct or remove the entry"),
    ("coco category name twice", "coco", coco(categories=[{"id": 3, "name": "cat"}, {"id": 9, "name": "cat"}]),
     "annotations/instances_train.json:1: categories[1]: the name is there twice (cat); correct or remove the entry"),
    ("coco category id a text", "coco", coco(categories=[{"id": "3", "name": "cat"}]),
     ('annotations/instances_train.json: no "categories"; a COCO file has the lists images, annotations and categories\n' "annotations/instances_train.json:1: categories[0]: id is not a whole number (3); correct or remove the entry")),
    ("coco other size", "coco", coco(images=[COCO["images"][0] | {"width": 50}]),
     "annotations/instances_train.json:1: images[0]: the size differs from that of the image, 40 x 30 pixels (50 x 30); correct it, and the boxes if they were drawn on another version of the image"),
    ("coco size turned", "coco", coco(images=[COCO["images"][0] | {"width": 30, "height": 40}]),
     "annotations/instances_train.json:1: images[0]: the size differs from that of the image, 40 x 30 pixels (30 x 40); boxes are in pixels of the upright image, after EXIF orientation: annotate it upright, or remove the orientation from the file"),
    ("coco crowd of two", "coco", annotation(iscrowd=2),
     "annotations/instances_train.json:1: annotations[0]: iscrowd is not 0 or 1 (2); correct or remove the entry"),
    ("coco image missing", "coco", {"train/a.png": None},
     "annotations/instances_train.json:3: images[0]: cannot read image train/a.png: no such file; images are looked for in the first of these that has any: train, images/train, images, annotations, ."),
    # Pascal VOC.
    ("voc bom", "voc", {"Annotations/a.xml": "\ufeff" + XML}, ACCEPTED),
    ("voc utf-16", "voc", {"Annotations/a.xml": ("\ufeff" + XML).encode("utf-16-le")}, ACCEPTED),
    ("voc declaration", "voc", {"Annotations/a.xml": '<?xml version="1.0" encoding="ISO-8859-1"?>' + XML}, ACCEPTED),
    ("voc crlf", "voc", {"Annotations/a.xml": XML.replace("\n", "\r\n"), "ImageSets/Main/train.txt": "a\r\n"}, ACCEPTED),
    ("voc older file name", "voc", voc("a.png", "IMG_1.JPG"), ACCEPTED),
    ("voc parts", "voc", voc("<object>", "<object><part><name>head</name><bndbox><xmin>x</xmin></bndbox></part>"), ACCEPTED),
    ("voc billion laughs", "voc", {"Annotations/a.xml": LAUGHS},
     "Annotations/a.xml:1: not usable XML (it declares a document type (<!DOCTYPE ...>)); write it as plain XML, without DOCTYPE"),
    ("voc external entity", "voc", {"Annotations/a.xml": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + XML.replace("cat", "&x;")},
     "Annotations/a.xml:1: not usable XML (it declares a document type (<!DOCTYPE ...>)); write it as plain XML, without DOCTYPE"),
    ("voc not closed", "voc", voc("</object>", ""),
     "Annotations/a.xml:5: not usable XML (mismatched tag); write it as plain XML, without DOCTYPE"),
    ("voc empty file", "voc", {"Annotations/a.xml": ""},
     "Annotations/a.xml:1: not usable XML (no element found); write it as plain XML, without DOCTYPE"),
    ("voc other document", "voc", {"Annotations/a.xml": "<html></html>"},
     "Annotations/a.xml:1: not a VOC annotation (<html>); a VOC file holds <annotation> with <object> in it"),
    ("voc nested deeply", "voc", {"Annotations/a.xml": "<a>" * 100_000},
     "Annotations/a.xml:1: not usable XML (nested more than 50 deep); write it as plain XML, without DOCTYPE"),
    ("voc no name", "voc", voc("<name>cat</name>", ""),
     "Annotations/a.xml:3: the object has no name; correct the object"),
    ("voc no box", "voc", voc("<xmin>2</xmin>", ""),
     "Annotations/a.xml:3: the object has no xmin (cat); correct the object"),
    ("voc nan", "voc", voc("<xmin>2<", "<xmin>nan<"),
     "Annotations/a.xml:3: a coordinate is not finite (nan,3,10,12); give pixels"),
    ("voc text", "voc", voc("<xmin>2<", "<xmin>two<"),
     "Annotations/a.xml:3: xmin is not a number (two); correct the object"),
    ("voc swapped", "voc", voc("<xmin>2<", "<xmin>20<"),
     "Annotations/a.xml:3: xmax is less than xmin (20,3,10,12); swap the corners: xmin is left, xmax is right"),
    ("voc counted from 0", "voc", voc("<xmin>2<", "<xmin>0<"),
     "Annotations/a.xml:3: the box leaves the image, 40 x 30 pixels (0,3,10,12); VOC counts pixels from 1: add 1 to what was counted from 0, or clip the box"),
    ("voc difficult", "voc", voc("<difficult>0<", "<difficult>yes<"),
     "Annotations/a.xml:3: difficult is not 0 or 1 (yes); correct the object"),
    ("voc annotation missing", "voc", {"Annotations/a.xml": None},
     "Annotations/a.xml: cannot read the file (No such file or directory); check the path"),
    ("voc image missing", "voc", {"JPEGImages/a.png": None},
     "Annotations/a.xml: cannot read image JPEGImages/a.png: no such file; an image lies in JPEGImages and is called as in the list of the split"),
    ("voc list missing", "voc", {"ImageSets/Main/train.txt": None},
     "ImageSets/Main/train.txt: cannot read the file (No such file or directory); check the path"),
    ("voc list empty", "voc", {"ImageSets/Main/train.txt": "\n"},
     "ImageSets/Main/train.txt: no images; name one a line"),
    ("voc list of one class", "voc", {"ImageSets/Main/train.txt": "a -1\n"},
     "ImageSets/Main/train.txt:1: not a list of images (a -1); give a split of all classes, such as train, val or trainval"),
    ("voc list twice", "voc", {"ImageSets/Main/train.txt": "a\na\n"},
     "ImageSets/Main/train.txt:2: repeats line 1 (a); remove one of them"),
    # KITTI.
    ("kitti crlf and bom", "kitti", {"train/label_2/a.txt": "\ufeff" + KITTI + "\r\n"}, ACCEPTED),
    ("kitti columns", "kitti", {"train/label_2/a.txt": "cat 1 2 10 12\n"},
     "train/label_2/a.txt:1: 5 column(s) where 15 are expected (cat 1 2 10 12); a line is type truncated occluded alpha left top right bottom and 7 numbers of the object in space"),
    ("kitti text", "kitti", {"train/label_2/a.txt": KITTI.replace(" 12 ", " twelve ")},
     "train/label_2/a.txt:1: bottom is not a number (twelve); give pixels"),
    ("kitti infinity", "kitti", {"train/label_2/a.txt": KITTI.replace(" 12 ", " inf ")},
     "train/label_2/a.txt:1: a coordinate is not finite (1,2,10,inf); give pixels"),
    ("kitti outside", "kitti", {"train/label_2/a.txt": KITTI.replace(" 12 ", " 31 ")},
     "train/label_2/a.txt:1: the box leaves the image, 40 x 30 pixels (1,2,10,31); it fits the image with width and height swapped: boxes are in pixels of the upright image, after EXIF orientation"),
    ("kitti labels missing", "kitti", {"train/label_2/a.txt": None},
     "train/label_2/a.txt: cannot read the file (No such file or directory); check the path"),
    ("kitti no such split", "kitti", {"train/image_2/a.png": None},
     "train/image_2: no images; put the images of the split there"),
    ("kitti not utf-8", "kitti", {"train/label_2/a.txt": b"\xff\xfe"},
     "train/label_2/a.txt: not UTF-8 text (byte 0xff at offset 0); save the file as UTF-8"),
    # Open Images.
    ("open images bom", "openimages", {"train-annotations-bbox.csv": f"\ufeff{OPEN_HEADER}\r\n{OPEN_ROW}\r\n"}, ACCEPTED),
    ("open images no header", "openimages", {"train-annotations-bbox.csv": OPEN_ROW},
     "train-annotations-bbox.csv:1: no header row with ImageID, LabelName, XMin, YMin, XMax, YMax (a,/m/1,0.025,0.25,0.0666666667,0.4,0); the first row names the columns"),
    ("open images pixels", "openimages", open_row("0.4", "12"),
     "train-annotations-bbox.csv:2: YMax is not a share of the image's side (12); give 0 to 1"),
    ("open images beyond", "openimages", open_row("0.4", "1.2"),
     "train-annotations-bbox.csv:2: the box leaves the image, 40 x 30 pixels (0.025,0.0666666667,0.25,1.2); clip the box to the image, or correct it"),
    ("open images swapped", "openimages", open_row("0.25", "0.01"),
     "train-annotations-bbox.csv:2: XMax is less than XMin (0.025,0.0666666667,0.01,0.4); swap the corners: XMin is left, XMax is right"),
    ("open images unknown class", "openimages", open_row("/m/1", "/m/9"),
     "train-annotations-bbox.csv:2: unknown class (/m/9); add it to the class descriptions"),
    ("open images group", "openimages", open_row("0.4,0", "0.4,yes"),
     "train-annotations-bbox.csv:2: IsGroupOf is not 0, 1 or -1 (yes); correct the row"),
    ("open images no classes", "openimages", {"class-descriptions.csv": None},
     ".: 0 files are called *class-descriptions*.csv, one is needed; see docs/data.md"),
    ("open images image missing", "openimages", {"train/a.png": None},
     "train-annotations-bbox.csv:2: cannot read image train/a.jpg: no such file; images lie in train or images/train"),
    ("open images class twice", "openimages", {"class-descriptions.csv": "/m/1,cat\n/m/1,dog\n"},
     "class-descriptions.csv:2: the machine name is there twice (/m/1,dog); correct the row"),
    # YOLO.
    ("yolo names by id", "yolo", yolo_yaml("train: images/train\nnames:\n  0: cat\n  1: dog\n"), ACCEPTED),
    ("yolo bom and crlf", "yolo", yolo_yaml("\ufefftrain: images/train\r\nnames: [cat, dog]\r\n"), ACCEPTED),
    ("yolo list of images", "yolo", yolo_yaml("train: t.txt\nnames: [cat, dog]\n") | {"t.txt": "./images/train/a.png\n"}, ACCEPTED),
    ("yolo constructs objects", "yolo", yolo_yaml('names: !!python/object/apply:os.system ["true"]\n'),
     "data.yaml:1: not usable YAML (could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'); correct the file"),
    ("yolo aliases", "yolo", yolo_yaml("a: &a [x]\nb: [*a, *a]\n"),
     "data.yaml:2: not usable YAML (aliases (*name) are not read); correct the file"),
    ("yolo nested deeply", "yolo", yolo_yaml("a: " + "[" * 10_000),
     "data.yaml:1: not usable YAML (nested more than 50 deep); correct the file"),
    ("yolo not yaml", "yolo", yolo_yaml("names: [cat\ntrain: x"),
     "data.yaml:2: not usable YAML (did not find expected ',' or ']'); correct the file"),
    ("yolo tabs", "yolo", yolo_yaml("names:\n\t- cat\n"),
     "data.yaml:2: not usable YAML (found character that cannot start any token); correct the file"),
    ("yolo a list", "yolo", yolo_yaml("- cat\n"),
     "data.yaml:1: not usable YAML (it holds no mapping of keys to values); correct the file"),
    ("yolo key twice", "yolo", yolo_yaml("train: a\ntrain: b\nnames: [cat]\n"),
     "data.yaml:1: not usable YAML (the key is there twice: train); correct the file"),
    ("yolo name read as a truth value", "yolo", yolo_yaml("train: images/train\nnames: [cat, no]\n"),
     'data.yaml: names[1] is not a text, put it between " (False); give names: [a, b] or names: {0: a, 1: b}'),
    ("yolo names with a gap", "yolo", yolo_yaml("train: images/train\nnames: {0: cat, 2: dog}\n"),
     "data.yaml: the ids of names are not 0, 1, 2, ... (0, 2); give names: [a, b] or names: {0: a, 1: b}"),
    ("yolo nc", "yolo", yolo_yaml("train: images/train\nnc: 3\nnames: [cat, dog]\n"),
     "data.yaml: nc differs from the number of names, 2 (3); correct it"),
    ("yolo no such folder", "yolo", yolo_yaml("train: images/tarin\nnames: [cat, dog]\n"),
     "images/tarin: no such folder; path and split are relative to the folder of the YAML file"),
    ("yolo no such split", "yolo", yolo_yaml("val: images/train\nnames: [cat, dog]\n"),
     "data.yaml: train names no folder or list of images (None); the file has val"),
    ("yolo class id", "yolo", {"labels/train/a.txt": YOLO.replace("0 ", "2 ", 1)},
     "labels/train/a.txt:1: unknown class (2); the names have ids 0 to 1"),
    ("yolo class name", "yolo", {"labels/train/a.txt": YOLO.replace("0 ", "cat ", 1)},
     "labels/train/a.txt:1: the class is not a whole number from 0 (cat); a line is class cx cy width height, the last four as shares of the image's sides"),
    ("yolo polygon", "yolo", {"labels/train/a.txt": "0 0.1 0.1 0.2 0.1 0.2 0.2\n"},
     "labels/train/a.txt:1: 7 column(s) where 5 are expected (0 0.1 0.1 0.2 0.1 0.2 0.2); a line is class cx cy width height, the last four as shares of the image's sides; polygons are not read"),
    ("yolo pixels", "yolo", {"labels/train/a.txt": "0 20 15 10 10\n"},
     "labels/train/a.txt:1: cx is not a share of the image's side (20); a line is class cx cy width height, the last four as shares of the image's sides"),
    ("yolo negative width", "yolo", {"labels/train/a.txt": "0 0.5 0.5 -0.1 0.1\n"},
     "labels/train/a.txt:1: the width is negative (0.5,0.5,-0.1,0.1); give the left edge and the distance to the right one"),
    ("yolo beyond", "yolo", {"labels/train/a.txt": "0 0.5 0.5 1.1 0.1\n"},
     "labels/train/a.txt:1: the box leaves the image, 40 x 30 pixels (0.5,0.5,1.1,0.1); clip the box to the image, or correct it"),
    ("yolo labels missing", "yolo", {"labels/train/a.txt": None},
     "data.yaml: 1 of 1 images have no label file (the first is labels/train/a.txt); labels of images/a.jpg are in labels/a.txt, or beside the image"),
    ("yolo yaml missing", "yolo", yolo_yaml(None),
     "data.yaml: cannot read the file (No such file or directory); check the path"),
]  # fmt: skip
