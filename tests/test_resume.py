"""Another run's checkpoints are refused with all differences; free keys are free; faults count."""

import copy
import dataclasses
import json
import logging
import shutil

import pytest
import support
from PIL import Image

from m2det_jax import train
from m2det_jax.config import FREE_KEYS, Config, command_line, default_config, resolve
from m2det_jax.config.dotted import flatten, freeze, get, to_dict, with_values
from m2det_jax.config.experiments import load_experiment
from m2det_jax.config.paths import absolute_paths
from m2det_jax.config.stored import get_config
from m2det_jax.data.synthetic import DatasetFiles
from m2det_jax.errors import InputError
from m2det_jax.run import checkpoint
from m2det_jax.run.devices import place
from m2det_jax.run.history import read_history
from m2det_jax.run.outputs import Outputs
from m2det_jax.training import resume
from m2det_jax.training.errors import what_is_left
from m2det_jax.training.resume import changed_keys, refuse_other_run
from m2det_jax.training.step import IntervalMetrics


def changed(config: Config, key: str) -> Config:
    value = get(config, key)
    others = {bool: lambda v: not v, str: lambda v: v + "x", tuple: lambda v: (*v, 7)}
    return _with(config, key, others.get(type(value), lambda v: v + 1)(value))


def _with(config: Config, key: str, value) -> Config:
    return with_values(config, {key: value})


def test_every_key_is_told_and_counts_unless_it_is_free():
    config = resolve(default_config())
    assert changed_keys(config, config) == ([], [])
    for key in flatten(config):
        other = changed(config, key)
        line = f"config.{key} was {get(config, key)!r}, now {get(other, key)!r}"
        assert changed_keys(config, other) == (([], [line]) if key in FREE_KEYS else ([line], []))


@pytest.mark.parametrize(("name", "warmup", "decays"), [
    ("quickstart", 0.5, (90.0, 120.0)), ("small320", 2.0, (90.0, 120.0)),
    ("vgg512", 5.0, (90.0, 120.0)),
])  # fmt: skip
def test_a_schedule_in_epochs_is_the_same_in_shares(name, warmup, decays):
    now = resolve(load_experiment(name))
    before = support.changed(
        now,
        optimizer__warmup_epochs=warmup,
        optimizer__warmup_share=0.0,
        optimizer__decay_epochs=decays,
        optimizer__decay_shares=(),
    )
    assert changed_keys(before, now) == ([], [])
    before = _with(before, "optimizer.warmup_epochs", 2 * warmup)
    assert any(
        "config.optimizer.warmup_epochs was" in line for line in changed_keys(before, now)[0]
    )


@pytest.mark.parametrize(
    "key",
    """
    seed batch_size accumulation data.image_size data.train_sizes data.resize data.mean data.std
    data.repeat_threshold augment.pipeline augment.flip_probability model.backbone model.dtype
    model.num_scales model.frozen_stages anchors.sizes anchors.positive_threshold loss.kind
    loss.focal_gamma optimizer.name optimizer.learning_rate optimizer.schedule
    optimizer.ema_decay eval.score_threshold eval.nms
    """.split(),
)
def test_what_changes_the_result_is_not_free(key):
    assert key in flatten(default_config()) and key not in FREE_KEYS


def test_what_is_free_exists():
    assert set(flatten(default_config())) >= FREE_KEYS


@pytest.fixture
def meta(tiny_run):
    """What a checkpoint of the tiny run holds, as JSON gives it back."""
    run = tiny_run.run
    names, prints = run.train_index.class_names, run.fingerprints
    return json.loads(json.dumps(checkpoint.make_meta(to_dict(tiny_run.config), names, {}, prints)))


def refuse(meta, config, run, tmp_path, allowed=False):
    refuse_other_run(meta, config, run, tmp_path / "checkpoints", allowed)


def test_the_same_run_goes_on_wordless(meta, tiny_run, tmp_path, log_of_run):
    refuse(meta, tiny_run.config, tiny_run.run, tmp_path)
    assert log_of_run.text == ""


def test_another_config_is_refused_with_all_differences(meta, tiny_run, tmp_path, log_of_run):
    free = {"epochs": 9.0, "data.num_workers": 3, "log.every_steps": 7, "model.remat": True}
    counting = {"seed": 5, "optimizer.learning_rate": 0.25, "augment.flip_probability": 0.0}
    config = tiny_run.config
    for key, value in (free | counting).items():
        config = _with(config, key, value)
    with pytest.raises(ValueError) as caught:
        refuse(meta, config, tiny_run.run, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "checkpoints") in message and "--allow_config_change" in message
    for key, value in counting.items():
        assert f"config.{key} was {get(tiny_run.config, key)!r}, now {value!r}" in message
    for key, value in free.items():
        assert f"config.{key}" not in message
        assert f"config.{key} was {get(tiny_run.config, key)!r}, now {value!r}" in log_of_run.text
    log_of_run.clear()
    refuse(meta, config, tiny_run.run, tmp_path, allowed=True)
    assert "config.seed was 0, now 5" in log_of_run.text
    assert log_of_run.records[-1].levelno == logging.WARNING


def test_free_keys_alone_do_not_stop_a_run(meta, tiny_run, tmp_path, log_of_run):
    config = _with(tiny_run.config, "epochs", 9.0)
    refuse(meta, config, tiny_run.run, tmp_path)
    assert "stretches" not in log_of_run.text  # only cosine and shares of the run hang on the end
    for key, value in (("schedule", "cosine"), ("warmup_share", 0.1)):
        changed = _with(config, f"optimizer.{key}", value)
        before = meta | {"config": copy.deepcopy(meta["config"])}
        before["config"]["optimizer"][key] = value
        log_of_run.clear()
        refuse(before, changed, tiny_run.run, tmp_path)
        assert "another config.epochs stretches the learning rate's schedule" in log_of_run.text


@pytest.mark.parametrize("which", ["training", "validation"])
def test_other_data_is_refused(which, meta, tiny_run, tmp_path):
    prints = tiny_run.run.fingerprints | {which: "another one"}
    run = dataclasses.replace(tiny_run.run, fingerprints=prints)
    with pytest.raises(ValueError, match=f"the {which} set: .*now another one"):
        refuse(meta, tiny_run.config, run, tmp_path)
    refuse(meta, tiny_run.config, run, tmp_path, allowed=True)


def test_other_classes_are_refused_whatever_is_allowed(meta, tiny_run, tmp_path):
    index = dataclasses.replace(tiny_run.run.train_index, class_names=("cat",) * 6)
    run = dataclasses.replace(tiny_run.run, train_index=index)
    with pytest.raises(ValueError, match="trained on the classes .*'disc'"):
        refuse(meta, tiny_run.config, run, tmp_path, allowed=True)


def test_other_versions_are_told(meta, tiny_run, tmp_path, log_of_run):
    meta["versions"] |= {"jax": "0.1", "m2det_jax": "0.0"}
    refuse(meta, tiny_run.config, tiny_run.run, tmp_path)
    assert "jax was 0.1, is " in log_of_run.text and "m2det_jax was 0.0" in log_of_run.text
    assert len(log_of_run.records) == 2


def found_config(argv: list[str]) -> Config | None:
    argv = ["main", *map(str, argv)]
    name = command_line._resolve_config(argv)
    assert name is None or f"--config={name}" in argv
    return name and freeze(load_experiment(name))


@pytest.mark.parametrize("give", [lambda w: ["--workdir", w], lambda w: [f"--workdir={w}"]])
def test_the_workdir_alone_is_enough(give, whole, drawn_files, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    config = support.short_config(drawn_files)
    assert changed_keys(config, found_config(give(workdir))) == ([], [])
    (workdir / "config.json").unlink()  # then the newest checkpoint has it
    found = found_config(give(workdir))
    assert changed_keys(config, found) == ([], [])
    assert type(found.data.image_size) is tuple
    assert found_config(give(tmp_path / "other")) is None


def test_a_config_that_is_given_goes_before_that_of_the_workdir(whole):
    workdir = ["--workdir", whole[0]]
    assert found_config(workdir).model.backbone_width == 0.125
    for argv in (["--config", "quickstart", *workdir], [*workdir, "--config=quickstart"]):
        assert found_config(argv).model.backbone_width == 0.25


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"batchsize": 3}'])
def test_a_config_that_is_none_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json.*give --config"):
        found_config(["--workdir", tmp_path])


def test_what_is_left_names_the_last_good_checkpoint(whole, tmp_path):
    assert "no checkpoint is saved in" in what_is_left(tmp_path)
    assert f"step 6 in {whole[0]}" in what_is_left(whole[0])


def test_the_config_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    files = Outputs(tmp_path, "train")
    resume.write_config(files, resolve(default_config()))
    before = (tmp_path / "config.json").read_text()

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        resume.write_config(files, resolve(load_experiment("small320")))
    assert (tmp_path / "config.json").read_text() == before


def test_a_config_that_a_user_changed_in_an_older_workdir_is_taken(tmp_path):
    files, path = Outputs(tmp_path, "train"), tmp_path / "config.json"
    config = resolve(default_config())
    resume.write_config(files, config)
    older = json.loads(path.read_text())
    del older["model"]["norm_over"]  # a key that the older version did not have
    path.write_text(json.dumps(older | {"seed": 7}))
    with pytest.raises(InputError, match="it was changed since the run wrote it"):
        resume.write_config(files, config)
    resume.write_config(files, absolute_paths(resolve(get_config(str(path)))))
    assert files.wrote("config.json")


# Tuples in tuples, which JSON gives back as lists.
NESTED = {
    "data__train_sizes": ((64, 96), (96, 64)),
    "data__class_map": (("ring", "disc"),),
    "eval__test_sizes": (96, (64, 96)),
    "model__num_levels": 1,
    "log__sample_images": 0,
}


def test_a_run_with_nested_values_is_resumed(drawn_files, tmp_path, log_of_run):
    config = support.short_config(drawn_files, **NESTED, max_steps=1)
    train.train(config, tmp_path)
    config = support.changed(config, max_steps=2)
    log_of_run.clear()
    train.train(config, tmp_path)
    assert "resuming from step 1" in log_of_run.text
    changes = [r.getMessage() for r in log_of_run.records if "changed since" in r.getMessage()]
    assert changes == ["changed since the last checkpoint: config.max_steps was 1, now 2"]
    alone = found_config(["--workdir", tmp_path])
    assert changed_keys(config, alone) == ([], [])
    config = support.changed(config, data__train_sizes=((64, 96), (96, 128)))
    with pytest.raises(ValueError, match=r"config.data.train_sizes was \(\(64, 96\), \(96, 64\)\)"):
        train.train(config, tmp_path)


def test_backbone_weights_are_free_to_go(meta, tiny_run, tmp_path):
    meta["config"]["model"]["backbone_weights"] = "/gone/vgg16.safetensors"
    refuse(meta, tiny_run.config, tiny_run.run, tmp_path)


CLOCK = {"images_per_second", "data_wait_share"}


def end_of(workdir, tiny_run):
    """(State and interval metrics, progress, history without its clock) of a run."""
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        empty = place(IntervalMetrics.empty(), tiny_run.run.replicated)
        state, running, meta = checkpoint.restore_latest(manager, tiny_run.fresh_state(), empty)
    history = [{k: v for k, v in r.items() if k not in CLOCK} for r in read_history(workdir)]
    return (state, running), meta["progress"], repr(history)


@pytest.fixture(scope="module")
def broken_files(drawn_files, tmp_path_factory):
    """The drawn data set with two training images whose pixels cannot be read."""
    root = tmp_path_factory.mktemp("broken") / "set"
    shutil.copytree(drawn_files.classes.parent, root)
    for name in ("000003", "000011"):
        path = root / "train" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:900])
        with Image.open(path) as image:
            assert image.width  # the header is whole: only training finds out
    return DatasetFiles(*(root / file.name for file in drawn_files))


def test_skipped_images_are_counted_through_a_stop(broken_files, tmp_path, tiny_run, log_of_run):
    config = support.short_config(broken_files, data__on_bad_image="skip", log__every_steps=1)
    train.train(config, tmp_path / "whole")
    expected = end_of(tmp_path / "whole", tiny_run)
    # Six steps of eight are two epochs of 24: each of the two images came twice.
    assert expected[1]["replaced_images"] == 4
    for name in ("000003", "000011"):
        assert log_of_run.text.count(f"{name}.jpg, another one in its place") == 2
    assert "4 times so far" in log_of_run.text
    train.train(support.changed(config, max_steps=3), tmp_path / "stopped")
    train.train(support.changed(config, data__num_workers=1), tmp_path / "stopped")
    found = end_of(tmp_path / "stopped", tiny_run)
    support.assert_trees_equal(found[0], expected[0])
    assert found[1:] == expected[1:]


class Removing:
    """Batches that remove a folder before the third."""

    def __init__(self, batches, folder):
        self.batches, self.folder, self.given = batches, folder, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.given += 1
        if self.given == 3:
            shutil.rmtree(self.folder)
        return next(self.batches)

    def close(self):
        self.batches.close()


def test_a_folder_removed_during_the_run_ends_it_and_is_not_made_anew(
    drawn_files, tmp_path, monkeypatch
):
    workdir, open_batches = tmp_path / "run", train.open_batches
    monkeypatch.setattr(train, "open_batches", lambda *a: Removing(open_batches(*a), workdir))
    with pytest.raises(FileNotFoundError, match="run.* was removed"):
        train.train(support.short_config(drawn_files), workdir)
    assert not workdir.exists()


def test_epochs_against_epochs_are_compared_as_they_are():
    before = resolve(load_experiment("official_vgg512"))
    now = support.changed(
        before,
        epochs=2 * before.epochs,
        optimizer__warmup_epochs=2 * before.optimizer.warmup_epochs,
        optimizer__decay_epochs=tuple(2 * epoch for epoch in before.optimizer.decay_epochs),
    )
    changed, _ = changed_keys(before, now)
    assert [line.split(" was ")[0] for line in changed] == [
        "config.optimizer.decay_epochs", "config.optimizer.warmup_epochs"
    ]  # fmt: skip
