"""The config stops at the door: only config/ reads a ConfigDict, keys are declared once."""

import dataclasses
import sys

import pytest
import support
from ml_collections import ConfigDict

from m2det_jax.build import augment_settings, build_detector, make_suppression
from m2det_jax.check.run import check
from m2det_jax.config import FREE_KEYS, OWN_KEYS, Config, default_config, resolve
from m2det_jax.config.dotted import flatten, freeze, get, thaw, to_dict, with_values
from m2det_jax.config.keys import declared, key
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.predict import predict
from m2det_jax.train import train
from m2det_jax.training.plan import make_plan


@pytest.fixture
def readers(monkeypatch):
    """The names of the modules that have read a value of a ConfigDict; grows as it happens."""
    found, read = set(), ConfigDict.__getitem__

    def noting(self, name):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].startswith("ml_collections"):
            frame = frame.f_back
        found.add(frame.f_globals["__name__"])
        return read(self, name)

    monkeypatch.setattr(ConfigDict, "__getitem__", noting)
    return found


def test_only_config_reads_a_configdict(drawn_files, tmp_path, readers):
    """Training, resuming, evaluation, prediction and a check, each as its verb starts it."""
    config = thaw(
        support.short_config(drawn_files, max_steps=1, data__val_csv="", model__num_levels=1)
    )
    readers.clear()
    train(config, tmp_path / "run")
    config.max_steps = 2
    train(config, tmp_path / "run")
    evaluate_checkpoint(tmp_path / "run", overrides=["eval.test_flip=True"])
    image = str(drawn_files.train.parent / drawn_files.train.read_text().split(",")[0])
    assert predict(tmp_path / "run", [image]).images == 1
    check(config, tmp_path / "check", name="x", samples=2)
    assert readers and not [name for name in readers if not name.startswith("m2det_jax.config.")]


def test_a_module_below_that_reads_one_would_be_found(readers):
    make_plan(default_config(), 100)
    assert "m2det_jax.training.plan" in readers


def test_a_key_that_is_added_has_everything_from_its_declaration():
    @dataclasses.dataclass(frozen=True)
    class Section:
        depth: int = key(3, lambda value: "" if value < 9 else f"={value}: too deep")

    (field,) = declared(Section, "section.").values()
    assert field.default == 3 and field.metadata["check"](9) == "=9: too deep"
    assert not field.metadata["free"] and not field.metadata["own"]


def test_every_declaration_fits_its_default():
    defaults = flatten(Config())
    assert declared().keys() == defaults.keys() and len(defaults) > 130
    for name, field in declared().items():
        kind = getattr(field.type, "__origin__", field.type)
        assert type(defaults[name]) is kind, name
        check = field.metadata["check"]
        assert check is None or check(defaults[name]) == "", name


def test_which_keys_may_change_and_which_may_differ():
    assert OWN_KEYS < FREE_KEYS < declared().keys()
    assert {"epochs", "data.num_workers", "eval.test_sizes", "model.remat"} <= FREE_KEYS - {"seed"}
    assert {"data.root", "distributed.process_id"} <= OWN_KEYS
    assert not {"epochs", "seed", "loss.kind"} & OWN_KEYS


def test_both_forms_have_the_same_values():
    config = default_config()
    config.data.update(train_sizes=[[64, 96], [96, 64]], class_map=[["van", "car"]])
    config.epochs = 3
    settings = resolve(config)
    assert settings.data.train_sizes == ((64, 96), (96, 64))
    assert settings.data.class_map == (("van", "car"),)
    assert type(settings.epochs) is float
    assert hash(settings) == hash(resolve(thaw(settings)))
    assert flatten(thaw(settings)) == flatten(settings)
    assert to_dict(settings) == thaw(settings).to_dict()
    assert list(to_dict(settings)) == sorted(to_dict(settings))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.data.root = "elsewhere"
    other = with_values(settings, {"data.root": "x", "data.mean": [1.0, 2.0, 3.0], "seed": 5})
    assert (get(other, "data.root"), other.data.mean, other.seed) == ("x", (1.0, 2.0, 3.0), 5)
    assert settings.data.root == "" and other.model == settings.model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.data.update(train_cvs="a"), "no key config.data.train_cvs; the nearest is "
         "config.data.train_csv"),
        (lambda c: c.__delattr__("log"), "lacks 3 keys, such as config.log.every_steps"),
    ],
)  # fmt: skip
def test_a_config_with_other_keys_is_refused(change, message, tmp_path):
    config = default_config()
    change(config)
    for use in (freeze, resolve, lambda c: train(c, tmp_path / "run")):
        with pytest.raises(ValueError, match=message):
            use(config)
    assert not (tmp_path / "run").exists()


def test_a_config_of_wrong_values_makes_no_workdir(tmp_path):
    config = support.short_config(None, epochs=-1.0)
    for form in (config, thaw(config)):
        with pytest.raises(ValueError, match=r"config\.epochs=-1\.0: must be above 0"):
            train(form, tmp_path / "run")
    assert not (tmp_path / "run").exists()


OTHER = {
    "model.backbone": "vgg19",
    "model.upsample": "bilinear",
    "model.head": "retinanet",
    "model.dtype": "bfloat16",
    "model.backbone_weights": "x.pth",
    "augment.pipeline": ("flip",),
    "augment.affine_scale": (0.5, 0.75),
    "augment.jitter_scale": (0.5, 0.75),
    "augment.mosaic_scale": (0.5, 0.75),
    "augment.paste_scale": (0.5, 0.75),
    "eval.nms": "soft_linear",
    "model.norm_over": "device",
    "eval.test_sizes": (64,),
}


def other_value(name, value):
    """A value of the same type that differs and is legal."""
    if name in OTHER:
        return OTHER[name]
    steps = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 or 0.5}
    return steps[type(value)](value)


@pytest.mark.parametrize(
    ("section", "make", "left_out"),
    [
        ("model", lambda config: build_detector(config, ("a",)).model,
         {"backbone_weights", "norm_over"}),
        ("augment", augment_settings, set()),
        ("eval", make_suppression,
         {"every_epochs", "batch_size", "patience", "test_sizes", "test_flip"}),
    ],
)  # fmt: skip
def test_a_key_reaches_the_field_of_its_name_and_no_other(section, make, left_out):
    config = support.tiny_config(overrides={"data.image_size": (256, 256), "model.num_levels": 4})
    before, keys = make(config), vars(getattr(config, section))
    for name, value in keys.items():
        other = other_value(f"{section}.{name}", value)
        assert other != value, name
        after = make(with_values(config, {f"{section}.{name}": other}))
        changed = {
            field.name
            for field in dataclasses.fields(after)
            if getattr(after, field.name) != getattr(before, field.name)
        }
        assert changed == ({name} - left_out), name
        assert name in left_out or getattr(after, name) == other
