# ruff: noqa: E501
"""Bad inputs of evaluate, predict and check."""

import functools
import json
import shutil

from cases_train import GET, experiment, write
from sound_sets import huge_png, noisy_png
from world import Case

check = functools.partial(Case, "check")
evaluate, predict = functools.partial(Case, "evaluate"), functools.partial(Case, "predict")
CHECK = "--config tiny.py --output report "
RUN = "--workdir run "


def remove(name: str):
    def make(root):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def cut(pattern: str, keep: int):
    """Truncates all files that match a pattern to `keep` bytes."""

    def make(root):
        for path in root.glob(pattern):
            path.write_bytes(path.read_bytes()[:keep])

    return make


def flip(pattern: str):
    """Flips one bit in the middle of the first file that matches a pattern."""

    def make(root):
        path = sorted(root.glob(pattern))[0]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return make


def stored(change):
    """Changes the meta of the newest checkpoint, and removes the checksums that would show it."""

    def make(root):
        path = root / "run/checkpoints/6/meta/metadata"
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))
        (path.parents[1] / "checksums.json").unlink()

    return make


def both(name, line, expected, picture="a.png", **options):
    """The same for evaluate and predict."""
    yield evaluate(name, line, (expected,), **options)
    yield predict(name, f"{line} {picture}", (expected,), **options)


CASES = [
    # Both: the workdir, the checkpoint and --set.
    *both("workdir gone", "--workdir gone", "gone: no checkpoints there; give the --workdir of a training run"),
    *both("workdir of a backbone", "--workdir backbone", r"backbone: a backbone alone, no detector; train one from it with --config\.model\.backbone_weights=backbone"),
    *both("checkpoint that is none", RUN + "--checkpoint 7", r"run: no checkpoint '7'; there are latest, best and the steps \[3, 6\]"),
    *both("checkpoints is an empty folder", RUN, "run: no finished checkpoint there yet", make=lambda root: [remove("run/checkpoints")(root), (root / "run/checkpoints").mkdir()]),
    *both("batch over the devices", RUN + "--batch_size 3", "--batch_size=3 cannot be split evenly over 8 devices; give a multiple of 8"),
    *both("batch that is no number", RUN + "--batch_size many", "argument --batch_size: invalid int value: 'many'", status=2),
    *both("set without a value", RUN + "--set eval.nms", r"--set eval\.nms: give KEY=VALUE, such as eval\.score_threshold=0\.3"),
    *both("set an unknown key", RUN + "--set eval.nmz=hard", r"--set eval\.nmz: there is no such key among those of section eval, .* the nearest is eval\.nms"),
    *both("set another choice", RUN + "--set eval.nms=firm", r"config\.eval\.nms='firm': give one of 'hard', 'soft_linear', 'soft_gaussian'"),
    *both("set another type", RUN + "--set eval.max_detections=1.5", r"--set eval\.max_detections=1\.5: give a value of type int, now 20"),
    *both("set a huge number", RUN + "--set eval.max_detections=99999999999999999999", r"config\.eval\.max_detections=9{20}: must be below 2147483648"),
    *both("set infinity", RUN + "--set eval.soft_sigma=1e999", r"config\.eval\.soft_sigma=inf: give finite numbers"),
    *both("set half a list", RUN + "--set eval.test_sizes=[1,2", r"config\.eval\.test_sizes has '\[1,2': give sides or \(height, width\), 64 or more"),
    *both("unknown flag", RUN + "--nosuch", "unrecognized arguments: --nosuch", status=2),
    *both("bit turned in the weights", RUN, r"checkpoint 6 in .*run/checkpoints is damaged .*model/.* has changed since it was written.*give another one of \[3\]", make=flip("run/checkpoints/6/model/**/d/*")),
    # Evaluate.
    evaluate("no workdir", "--csv val.csv", ("the following arguments are required: --workdir",), status=2),
    evaluate("no value behind a flag", RUN + "--csv", ("argument --csv: expected one argument",), status=2),
    evaluate("annotations gone", RUN + "--csv gone.csv", (r"gone\.csv: cannot read the file \(No such file or directory\); check the path",)),
    evaluate("annotations are a folder", RUN + "--csv .", (r"\.: cannot read the file \(it is a directory\); check the path",)),
    evaluate("annotations are a picture", RUN + "--csv a.png", (r"a\.png: not UTF-8 text \(byte 0x89 at offset 0\); save the file as UTF-8",)),
    evaluate("another spelling of a class", RUN + "--csv o.csv", (r"o\.csv:1: unknown class \(Cat\); did you mean cat\?",), {"o.csv": "a.png,1,2,10,12,Cat\n"}),
    evaluate("coordinates as shares", RUN + "--csv o.csv", (r"o\.csv:1: y1 is not a number \(left\); give pixels",), {"o.csv": "a.png,1,left,10,12,cat\n"}),
    evaluate("a class too many", RUN, (r"val\.csv:1: unknown class \(bird\); the classes are cat, dog",), {"val.csv": "c.png,5,6,30,25,bird\n"}),
    evaluate("validation emptied", RUN, (r"val\.csv: no rows; a row is path,x1",), {"val.csv": ""}),
    evaluate("validation image is text", RUN, (r"c\.png: not an image file that Pillow knows",), {"c.png": b"x"}),
    evaluate("meta gone", RUN, (r"checkpoint 6 in .* is damaged .*meta/metadata is missing.*give another one",), make=remove("run/checkpoints/6/meta")),
    evaluate("meta cut short", RUN, (r"checkpoint 6 in .* is damaged .*meta/metadata has 20 of \d+ bytes",), make=cut("run/checkpoints/6/meta/metadata", 20)),
    evaluate("checksums emptied", RUN, (r"checkpoint 6 in .* is damaged .*checksums\.json is not a list of checksums",), make=write("run/checkpoints/6/checksums.json", "{}")),
    evaluate("backbone of another version", RUN, (r"config\.model\.backbone='x': give one of 'densenet121'",), make=stored(lambda meta: meta["config"]["model"].update(backbone="x"))),
    evaluate("format without a split", RUN + "--format coco --root .", (r"--format needs the data set that it is for: add --split NAME",)),
    evaluate("csv and a split", RUN + "--csv val.csv --split val.csv", (r"--csv FILE is short for --format csv --split FILE; leave",)),
    evaluate("split that is none", RUN + "--format coco --root . --split nosuch", (r"nosuch.*(no such|No such|not found|cannot read)",)),
    evaluate("class map without a target", RUN + "--csv val.csv --class_map cat", (r"--class_map 'cat': give FROM=TO, or FROM= to drop a class",)),
    evaluate("filter of an unknown class", RUN + "--csv val.csv --labels_filter zebra", (r"--labels_filter: val\.csv has no class 'zebra'",)),
    evaluate("fewer readers than none", RUN + "--num_workers=-5", (r"num_workers: 0 or more expected, or -1 for automatic, got -5",)),
    evaluate("results onto annotations", RUN + "--output val.csv", (r"val\.csv: exists already; m2det-evaluate did not write it, .*write to another folder",)),
    evaluate("module of a workdir alone", RUN, (r"run names the Python module 'json' as config\.data\.format, and importing it runs its code; give --trust",), make=stored(lambda meta: meta["config"]["data"].update(format="json"))),
    # Predict.
    predict("threshold in percent", RUN + "a.png --threshold 50", (r"--threshold: a score from 0 to 1 expected, got 50",)),
    predict("threshold below zero", RUN + "a.png --threshold=-0.1", (r"--threshold: a score from 0 to 1 expected, got -0\.1",)),
    predict("threshold is no number", RUN + "a.png --threshold nan", (r"--threshold: a score from 0 to 1 expected, got nan",)),
    predict("batch below zero", RUN + "a.png --batch_size=-8", (r"--batch_size: 0 or more expected, got -8",)),
    predict("nothing but text", RUN + "b.jpg", (r"nothing to predict on: 1 of 1 images cannot be read: cannot read image .*b\.jpg",), {"b.jpg": "text"}),
    predict("one bad picture, strictly", RUN + "a.png b.jpg --strict", (r"--strict: 1 of 2 images cannot be read: cannot read image .*b\.jpg",), {"b.jpg": "text"}),
    predict("pictures onto photographs", RUN + "p.jpg --output .", (r"p\.jpg: it is one of the files to read .*would be overwritten; write to another folder",), {"p.jpg": noisy_png()}),
    predict("list without images", RUN + "l.json", (r"l\.json.*images",), {"l.json": "{}"}),
    predict("video gone", RUN + "gone.mp4", (r"cannot read video gone\.mp4: no such file",)),
    predict("video that is none", RUN + "a.mp4", (r"cannot read video .*a\.mp4: Invalid data",), {"a.mp4": "text"}),
    predict("video and picture", RUN + "a.mp4 p.jpg", (r"p\.jpg: give videos alone",)),
    predict("tiles of five pixels", RUN + "p.jpg --slice 5", (r"slices: pixels of a tile's longer side, 32 or more, or 'auto' expected, got 5",), {"p.jpg": noisy_png()}),
    predict("nothing to look at", RUN, ("the following arguments are required: PATH",), status=2),
    predict("picture gone", RUN + "gone.jpg", (r"gone\.jpg: no such file or folder",)),
    predict("folder without pictures", RUN + "notes", ("notes: no images in this folder",), {"notes/a.txt": "x"}),
    predict("threshold is a text", RUN + "a.png --threshold high", ("argument --threshold: invalid float value: 'high'",), status=2),
    predict("threshold by --set", RUN + "a.png --set eval.score_threshold=0.2", (r"--set eval\.score_threshold: give predict --threshold instead",)),
    # Check: flags, configs, and data of which it writes the page and ends with status 1.
    check("negative count", CHECK + "--max_images=-1", ("flag --max_images=-1: -1 is not a non-negative integer",)),
    check("count that is a text", CHECK + "--samples=x", ("--samples=x: give a value of type int",)),
    check("side that is no number", CHECK + "--smallest_side=nan", (r"smallest_side=nan.*give a number of pixels, 0 or more",)),
    check("side below zero", CHECK + "--smallest_side=-1", (r"flag --smallest_side=-1: -1\.0 is not a non-negative number",)),
    check("unknown flag", CHECK + "--nosuch=1", ("Unknown command line flag 'nosuch'",)),
    check("unknown key", CHECK + "--config.data.trian_csv=x", (r"--config\.data\.trian_csv: there is no such key; the nearest is --config\.data\.train_csv",)),
    check("no config", "--output report", ("give --config, such as",)),
    check("config of no file", "--config nosuch --output report", ("experiment nosuch: no such file; shipped experiments: .*vgg800",)),
    check("output is a file", "--config tiny.py --output a.png", (r"a\.png",)),
    check("infinite rate", CHECK + "--config.optimizer.learning_rate=inf", (r"config\.optimizer\.learning_rate=inf: give finite numbers",)),
    check("channels of no width", CHECK + "--config.model.tum_width=0", (r"config\.model\.tum_width=0: must be above 0",)),
    check("anchors that do not rise", CHECK + "--config.anchors.sizes='(30,20,10)'", (r"config\.anchors\.sizes=\(30, 20, 10\): must rise",)),
    check("variances of zero", CHECK + "--config.anchors.variances='(0,0.1)'", (r"config\.anchors\.variances=\(0,?\.?0?, 0\.1\): give numbers above 0",)),
    check("too many scales", CHECK + "--config.model.num_scales=9", ("64 x 96 pixels .* cannot have 9 scales: legal are",)),
    check("half an hue circle too much", CHECK + "--config.augment.hue=200", (r"config\.augment\.hue: expected 0\.\.180, got 200",)),
    check("experiment of broken syntax", CHECK.replace("tiny", "e"), (r"experiment e\.py: cannot be loaded \(SyntaxError",), experiment("def get_config(:\n")),
    check("experiment with an unknown key", CHECK.replace("tiny", "e"), (r"experiment e\.py: there is no key config\.epoch; the nearest is config\.epochs",), experiment(GET.format("c.epoch = 1.0"))),
    check("stored config that is a list", "--config c.json --output report", (r"c\.json .*not a config in JSON", "give --config"), {"c.json": "[]"}),
    check("stored config of another type", "--config c.json --output report", (r"c\.json", "epochs|many"), {"c.json": '{"epochs": "many"}'}),
    check("stored config in UTF-16", "--config c.json --output report", (r"c\.json is not a config in JSON \('utf-8' codec can't decode byte 0xff",), {"c.json": "{}".encode("utf-16")}),
    check("no class left", CHECK + "--config.data.class_map=\"(('cat',''),('dog',''))\"", ("class_map and labels_filter leave no class; keep one",)),
    check("classes gone", CHECK, (r"no such file: classes_csv=\S*classes\.csv.* give",), {"classes.csv": None}),
    check("class misspelt", CHECK, (r"train\.csv:1: unknown class \(cta\); did you mean cat\?",), {"train.csv": "a.png,1,2,10,12,cta\n"}),
    check("class id that is a text", CHECK, (r"classes\.csv:2: id is not a whole number from 0 \(x\)",), {"classes.csv": "cat,0\ndog,x\n"}),
    check("class without an id", CHECK, (r"classes\.csv:1: 1 column\(s\) where 2 are expected \(cat\)",), {"classes.csv": "cat\ndog,1\n"}),
    check("class without a name", CHECK, (r"classes\.csv:1: the class name is empty \(,0\)",), {"classes.csv": ",0\ndog,1\n"}),
    check("classes from 1", CHECK, (r"classes\.csv: ids have a gap \(0 is missing, 2 is the largest\); number the 2 classes 0 to 1",), {"classes.csv": "cat,1\ndog,2\n"}),
    check("class id twice", CHECK, (r"classes\.csv:2: id 0 is taken by cat \(dog\); ids must differ",), {"classes.csv": "cat,0\ndog,0\n"}),
    check("no classes", CHECK, (r"classes\.csv: no classes; a row is class_name,id",), {"classes.csv": ""}),
    check("box beyond its image", CHECK, (r"val\.csv:1: .*c\.png: the box leaves the image, 40 x 30 pixels \(1,2,900,12\); clip the box",), {"val.csv": "c.png,1,2,900,12,cat\n"}),
    check("truncated pixels", CHECK, (r"train\.csv:1: .*a\.png: image file is truncated; copy the file again",), {"a.png": noisy_png()[:600]}),
    check("picture is a bomb", CHECK, (r"a\.png: it says that it is 100000 x 100000 pixels large, the limit is 178956970 pixels: make it smaller",), {"a.png": huge_png()}),
    check("rows of five columns", CHECK, (r"train\.csv:1: 5 column\(s\) where 6 are expected \(a\.png,1,2,10,12\); a row is path,x1",), {"train.csv": "a.png,1,2,10,12\n"}),
]  # fmt: skip
