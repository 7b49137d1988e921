"""The configuration: its defaults hold, wrong values are all named, experiments are found."""

import pathlib
import re

import pytest

from m2det_jax.config import default_config, experiments, resolve
from m2det_jax.config.checks import validate_classes
from m2det_jax.config.dotted import flatten, get, nearest_key


def default(**overrides):
    config = default_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
    return config


def test_the_defaults_are_valid_and_those_of_the_paper():
    config = resolve(default_config())
    assert config.data.image_size == (512, 512)
    assert (config.model.backbone, config.model.num_levels, config.model.num_scales) == (
        "vgg16",
        8,
        6,
    )
    assert config.optimizer.decay_epochs == (90.0, 120.0)


def test_two_configs_share_nothing():
    default_config().data.train_csv = "mine.csv"
    assert default_config().data.train_csv == "data/train.csv"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"data__resize": "crop"}, ["config.data.resize='crop'", "'stretch', 'letterbox'"]),
        ({"model__backbone": "vgg61"}, ["config.model.backbone='vgg61'", "'resnet50'", "'vgg16'"]),
        (
            {"model__backbone_official_stride": True},
            ["config.model.backbone_official_stride=True", "backbone='vgg16'"],
        ),
        ({"platform": "cuda"}, ["config.platform='cuda'", "'cpu', 'gpu', 'tpu'"]),
        ({"optimizer__name": "adam"}, ["config.optimizer.name='adam'", "'sgd', 'adamw'"]),
        ({"epochs": 0.0}, ["config.epochs=0.0", "above 0"]),
        ({"epochs": float("nan")}, ["config.epochs=nan", "finite"]),
        ({"batch_size": -4}, ["config.batch_size=-4", "above 0"]),
        ({"accumulation": 0}, ["config.accumulation=0", "above 0"]),
        ({"augment__flip_probability": 1.5}, ["config.augment.flip_probability=1.5", "0..1"]),
        ({"optimizer__ema_decay": -0.1}, ["config.optimizer.ema_decay=-0.1", "0..1"]),
        ({"model__frozen_stages": 6}, ["config.model.frozen_stages=6", "0 to 5"]),
        ({"anchors__negative_threshold": 0.6}, ["config.anchors.negative_threshold", "above"]),
        ({"data__image_size": (512, 32)}, ["config.data.image_size=(512, 32)", "64 or more"]),
        ({"data__image_size": ("a", "b")}, ["config.data.image_size=('a', 'b')", "64 or more"]),
        ({"data__image_size": (512,)}, ["config.data.image_size=(512,)", "(height, width)"]),
        ({"batch_size": 30, "accumulation": 4}, ["batch_size=30", "accumulation=4"]),
        ({"seed": -1}, ["config.seed=-1", "0 or more"]),
        ({"loss__kind": "hinge"}, ["config.loss.kind='hinge'", "'focal', 'softmax'"]),
        ({"loss__negative_ratio": 0.0}, ["config.loss.negative_ratio=0.0", "above 0"]),
        ({"loss__focal_alpha_per_class": (0.5, 2.0)}, ["focal_alpha_per_class=(0.5, 2.0)", "0..1"]),
        ({"loss__focal_alpha_per_class": ("a",)}, ["focal_alpha_per_class=('a',)", "numbers"]),
        ({"eval__nms": "soft"}, ["config.eval.nms='soft'", "'soft_linear', 'soft_gaussian'"]),
        ({"eval__max_per_class": -1}, ["config.eval.max_per_class=-1", "0 or more"]),
        ({"eval__test_sizes": (512, 32)}, ["config.eval.test_sizes has 32", "64 or more"]),
        ({"eval__test_sizes": ((512,), 320)}, ["eval.test_sizes has (512,)", "(height, width)"]),
        ({"max_steps": -5}, ["config.max_steps=-5", "0 or more"]),
        ({"anchors__kind": "yolo"}, ["config.anchors.kind='yolo'", "'ssd', 'retinanet'"]),
        ({"anchors__kind": "retinanet", "anchors__steps": (8.0,)}, ["config.anchors.steps", "ssd"]),
        ({"optimizer__decay_factors": (0.1,)}, ["decay_factors=(0.1,)", "2 decay_epochs"]),
        (
            {"optimizer__decay_epochs": (), "optimizer__decay_shares": (0.5,)},
            ["decay_factors=(0.1, 0.1)", "1 decay_shares"],
        ),
        (
            {"optimizer__decay_shares": (0.6, 0.8)},
            ["decay_epochs=(90.0, 120.0) and decay_shares=(0.6, 0.8)", "set one of them to ()"],
        ),
        (
            {"optimizer__warmup_share": 0.1},
            ["warmup_epochs=5.0 and warmup_share=0.1", "set one of them to 0.0"],
        ),
        (
            {"optimizer__decay_epochs": (), "optimizer__decay_shares": (0.6, 80)},
            ["config.optimizer.decay_shares=(0.6, 80)", "0..1"],
        ),
        ({"optimizer__backbone_factor": -1.0}, ["optimizer.backbone_factor=-1.0", "0 or more"]),
        (
            {"init_from": "runs/a", "model__backbone_weights": "vgg16.safetensors"},
            ["config.init_from", "config.model.backbone_weights", "give one"],
        ),
        (
            {"optimizer__norm_warmup": True, "model__norm_momentum": 1.0},
            ["config.model.norm_momentum=1.0", "no config.optimizer.norm_warmup"],
        ),
        ({"model__norm_momentum": 1.5}, ["config.model.norm_momentum=1.5", "0..1"]),
        ({"optimizer__warmup_epochs": -1.0}, ["config.optimizer.warmup_epochs=-1.0", "0 or more"]),
    ],
)
def test_a_wrong_value_is_named_with_what_fits(overrides, parts):
    with pytest.raises(ValueError) as caught:
        resolve(default(**overrides))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert str(caught.value).count("config.") <= 2  # no second finding


def test_a_wrong_number_of_alphas_names_the_classes():
    config = resolve(default(loss__focal_alpha_per_class=(0.25, 0.5)))
    validate_classes(config, ("cat", "dog"))
    validate_classes(resolve(default()), ("cat", "dog", "cow"))
    with pytest.raises(ValueError, match=r"2 values for 3 classes.*cat, dog, cow, in this order"):
        validate_classes(config, ("cat", "dog", "cow"))


def test_all_wrong_values_are_named_at_once():
    wrong = dict(data__resize="crop", epochs=-1.0, eval__iou_threshold=2.0, model__frozen_stages=-1)
    with pytest.raises(ValueError) as caught:
        resolve(default(**wrong))
    for key in wrong:
        assert "config." + key.replace("__", ".") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"eval__iou_threshold": 1.0, "eval__score_threshold": 0.0, "optimizer__ema_decay": 0.0},
        {"data__image_size": (64, 1000), "model__frozen_stages": 5, "seed": 2**31},
        {"optimizer__clip_norm": 0.0, "optimizer__warmup_epochs": 0.0, "max_steps": 0},
        {"anchors__positive_threshold": 0.5, "anchors__negative_threshold": 0.5},
        {"loss__focal_alpha_per_class": (0, 1.0, 0.25), "eval__test_sizes": (64, (320, 480))},
    ],
)
def test_the_ends_of_the_ranges_are_legal(overrides):
    resolve(default(**overrides))


def test_flatten_lists_every_leaf_once():
    config = default_config()
    flat = flatten(config)
    assert flat["batch_size"] == 32
    assert flat["data.image_size"] == (512, 512)
    assert flat["optimizer.learning_rate"] == config.optimizer.learning_rate
    assert "data" not in flat
    assert all(get(config, key) == value for key, value in flat.items())


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("optimizer.learning_rte", "optimizer.learning_rate"),
        ("data.train", "data.train_csv"),
        ("learning_rate", "optimizer.learning_rate"),
        ("modl.num_level", "model.num_levels"),
        ("optim.lr.warmup_epoch", "optimizer.warmup_epochs"),
    ],
)
def test_nearest_key(misspelt, nearest):
    assert nearest_key(default_config(), misspelt) == nearest


@pytest.mark.parametrize("name", ["vgg512", "experiments/vgg512.py", "vgg512.py"])
def test_a_shipped_experiment_is_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = experiments.experiment_path(name)
    assert path.is_file() and path.name == "vgg512.py"


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    own = pathlib.Path("experiments/vgg512.py")
    own.write_text(
        "from m2det_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.seed = 77\n"
        "    return config\n"
    )
    assert experiments.experiment_path("experiments/vgg512.py") == own
    assert experiments.load_experiment("experiments/vgg512.py").seed == 77
    assert experiments.load_experiment("vgg512").seed == 0


@pytest.mark.parametrize("name", ["vgg1024", "elsewhere/vgg512.py"])
def test_an_unknown_experiment_lists_the_shipped_ones(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        experiments.experiment_path(name)
    for shipped in ("quickstart", "vgg320", "vgg512", "vgg800"):
        assert shipped in str(caught.value)
