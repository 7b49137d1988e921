"""Configs that runs have stored: one reader, paths that lead there from anywhere, no code."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import support
from PIL import Image

from m2det_jax import __version__, restore
from m2det_jax.config import default_config, resolve
from m2det_jax.config.dotted import flatten, freeze, to_dict
from m2det_jax.config.paths import absolute_paths, find_paths, relative_paths
from m2det_jax.config.stored import get_config, stored_config
from m2det_jax.data.synthetic import DatasetFiles
from m2det_jax.datasets.evaluation import load_validation
from m2det_jax.datasets.loading import load_datasets
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.run.outputs import Outputs
from m2det_jax.train import train
from m2det_jax.training.resume import changed_keys, refuse_other_run, write_config

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def as_json(value):
    return json.loads(json.dumps(value))


def nested_config():
    config = default_config()
    config.update_from_flattened_dict(
        {
            "data.train_sizes": ((320, 320), (256, 256)),
            "data.class_map": (("van", "car"), ("junk", "")),
            "eval.test_sizes": ((320, 480), 512),
            "augment.pipeline": ("mosaic", "mixup"),
        }
    )
    return resolve(config)


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"config": c, "versions": {}}])
def test_a_config_comes_back_from_json_as_it_was(wrap):
    config = nested_config()
    found = stored_config(as_json(wrap(to_dict(config))))
    assert flatten(found) == flatten(config)
    assert changed_keys(found, config) == ([], [])


def test_younger_keys_have_their_defaults():
    stored = as_json(to_dict(nested_config()))
    del stored["on_nonfinite"], stored["data"]["train_sizes"], stored["log"]
    found = stored_config({"config": stored})
    assert found.on_nonfinite == "stop" and found.data.train_sizes == ()
    assert found.log.every_steps == 20 and found.data.class_map == (("van", "car"), ("junk", ""))


def newer_workdir(workdir):
    """The metas of a run that a later version has started and saved twice."""
    stored = as_json(default_config().to_dict())
    stored["data"]["depth"] = 3
    stored["warp"] = {"speed": 9.0}
    (workdir / "config.json").write_text(json.dumps(stored))
    for step, version in (("00000900", "77.0"), ("1000", "77.1")):
        meta = {"config": stored, "versions": {"m2det_jax": version}, "class_names": ["a"]}
        (workdir / "checkpoints" / step / "meta").mkdir(parents=True)
        (workdir / "checkpoints" / step / "meta" / "metadata").write_text(json.dumps(meta))
    return meta


def test_keys_of_another_version_are_refused_with_its_name(tmp_path):
    meta = newer_workdir(tmp_path)
    expected = (
        f"written by m2det_jax 77.1; this is {__version__}, which has no config.data.depth, "
        "config.warp.speed; use that version"
    )
    with pytest.raises(ValueError) as caught:
        stored_config(meta, source="runs/mine")
    assert str(caught.value) == f"runs/mine: {expected}"
    # config.json itself does not say who wrote it; the newest checkpoint does.
    for file in ("config.json", "checkpoints/1000/meta/metadata"):
        with pytest.raises(ValueError) as caught:
            get_config(str(tmp_path / file))
        assert str(caught.value) == f"{tmp_path / file}: {expected}; or give --config"
    with pytest.raises(ValueError, match=r"checkpoints: written by m2det_jax 77\.1; this is"):
        refuse_other_run(meta, resolve(default_config()), NoRun, tmp_path / "checkpoints", False)


class NoRun:
    class train_index:
        class_names = ("a",)


def test_a_value_of_another_type_is_named():
    with pytest.raises(ValueError, match="runs/mine: a value is of another type.*'batch_size'"):
        stored_config({"batch_size": "many"}, source="runs/mine")


def test_paths_are_made_absolute_where_they_lead_somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv", "w.pth"):
        (tmp_path / name).write_text("")
    config = default_config()
    config.data.update({"train_csv": "a.csv", "val_csv": "", "extra_train": ("b.csv", "no.csv")})
    config.model.backbone_weights = "w.pth"
    config = freeze(config)
    found = absolute_paths(config)
    assert found.data.train_csv == str(tmp_path / "a.csv") and found.data.val_csv == ""
    assert found.data.extra_train == (str(tmp_path / "b.csv"), "no.csv")
    assert found.model.backbone_weights == str(tmp_path / "w.pth")
    assert config.data.train_csv == "a.csv" and found.data.classes_csv == "data/classes.csv"
    config = support.changed(config, data__format="voc")
    assert absolute_paths(config).data.root == str(tmp_path)
    assert absolute_paths(config).data.train_csv == "a.csv"
    config = support.changed(config, data__format="my_source", data__root="table=marks")
    assert absolute_paths(config).data.root == "table=marks"


def test_a_stored_path_that_leads_nowhere_is_taken_from_beside_the_workdir(tmp_path):
    config = default_config()
    config.data.update({"train_csv": str(tmp_path / "p" / "a.csv"), "val_csv": ""})
    config.data.extra_train = (str(tmp_path / "p" / "b.csv"), str(tmp_path / "stays.csv"))
    config = freeze(config)
    workdir = tmp_path / "p" / "runs" / "mine"
    workdir.mkdir(parents=True)
    for path in (config.data.train_csv, *config.data.extra_train):
        pathlib.Path(path).write_text("")
    record = {"paths": relative_paths(config, workdir)}
    (workdir / "data_record.json").write_text(json.dumps(record))
    assert flatten(find_paths(config, workdir)) == flatten(config)
    (tmp_path / "p").rename(tmp_path / "q")
    found = find_paths(config, tmp_path / "q" / "runs" / "mine")
    assert found.data.train_csv == str(tmp_path / "q" / "a.csv")
    assert found.data.extra_train == (str(tmp_path / "q" / "b.csv"), str(tmp_path / "stays.csv"))
    for damaged in ("", "[]", '{"paths": 3}', '{"paths": {"data.train_csv": [[]]}}'):
        (tmp_path / "q" / "runs" / "mine" / "data_record.json").write_text(damaged)
        assert flatten(find_paths(config, tmp_path / "q" / "runs" / "mine")) == flatten(config)


@pytest.mark.parametrize("val_csv", ["data/val.csv", ""])
def test_a_run_with_relative_paths_needs_only_its_workdir(
    drawn_files, tmp_path, monkeypatch, val_csv
):
    project = tmp_path / "project"
    shutil.copytree(drawn_files.classes.parent, project / "data")
    monkeypatch.chdir(project)
    files = DatasetFiles(*(pathlib.Path("data") / file.name for file in drawn_files))
    config = support.short_config(
        files, data__val_csv=val_csv, max_steps=1, log__sample_images=0, model__num_levels=1
    )
    train(config, pathlib.Path("runs/mine"))
    expected = evaluate_checkpoint(pathlib.Path("runs/mine"))
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert evaluate_checkpoint(project / "runs" / "mine") == expected
    assert (
        train(get_config(str(project / "runs" / "mine" / "config.json")), project / "runs" / "mine")
        == {}
    )
    moved = project.rename(tmp_path / "renamed")
    assert evaluate_checkpoint(moved / "runs" / "mine") == expected
    assert (
        train(get_config(str(moved / "runs" / "mine" / "config.json")), moved / "runs" / "mine")
        == {}
    )


def test_an_old_run_with_relative_paths_says_which_key_to_give(drawn_files, tmp_path, monkeypatch):
    config = default_config()
    for name, file in drawn_files._asdict().items():
        config.data[f"{name}_csv"] = file.name
    config = freeze(config)
    names = ("disc", "ring", "triangle", "cross", "stripes", "letter_A")
    monkeypatch.chdir(drawn_files.train.parent)
    assert load_validation(config, tmp_path / "run", names)[0].num_images == support.NUM_VAL
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        load_validation(config, tmp_path / "run", names)
    message = str(caught.value)
    assert f"not there, val_csv=val.csv, seen from {tmp_path}; start the command where" in message
    assert message.endswith("or give --csv FILE")
    config = support.changed(config, data__val_csv="")
    with pytest.raises(ValueError, match=r"train_csv=train\.csv.*--config\.data\.train_csv=PATH"):
        load_validation(config, tmp_path / "run", names)
    with pytest.raises(FileNotFoundError, match=f"train_csv=train.csv.*seen from {tmp_path}"):
        load_datasets(config, tmp_path / "run")


@pytest.fixture
def untrusted(tmp_path):
    """A workdir whose config names a module that leaves a mark when it is imported."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "marking_source.py").write_text(
        "import os, pathlib\n"
        "from m2det_jax.data import make_index\n"
        "pathlib.Path(__file__).with_name('mark').write_text('')\n"
        "def read(root, split):\n"
        "    picture = os.path.join(root, 'a.png')\n"
        "    return make_index([(picture, [(1, 2, 9, 9, 'cat')])], ('cat',))\n"
    )
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    config = support.short_config(None, data__format="marking_source", data__root=str(tmp_path))
    (tmp_path / "run").mkdir()
    write_config(Outputs(tmp_path / "run", "train"), config)
    return tmp_path


def start(folder, verb: str, *arguments) -> tuple[str, bool]:
    """Starts a verb in the folder of the module; returns (its errors, whether it was imported)."""
    result = subprocess.run(
        [sys.executable, "-m", f"m2det_jax.{verb}", *map(str, arguments)],
        cwd=folder / "cwd",
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return result.stderr, (folder / "cwd" / "mark").exists()


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [("main", ["--workdir", "../run"]), ("check", ["--config", "../run/config.json"])],
)
def test_a_module_that_only_a_workdir_names_is_not_imported(untrusted, verb, arguments):
    errors, imported = start(untrusted, verb, *arguments)
    assert not imported
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert "config.json names the Python module 'marking_source'" in errors
    assert "--config.data.format=marking_source, or --trust" in errors


@pytest.mark.parametrize("flag", ["--trust", "--config.data.format=marking_source"])
def test_a_module_is_imported_where_the_user_says_so(untrusted, flag):
    errors, imported = start(untrusted, "check", "--config", "../run/config.json", flag)
    assert imported, errors


def test_evaluation_imports_no_module_of_a_checkpoint(untrusted, monkeypatch):
    monkeypatch.syspath_prepend(untrusted / "cwd")
    config = resolve(get_config(str(untrusted / "run" / "config.json")))
    with pytest.raises(ValueError, match="names the Python module 'marking_source'.*give --trust"):
        load_validation(config, untrusted / "run", ("cat",))
    assert not (untrusted / "cwd" / "mark").exists()
    index, _ = load_validation(config, untrusted / "run", ("cat",), trust=True)
    assert index.num_images == 1 and (untrusted / "cwd" / "mark").exists()


def test_evaluate_passes_its_trust_on(whole, untrusted, monkeypatch):
    monkeypatch.syspath_prepend(untrusted / "cwd")
    restored = restore(whole[0])
    config = support.changed(
        restored.config, data__format="marking_source", data__root=str(untrusted)
    )
    restored = dataclasses.replace(restored, config=config)
    monkeypatch.setattr("m2det_jax.evaluate.restore", lambda *args: restored)
    with pytest.raises(ValueError, match="give --trust"):
        evaluate_checkpoint(untrusted / "run")
    with pytest.raises(ValueError, match="has classes that the training set has not: cat"):
        evaluate_checkpoint(untrusted / "run", trust=True)
