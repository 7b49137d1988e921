# ruff: noqa: E501
"""Bad inputs of convert and convert_dataset: weights files, data sets and arguments."""

import functools
import json
import os
import re

import numpy as np
import reading_cases
from safetensors.numpy import save
from sound_sets import SOUND
from world import Case

convert = functools.partial(Case, "convert")
convert_dataset = functools.partial(Case, "convert_dataset")


def weights(content: bytes | None) -> dict:
    return {"w.safetensors": content}


def raw(header: str, body: bytes = b"", length: int | None = None) -> dict:
    """Returns the bytes of a .safetensors file: length of the header, header, tensors."""
    size = len(header) if length is None else length
    return weights(size.to_bytes(8, "little") + header.encode() + body)


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def resnet18() -> dict[str, np.ndarray]:
    """Returns the tensors by which a ResNet-18 is recognised."""
    names = [f"layer{i}.{j}.conv1.weight" for i in range(1, 5) for j in range(2)]
    return {"conv1.weight": ones(8, 3, 7, 7)} | {name: ones(8, 8, 3, 3) for name in names}


def official(**changes: np.ndarray | None) -> dict:
    """Returns the tensors of an official M2Det that are checked first; None removes one."""
    tensors = {
        f"{name}.conv.weight": ones(n, 1, 1, 1)
        for name, n in (
            ("reduce", 256),
            ("up_reduce", 512),
            ("leach.0", 128),
            ("unet1.toplayer.0", 128),
        )
    }
    tensors |= {f"unet{i}.toplayer.0.conv.weight": ones(128, 1, 1, 1) for i in range(1, 9)}
    tensors |= {f"loc.{i}.weight": ones(24, 1, 1, 1) for i in range(6)}
    tensors |= {
        "base.0.weight": ones(64, 3, 3, 3),
        "loc.0.bias": ones(24),
        "conf.0.bias": ones(6 * 81),
    }
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    return weights(save({name: value for name, value in tensors.items() if value is not None}))  # fmt: skip


BACKBONE = "backbone w.safetensors --output out"
OFFICIAL = "official w.safetensors --workdir out --size 320 --classes "
DATASET = "--from csv --split train.csv --classes classes.csv --to coco --output o "

OWN = "from m2det_jax.data import make_index\n\n\ndef read(root, split):\n    "


def own(number: int, text: str) -> dict:
    """A module of the user's, under another name each time: Python keeps what it has imported."""
    return {f"own_format_{number}.py": text}


def from_own(number: int, name: str, text: str, *expected: str) -> Case:
    line = f"--from own_format_{number} --input . --split train --to csv --output o"
    return convert_dataset(name, line, expected, own(number, text))


def of_set(format: str, name: str, line: str, *expected: str) -> Case:
    line = f"--from {format} --input {format} --to csv --output o {line}"
    return convert_dataset(name, line, expected, sets=(format,))


def latin_1(folder) -> None:
    """Gives the image a name that is no UTF-8, as old archives have them."""
    for kind, ending in ((b"images", b"png"), (b"labels", b"txt")):
        path = os.fsencode(folder) + b"/yolo/" + kind + b"/train/"
        os.rename(path + b"a." + ending, path + b"\xff." + ending)


CASES = [
    # Weights of a backbone.
    convert("no verb", "", ("the following arguments are required: verb",), status=2),
    convert("unknown verb", "nosuch x", ("argument verb: invalid choice: 'nosuch'",), status=2),
    convert("no output", "backbone w.safetensors", ("the following arguments are required: --output",), status=2),
    convert("mean of two channels", BACKBONE + " --mean 1 2", ("argument --mean: expected 3 arguments",), status=2),
    convert("deviation of texts", BACKBONE + " --std a b c", ("argument --std: invalid float value: 'a'",), status=2),
    convert("other channels", BACKBONE + " --channel_order rbg", ("argument --channel_order: invalid choice: 'rbg'",), status=2),
    convert("mean of shares", "backbone backbone --output out --mean nan 0 0", (r"mean=\(nan, 0\.0, 0\.0\): give the means of red, green and blue, 0\.\.255",)),
    convert("division by zero", "backbone backbone --output out --std 0 1 1", (r"std=\(0\.0, 1\.0, 1\.0\): the image is divided by it; give above 0",)),
    convert("weights gone", BACKBONE, (r"w\.safetensors: no such file",)),
    convert("weights of no bytes", BACKBONE, (r"w\.safetensors: not a readable \.safetensors file .*header too small.*get it anew",), weights(b"")),
    convert("header longer than the file", BACKBONE, (r"w\.safetensors: not a readable .*header too large",), raw("{}", length=2**62)),
    convert("header is no JSON", BACKBONE, (r"w\.safetensors: not a readable .*JSON",), raw("{nope")),
    convert("weights cut off", BACKBONE, (r"w\.safetensors: not a readable .*(not fully covered|incomplete)",), weights(save(resnet18())[:-10])),
    convert("tensors that overlap", BACKBONE, (r"w\.safetensors: not a readable .*invalid offset",), raw(json.dumps({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}), bytes(12))),
    convert("dtype of another world", BACKBONE, (r"w\.safetensors: a dtype that numpy does not have .*float8",), raw(json.dumps({"a": tensor("F8_E4M3", [2], 0, 2)}), bytes(2))),
    convert("no tensors", BACKBONE, (r"w\.safetensors: not the weights of a backbone that is known .*first tensors are none",), weights(save({}))),
    convert("tensors of something else", BACKBONE, (r"w\.safetensors: not the weights of a backbone .*first tensors are head",), weights(save({"head": ones(2)}))),
    convert("a whole detector", BACKBONE, (r"w\.safetensors: .*looks like a whole M2Det, for which there is `m2det_jax\.convert official`",), weights(save({"unet1.x": ones(2)}))),
    convert("half a backbone", BACKBONE, (r"w\.safetensors, read as resnet18: 97 problems\nmissing: layer1\.0\.bn1\.running_mean",), weights(save(resnet18()))),
    convert("weights of a kind of their own", "backbone a.png --output out", (r"a\.png: unknown kind of weights file; give a \.safetensors",)),
    convert("folder of no backbone", "backbone . --output out", (r"\.: no backbone there; give a weights file, or a folder",)),
    convert("folder of a run", "backbone run --output out", (r"run: no backbone there, or it is damaged .*config\.init_from",)),
    convert("output there", "backbone backbone --output run", (r"run: exists already; give a new ",)),
    # Official checkpoints.
    convert("no classes", "official w.safetensors --workdir out --size 320", ("required: --classes",), status=2),
    convert("size between", OFFICIAL.replace("320", "300") + "coco", ("argument --size: invalid choice: 300",), status=2),
    convert("size and config", OFFICIAL + "coco --config tiny.py", ("--config: not allowed with argument --size",), status=2),
    convert("not official", OFFICIAL + "coco", (r"w\.safetensors: not an official M2Det checkpoint, which would have reduce\.conv\.weight; for a backbone alone",), official(**{"reduce.conv.weight": None})),
    convert("classes gone", OFFICIAL + "gone.csv", (r"gone\.csv: cannot read the file \(No such file",), official()),
    convert("classes are a picture", OFFICIAL + "a.png", (r"a\.png: not UTF-8 text",), official()),
    convert("other classes", OFFICIAL + "voc", (r"w\.safetensors: made for 80 classes and background, but --classes voc has 20; .*--new_class_heads",), official()),
    convert("other anchors", OFFICIAL + "coco", (r"w\.safetensors: has 1 anchors a cell, official_vgg320 has 6; give --config",), official(loc__0__bias=ones(4), conf__0__bias=ones(81))),
    convert("other widths", OFFICIAL + "coco", (r"official_vgg320: not of the official form: config\.model\.shallow_channels=16, not 256",), official(**{"reduce.conv.weight": ones(16, 1, 1, 1)})),
    convert("experiment of another form", "official w.safetensors --workdir out --config tiny.py --classes coco", (r"experiment tiny\.py: not of the official form: config\.\w+\.\w+=.*config\.data\.channel_order='rgb', not 'bgr'",), official()),
    convert("experiment that fails", "official w.safetensors --workdir out --config e.py --classes coco", (r"experiment e\.py: .*KeyError: 'a', e\.py:2",), official() | {"e.py": "def get_config():\n    raise KeyError('a')\n"}),
    convert("experiment of no file", "official w.safetensors --workdir out --config nosuch --classes coco", ("experiment nosuch: no such file; shipped experiments: ",), official()),
    convert("workdir gone", "to_official o.safetensors --workdir gone", ("gone: no checkpoints there; give the --workdir of a training run",)),
    convert("step that is none", "to_official o.safetensors --workdir run --checkpoint 7", (r"run: no checkpoint '7'; there are latest, best and the steps \[3, 6\]",)),
    convert("run of another form", "to_official o.safetensors --workdir run", (r"run: not of the official form: config\.data\.channel_order='rgb', not 'bgr'; .*config\.loss\.kind='focal', not 'softmax'",)),
    convert("output is there", "to_official a.png --workdir run", (r"a\.png: exists already",)),
    # Data sets: what is asked for.
    convert_dataset("nothing asked", "", ("required: --from, --to, --split, --output",), status=2),
    convert_dataset("unknown target", DATASET.replace("coco", "xml"), ("argument --to: invalid choice: 'xml'",), status=2),
    convert_dataset("stray argument", DATASET + "stray", ("unrecognized arguments: stray",), status=2),
    convert_dataset("filter of nothing", DATASET + "--labels_filter", ("argument --labels_filter: expected at least one argument",), status=2),
    convert_dataset("unknown format", DATASET.replace("csv --split", "nosuch --split").replace("--classes classes.csv", ""), (r"data format 'nosuch': .*No module named 'nosuch'.*give csv, coco",)),
    convert_dataset("format without a name", "--from '' --split a --to csv --output o", (r"data format '': .*give csv, coco",)),
    convert_dataset("no class file", DATASET.replace("--classes classes.csv", ""), ("--from csv needs --classes",)),
    convert_dataset("class file for coco", "--from coco --input coco --split train --to csv --output o --classes classes.csv", (r"--classes classes\.csv: is for --from csv; leave it out",), sets=("coco",)),
    convert_dataset("hierarchy for csv", DATASET + "--parent_label Animal", ("--parent_label Animal: is for --from openimages",)),
    convert_dataset("output in use", DATASET.replace("--output o", "--output ."), (r"--output \.: not empty; give another folder, or --force",)),
    convert_dataset("output is the input", DATASET.replace("--output o", "--output . --force"), (r"--output \.: that is the input; give another folder",)),
    convert_dataset("output is a file", DATASET.replace("--output o", "--output a.png"), (r"--output a\.png: there is a file of that name",)),
    convert_dataset("two names for one", DATASET + "--as x --as y", ("1 splits and the names x, y: give --as once for each --split",)),
    convert_dataset("name with a slash", DATASET + "--as a/b", ("--as 'a/b': a name without / is needed",)),
    convert_dataset("map without an arrow", DATASET + "--class_map cat", ("--class_map cat: give FROM=TO, or FROM= to drop a class",)),
    convert_dataset("map of no class", DATASET + "--class_map bird=x", ("--class_map: no split has the class bird; the classes are cat, dog",)),
    convert_dataset("mapped twice", DATASET + "--class_map cat=dog cat=x", ("class_map: cat is mapped twice; give one pair",)),
    convert_dataset("all dropped", DATASET + "--class_map cat= dog=", ("--class_map drops all classes; keep one",)),
    convert_dataset("filter of another class", DATASET + "--labels_filter cta", (r"--labels_filter: no split has the class cta; did you mean cat\?",)),
    convert_dataset("filter twice", DATASET + "--labels_filter cat cat", ("--labels_filter: cat is there twice; name it once",)),
    # Data sets: what is there.
    of_set("coco", "coco split gone", "--split val", r"coco/annotations/instances_val\.json: cannot read the file \(No such file"),
    of_set("yolo", "yolo split gone", "--split test", r"yolo/data\.yaml: test names no folder or list of images \(None\); the file has train"),
    of_set("openimages", "open images without a hierarchy", "--split train --parent_label Animal", r"openimages: 0 files are called \*hierarchy\*\.json, one is needed; see docs/data\.md"),
    convert_dataset("image of another encoding", "--from yolo --input yolo --split train --to csv --output o", (r"b'.*/\\xff\.png': no UTF-8 name; rename the image",), sets=("yolo",), make=latin_1),
    # Data sets: a module of the user's.
    from_own(1, "own format of broken syntax", "x = (\n", r"data format 'own_format_1': .*SyntaxError: .*own_format_1\.py, line 1"),
    from_own(2, "own format with a missing import", "import nosuch_at_all\n", r"data format 'own_format_2': .*No module named 'nosuch_at_all', own_format_2\.py:1"),
    from_own(3, "own format without read", "read = 3\n", r"data format 'own_format_3': the module has no function read\(root, split\)"),
    from_own(4, "own format of another type", "def read(root, split):\n    return 5\n", r"own_format_4\.read\('\.', 'train'\): not a DetectionIndex but int; make one with"),
    from_own(5, "own format that fails", "def read(root, split):\n    raise KeyError('x')\n", r"own_format_5\.read\('\.', 'train'\): KeyError: 'x', own_format_5\.py:2; correct the module"),
    from_own(6, "own format of other arguments", "def read(root):\n    return 5\n", r"own_format_6\.read\('\.', 'train'\): TypeError: read\(\) takes 1 positional argument"),
    from_own(7, "own format of no images", OWN + "return make_index([], ['a'])\n", r"own_format_7\.read: no images; check root and split"),
    from_own(8, "own format of an unknown class", OWN + "return make_index([('a.png', [(1, 2, 3, 4, 'b')])], ['a'])\n", r"a\.png: unknown class \(b\); class_names has a: correct the name or add it"),
    from_own(9, "own format of missing images", OWN + "return make_index([('gone.png', [])], ['a'])\n", r"own_format_9\.read: images\[0\]: .*gone\.png: no such file"),
    from_own(10, "own format of boxes beyond", OWN + "return make_index([('a.png', [(1, 2, 300, 4, 'a')])], ['a'])\n", r"own_format_10\.read: boxes\[0\]: the box leaves the image, 40 x 30 pixels \(1,2,300,4\)"),
    from_own(11, "own format of three numbers", OWN + "return make_index([('a.png', [(1, 2, 3, 'a')])], ['a'])\n", r"own_format_11\.read\('\.', 'train'\): ValueError: .*own_format_11\.py:5"),
]  # fmt: skip

# Every refused case of the readers, through a verb. Only check decodes pixels.
PIXELS = ("image truncated png", "image truncated jpeg", "image wider than a decoder holds")
CONVERT = "--input data --to csv --output o --split train"
CHECK = (
    "--config tiny.py --output report --config.data.train_csv=data/train.csv "
    "--config.data.classes_csv=data/classes.csv"
)


def reading(name: str, format: str, changes: dict, message: str) -> Case:
    files = {f"data/{file}": content for file, content in (SOUND[format] | changes).items()}
    # What is wrong: behind the place, without the value; paths of images are whole ones here.
    what = re.split(r" \(|;|: ", message.splitlines()[0].removesuffix("...").partition(": ")[2])[0]
    what = re.sub(r"image\\ \S+$", "image .*", re.escape(what))
    options = {"expected": (what,), "files": files, "message": message}
    if name in PIXELS:
        return Case("check", name, CHECK, **options)
    csv = ".csv --classes classes.csv" if format == "csv" else ""
    return Case("convert_dataset", name, f"--from {format} {CONVERT}{csv}", **options)


_READING = [
    reading(name, format, changes, expected)
    for name, format, changes, expected in reading_cases.CASES
    if expected != reading_cases.ACCEPTED
]
# Several formats have the same checks; test_bad_data.py has all of them.
CASES += {case.shape: case for case in reversed(_READING)}.values()
