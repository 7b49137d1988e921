# ruff: noqa: E501
"""Bad inputs of training and the demo: configs, workdirs, weights and data."""

import functools
import shutil

from sound_sets import noisy_png, png
from world import Case

TINY = "--config tiny.py --workdir out "
RESUME = "--config tiny.py --workdir run "
train, demo = functools.partial(Case, "train"), functools.partial(Case, "demo")


def write(name: str, content: str):
    """Writes a file, or all files that match a pattern."""

    def make(folder):
        for path in list(folder.glob(name)) or [folder / name]:
            path.write_text(content)

    return make


def folder(name: str):
    """Creates a folder in place of a file."""

    def make(root):
        (root / name).unlink(missing_ok=True)
        (root / name).mkdir()

    return make


def file(name: str):
    """Creates a file in place of a folder."""

    def make(root):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).write_text("x")

    return make


def experiment(text: str) -> dict:
    return {"e.py": text}


GET = "from m2det_jax.config import default_config\n\n\ndef get_config():\n    c = default_config()\n    {}\n    return c\n"
EXPERIMENT = "--config e.py --workdir out"

DEMO = {
    "d/data/a.png": png(),
    "d/data/train.csv": "a.png,1,2,10,12,cat\n",
    "d/data/val.csv": "a.png,,,,,\n",
    "d/data/classes.csv": "cat,0\n",
}

# (name, override, expected): config keys and what is wrong with their values.
OVERRIDES = [
    ("unknown key", "--config.modl.backbone=vgg16", r"--config\.modl\.backbone: there is no such key; the nearest is --config\.model\.backbone"),
    ("a section for a key", "--config.data=x", r"--config\.data: there is no such key; the nearest is --config\.data\."),
    ("text for a whole number", "--config.batch_size=1e3", r"--config\.batch_size=1e3: give a value of type int, now 8"),
    ("text for a number", "--config.epochs=", r"--config\.epochs=: give a value of type float, now 2\.0"),
    ("text for a truth value", "--config.augment.enabled=maybe", r"--config\.augment\.enabled=maybe: give a value of type bool, now True"),
    ("no value", "--config.data.image_size", "Missing value for flag --config.data.image_size"),
    ("zero epochs", "--config.epochs=0", r"config\.epochs=0\.0: must be above 0"),
    ("infinite epochs", "--config.epochs=inf", r"config\.epochs=inf: give finite numbers"),
    ("huge whole number", "--config.log.every_steps=99999999999999999999", r"config\.log\.every_steps=9{20}: must be below 2147483648"),
    ("negative patience", "--config.eval.patience=-1", r"config\.eval\.patience=-1: must be 0 or more"),
    ("share above 1", "--config.loss.focal_alpha=2", r"config\.loss\.focal_alpha=2\.0: must lie in 0\.\.1"),
    ("choice", "--config.data.resize=crop", r"config\.data\.resize='crop': give one of 'stretch', 'letterbox'"),
    ("no tuple", "--config.data.image_size=64", r"config\.data\.image_size=\(64,\): give \(height, width\), each 64 or more"),
    ("means of two channels", "--config.data.mean='(1,2)'", r"config\.data\.mean=\(1, 2\): give three numbers, R, G and B"),
    ("division by zero", "--config.data.std='(0,1,1)'", r"config\.data\.std=\(0, 1, 1\): the image is divided by it; give above 0"),
    ("means of another scale", "--config.data.mean='(-1,0,300)'", r"config\.data\.mean=\(-1, 0, 300\): must lie in 0\.\.255"),
    ("momentum that diverges", "--config.optimizer.momentum=2", r"config\.optimizer\.momentum=2\.0: must lie in 0\.\.1, below 1"),
    ("decay without factors", "--config.optimizer.decay_epochs='(1,)'", r"config\.optimizer\.decay_factors=\(0\.1, 0\.1\): give one for each"),
    ("two forms of a warm-up", "--config.optimizer.warmup_share=0.1 --config.optimizer.warmup_epochs=2", r"config\.optimizer\.warmup_epochs=2\.0 and warmup_share=0\.1 are both given: set one"),
    ("decay that goes back", "--config.optimizer.decay_epochs='(5,3)'", r"config\.optimizer\.decay_epochs=\(5, 3\): must rise"),
    ("decay of texts", "--config.optimizer.decay_factors='(\"a\",1)'", r"config\.optimizer\.decay_factors=\('a', 1\): give numbers above 0"),
    ("anchors too few", "--config.anchors.sizes='(10,)'", r"config\.anchors\.sizes=\(10,\): give 3 values for kind='ssd' and config\.model\.num_scales=2"),
    ("ratio of zero", "--config.anchors.aspect_ratios='(0,)'", r"config\.anchors\.aspect_ratios=\(0,?\.?0?,?\): give numbers above 0"),
    ("thresholds crossed", "--config.anchors.negative_threshold=0.9", r"config\.anchors\.negative_threshold is above positive_threshold"),
    ("steps for retinanet", "--config.anchors.kind=retinanet --config.anchors.steps='(8,16)'", r"config\.anchors\.steps is for kind 'ssd'"),
    ("retinanet without octaves", "--config.anchors.kind=retinanet --config.anchors.octave_scales='()'", r"config\.anchors\.octave_scales=\(\): give at least one"),
    ("too many scales", "--config.model.num_scales=12 --config.anchors.sizes='()'", "64 x 96 pixels .* cannot have 12 scales: legal are 2 to 3; use fewer scales or larger images"),
    ("frozen stages", "--config.model.frozen_stages=6", r"config\.model\.frozen_stages=6: give 0 to 5"),
    ("stride of another backbone", "--config.model.backbone_official_stride", r"config\.model\.backbone_official_stride=True: only ResNets have it, and config\.model\.backbone='vgg16'"),
    ("alphas of other classes", "--config.loss.focal_alpha_per_class='(0.1,)'", r"config\.loss\.focal_alpha_per_class has 1 values for 2 classes; give one for each of cat, dog"),
    ("alpha that is a text", "--config.loss.focal_alpha_per_class='(\"x\",)'", r"config\.loss\.focal_alpha_per_class=\('x',\): give numbers in 0\.\.1"),
    ("unknown step", "--config.augment.pipeline=\"('fly',)\"", r"config\.augment\.pipeline: unknown step 'fly'; known are expand, crop"),
    ("step twice", "--config.augment.pipeline=\"('flip','flip')\"", r"config\.augment\.pipeline: 'flip' is there twice"),
    ("mosaic late", "--config.augment.pipeline=\"('flip','mosaic')\"", r"config\.augment\.pipeline: 'mosaic' must come first"),
    ("mixup early", "--config.augment.pipeline=\"('mixup','flip')\"", r"config\.augment\.pipeline: 'mixup' must come last"),
    ("zoom under 1", "--config.augment.expand_max=0.5", r"config\.augment\.expand_max: expected a number from 1, got 0\.5"),
    ("negative brightness", "--config.augment.brightness=-5", r"config\.augment\.brightness: expected 0\.\.255, got -5"),
    ("contrast above 1", "--config.augment.contrast=2", r"config\.augment\.contrast: expected a number in 0\.\.1, got 2"),
    ("range upside down", "--config.augment.affine_scale='(2,1)'", r"config\.augment\.affine_scale: expected \(smallest, largest\) above 0, got \(2, 1\)"),
    ("turn of 400 degrees", "--config.augment.affine_rotation=400", r"config\.augment\.affine_rotation: expected degrees in 0\.\.180, got 400"),
    ("one training size", "--config.data.train_sizes='(64,64)'", r"config\.data\.train_sizes=\(64, 64\): give \(\(height, width\), \.\.\.\), each 64 or more"),
    ("test size too small", "--config.eval.test_sizes='(32,)'", r"config\.eval\.test_sizes has 32: give sides or \(height, width\), 64 or more"),
    ("steps at several sizes", "--config.anchors.steps='(8,16)' --config.data.train_sizes='((64,64),(64,96))'", r"config\.anchors\.steps are those of config\.data\.image_size=\(64, 96\); leave them \(\)"),
    ("batch over the devices", "--config.batch_size=12", r"config\.batch_size=12 cannot be split evenly over 8 devices; give a multiple of 8"),
    ("micro-batches", "--config.accumulation=3", r"config\.batch_size=8 is not a multiple of config\.accumulation=3"),
    ("processes without a coordinator", "--config.distributed.num_processes=2", r"config\.distributed\.num_processes=2 without config\.distributed\.coordinator; give 'auto' or 'host:port'"),
    ("process beyond the count", "--config.distributed.coordinator=host:1234 --config.distributed.num_processes=2 --config.distributed.process_id=5", r"config\.distributed\.coordinator='host:1234' needs num_processes .* process_id=5"),
    ("platform that is not there", "--config.platform=gpu", r"config\.platform is 'gpu', but jax finds only 'cpu' devices; .*--config\.platform=''"),
    ("nothing to validate on", "--config.data.val_csv= --config.data.val_fraction=0", r"config\.data\.val_fraction=0\.0: with config\.data\.val_csv='' .* give a number above 0 and below 1"),
    ("module that is none", "--config.data.format=nosuch.module", r"data format 'nosuch\.module': .*No module named 'nosuch'.* give csv, coco"),
    ("module without read", "--config.data.format=os.path --config.data.root=.", r"data format 'os\.path': the module has no function read\(root, split\)"),
    ("format that is no name", "--config.data.format='co co'", r"config\.data\.format='co co': give csv, coco, voc, kitti, openimages, yolo, or the dotted name"),
    ("training set twice", "--config.data.extra_train=\"('train.csv',)\"", "two of the training sets have the image .*a.png; leave one out"),
    ("extra set without a name", "--config.data.extra_train=\"('',)\"", r"config\.data\.extra_train=\('',\): give texts, such as"),
    ("class map of names", "--config.data.class_map=\"('cat','dog')\"", r"config\.data\.class_map=\('cat', 'dog'\): give pairs, such as \(\('van','car'\),\)"),
    ("class mapped twice", "--config.data.class_map=\"(('cat','dog'),('cat','x'))\"", "class_map: cat is mapped twice; give one pair"),
    ("no class left", "--config.data.class_map=\"(('cat',''),('dog',''))\"", r"config\.data\.class_map and labels_filter leave no class; keep one"),
    ("filter of another class", "--config.data.labels_filter=\"('cta',)\"", r"config\.data\.labels_filter: the data set has no class 'cta'; did you mean cat\?"),
    ("filter twice", "--config.data.labels_filter=\"('cat','cat')\"", r"config\.data\.labels_filter=\('cat', 'cat'\): an entry is there twice"),
    ("hierarchy of another format", "--config.data.parent_label=Animal", r"config\.data\.parent_label is for config\.data\.format=\"openimages\""),
    ("one image to split", "--config.data.val_csv= --config.data.train_csv=val.csv", r"cannot split 1 image\(s\) in two parts; give more images, or a validation set"),
    ("file that is a folder", "--config.data.train_csv=.", r"no such file: train_csv=\S+.* give --config\.data\.train_csv=FILE"),
    ("weights that are gone", "--config.model.backbone_weights=gone.safetensors", r"gone\.safetensors: no such file"),
    ("weights of another kind", "--config.model.backbone_weights=a.png", r"a\.png: unknown kind of weights file; give a \.safetensors"),
    ("a run for a backbone", "--config.model.backbone_weights=run", r"run: no backbone there, .* weights of a whole network go into --?config\.init_from|run: no backbone there, .* config\.init_from"),
    ("backbone of another kind", "--config.model.backbone_weights=backbone", r"backbone: the weights are not for config\.model\.backbone=vgg16; set --config\.model\.backbone=resnet18"),
    ("backbone of other images", "--config.model.backbone=resnet18 --config.model.backbone_weights=backbone --config.data.channel_order=bgr", r"backbone: these weights want other images than the config gives; add --config\.data\.mean="),
    ("start from nothing", "--config.init_from=gone", "gone: no checkpoints there; give the --workdir of a training run"),
    ("start from a backbone", "--config.init_from=backbone", r"backbone: a backbone alone, no detector; train one from it with --config\.model\.backbone_weights=\S*backbone"),
    ("start from a step that is none", "--config.init_from=run --config.init_checkpoint=7", r"run: no checkpoint '7'; there are latest, best and the steps \[3, 6\]"),
    ("start from another network", "--config.init_from=converted --config.model.num_levels=1", r"config\.init_from=\S*converted: \d+ tensors do not fit this model\. Settings that differ: config\.model\.num_levels is 1 here, 2 there"),
    ("start from two", "--config.init_from=run --config.model.backbone_weights=x", r"config\.init_from and config\.model\.backbone_weights are both given; give one"),
    ("unknown flag", "--nosuchflag", "Unknown command line flag 'nosuchflag'"),
    ("argument that is no flag", "stray", "unexpected arguments: stray"),
    ("config change of what", "--allow_config_change=perhaps", "--allow_config_change=perhaps: give a value of type bool"),
]  # fmt: skip

CASES = [train(name, TINY + line, (expected,)) for name, line, expected in OVERRIDES] + [
    # Experiments and stored configs.
    train("no config", "--workdir out", ("give --config, such as --config experiments/vgg512.py",)),
    train("config of no file", "--config vgg1024", ("experiment vgg1024: no such file; shipped experiments: .*quickstart",)),
    train("two configs", "--config tiny.py --config quickstart", ("--config is given twice; give one",)),
    train("overrides first", "--config.epochs=1 --config tiny.py", (r"Found --config\.epochs=1 in argv before a value for --config",)),
    train("experiment with text for one without", "--config tiny.py:text", (r"experiment .*tiny\.py:text: cannot be loaded \(TypeError: get_config\(\) takes 0",)),
    train("experiment that is a picture", "--config a.png", (r"experiment a\.png: cannot be loaded",)),
    train("experiment of broken syntax", EXPERIMENT, (r"experiment e\.py: cannot be loaded \(SyntaxError: .*line 1",), experiment("x = (\n")),
    train("experiment with a missing import", EXPERIMENT, (r"experiment e\.py: .*ModuleNotFoundError: No module named 'nosuch', e\.py:1\)",), experiment("import nosuch\n")),
    train("experiment without get_config", EXPERIMENT, (r"experiment e\.py: .*AttributeError: .*get_config",), experiment("")),
    train("experiment that fails", EXPERIMENT, (r"experiment e\.py: .*KeyError: 'a', e\.py:2\)",), experiment("def get_config():\n    raise KeyError('a')\n")),
    train("experiment of another type", EXPERIMENT, (r"experiment e\.py: get_config\(\) returns int, not a ConfigDict",), experiment("def get_config():\n    return 5\n")),
    train("experiment with a key of its own", EXPERIMENT, (r"experiment e\.py: there is no key config\.optimizer\.lerning_rate; the nearest is config\.optimizer\.learning_rate",), experiment(GET.format("c.optimizer.lerning_rate = 1.0"))),
    train("experiment with a value of another type", EXPERIMENT, (r"experiment e\.py: .*TypeError: .*batch_size.*2\.5.*int",), experiment(GET.format("c.batch_size = 2.5"))),
    train("experiment without most keys", EXPERIMENT, (r"experiment e\.py: the config lacks \d+ keys, such as config\.\w+.*; start from default_config\(\)",), experiment("from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'epochs': 3.0})\n")),
    train("experiment of null bytes", EXPERIMENT, (r"experiment e\.py: .*(SyntaxError|ValueError): source code .*null bytes",), experiment("x = 1\0\n")),
    train("stored config cut short", "--workdir run", (r"run/config\.json", "not a config in JSON", "give --config"), make=write("run/config.json", "{")),
    train("stored config of another version", "--workdir run", (r"run/config\.json", "no (config.)?nosuch", "give --config"), make=write("run/config.json", '{"nosuch": 1}')),
    # Data.
    train("annotations that are no text", TINY, (r"train\.csv: not UTF-8 text \(byte 0x89 at offset 0\); save the file as UTF-8",), {"train.csv": b"\x89PNG"}),
    train("validation gone", TINY, (r"no such file: val_csv=\S*val\.csv.* give .*--config\.data\.val_csv=FILE, or train on the built-in",), {"val.csv": None}),
    train("class in one file only", TINY, (r"val\.csv:1: unknown class \(bird\); the classes are cat, dog; add it to the class file",), {"val.csv": "c.png,5,6,30,25,bird\n"}),
    train("box over the edge", TINY, (r"train\.csv:1: the box leaves the image, 40 x 30 pixels \(1,2,41,12\); clip the box",), {"train.csv": "a.png,1,2,41,12,cat\n"}),
    train("image gone", TINY, (r"val\.csv:1: cannot read image .*c\.png: no such file; relative paths start from",), {"c.png": None}),
    train("empty and with boxes", TINY, (r"train\.csv:2: said to have no objects, but line 1 gives it a box .*; remove this row",), {"train.csv": "a.png,1,2,10,12,cat\na.png,,,,,\n"}),
    train("split that is none", TINY + "--config.data.format=coco --config.data.root=coco --config.data.val_split=nosuch", (r"coco/annotations/instances_nosuch\.json: cannot read the file \(No such file",), sets=("coco",)),
    train("no yaml", TINY + "--config.data.format=yolo --config.data.root=nosuch", (r"nosuch/data\.yaml: cannot read the file",)),
    train("truncated pixels", TINY, (r"cannot read image .*a\.png: image file is truncated",), {"a.png": noisy_png()[:600]}),
    # Workdirs.
    train("workdir is a file", "--config tiny.py --workdir a.png", (r"a\.png: there is a file of that name; give another --workdir",)),
    train("workdir of converted weights", "--config tiny.py --workdir converted", (r"converted holds converted weights, not a run to resume; .*--config\.init_from=.*and another --workdir",)),
    train("workdir of another config", RESUME + "--config.seed=1", (r"run/checkpoints is of a run that would go another way: config\.seed was 0, now 1", "--allow_config_change")),
    train("workdir of another network", RESUME + "--config.optimizer.name=adamw --allow_config_change", (r"none of the checkpoints in .*run/checkpoints can be restored into this model; use another --workdir",)),
    train("workdir of other classes", RESUME, (r"trained on the classes \['cat', 'dog'\], the data has \['dog', 'cat'\]; use another --workdir",), {"classes.csv": "dog,0\ncat,1\n"}),
    train("workdir of other annotations", RESUME, ("the validation set: .*, now .*", "another --workdir"), {"val.csv": "b.png,1,2,10,12,cat\n"}),
    train("history cut short", RESUME, (r"history\.jsonl:1: a JSON object with an integer 'step' expected, got b'\{'; correct or delete the line",), make=write("run/history.jsonl", "{\n")),
    train("history is a folder", RESUME, (r"run/history\.jsonl", "Is a directory"), make=folder("run/history.jsonl")),
    train("all checkpoints cut short", RESUME, (r"none of the checkpoints in .*: meta/metadata has 1 of \d+ bytes",), make=write("run/checkpoints/*/meta/metadata", "x")),
    # The demo.
    demo("seed is a text", "--seed x", ("--seed: 'x': give a whole number",), status=2),
    demo("seed too large for numpy", "--seed 99999999999", (r"--seed: 99999999999: must be below 2\^32",), status=2),
    demo("unknown flag", "--nosuch", ("unrecognized arguments: --nosuch",), status=2),
    demo("no workdir behind the flag", "--workdir", ("--workdir: expected one argument",), status=2),
    demo("workdir is a file", "--workdir a.png", (r"Not a directory: .a\.png|a\.png.*(Not a directory|there is a file|is a file, not a folder)",)),
    demo("its data are a file", "--workdir d", ("d/data",), {"d/data": "x"}),
    demo("its data half deleted", "--workdir d", (r"no such file: train_csv=\S*d/data/train\.csv",), {"d/data/classes.csv": "cat,0\n"}),
    demo("its classes edited", "--workdir d", (r"d/data/classes\.csv:2: .*\(x\)",), DEMO | {"d/data/classes.csv": "cat,0\ndog,x\n"}),
    demo("its boxes edited", "--workdir d", (r"d/data/train\.csv:1: x2 is less than x1 \(10,2,1,12\); swap the corners",), DEMO | {"d/data/train.csv": "a.png,10,2,1,12,cat\n"}),
    demo("its images deleted", "--workdir d", (r"d/data/val\.csv:1: cannot read image .*d/data/gone\.png: no such file",), DEMO | {"d/data/val.csv": "gone.png,,,,,\n"}),
    demo("its validation emptied", "--workdir d", (r"d/data/val\.csv: no rows; a row is path,x1,y1,x2,y2,class_name",), DEMO | {"d/data/val.csv": ""}),
    demo("its classes fewer", "--workdir d", (r"d/data/train\.csv:1: unknown class \(cat\); the classes are letter",), DEMO | {"d/data/classes.csv": "letter,0\n"}),
]  # fmt: skip
