"""Checkpoints: all of a run comes back, the best survives, damage is told and stepped over."""

import dataclasses
import logging
import shutil

import jax
import numpy as np
import pytest
import support
from support import PROGRESS, running_at, save_steps, state_at

import m2det_jax
from m2det_jax.config.dotted import to_dict
from m2det_jax.run.checkpoint import (
    make_meta,
    open_manager,
    record_evaluation,
    restore_latest,
    save,
)
from m2det_jax.run.devices import place
from m2det_jax.trained import restore
from m2det_jax.training.resume import start_or_resume
from m2det_jax.training.step import IntervalMetrics


def latest(workdir, tiny_run):
    with open_manager(workdir) as manager:
        return restore_latest(
            manager,
            tiny_run.fresh_state(),
            place(IntervalMetrics.empty(), tiny_run.run.replicated),
        )


def steps_in(workdir) -> list[int]:
    with open_manager(workdir, read_only=True) as manager:
        return sorted(manager.all_steps())


@pytest.fixture(scope="module")
def saved(tiny_run, tmp_path_factory):
    """A folder with the steps 2, of AP 0.9, and 3 and 4."""
    workdir = tmp_path_factory.mktemp("saved")
    save_steps(workdir, tiny_run, {1: 0.1, 2: 0.9, 3: 0.3, 4: None})
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_a_state_comes_back_whole(saved, tiny_run):
    state, running, meta = latest(saved, tiny_run)
    support.assert_trees_equal(state, state_at(tiny_run, 4))
    support.assert_trees_equal(running, running_at(tiny_run, 4))
    assert running.compute()["loss"] == 4
    assert meta["progress"] == PROGRESS
    leaf = jax.tree.leaves(state.params)[0]
    assert leaf.sharding.is_equivalent_to(tiny_run.run.replicated, leaf.ndim)


def test_config_names_and_versions_lie_beside_the_arrays(saved, tiny_run):
    _, _, meta = latest(saved, tiny_run)
    assert meta["class_names"] == list(tiny_run.run.train_index.class_names)
    assert meta["config"]["model"] == to_dict(tiny_run.config.model)
    assert meta["config"]["data"]["image_size"] == [64, 96]
    assert meta["versions"]["jax"] == jax.__version__
    assert meta["versions"]["m2det_jax"] == m2det_jax.__version__


def test_the_latest_and_the_best_are_kept(saved):
    assert steps_in(saved) == [2, 3, 4]
    assert (restore(saved).step, restore(saved, "best").step) == (4, 2)


def test_the_best_survives_newer_ones_after_a_second_start(copy, tiny_run):
    save_steps(copy, tiny_run, {5: 0.4, 6: None})
    assert steps_in(copy) == [2, 5, 6]
    assert restore(copy, "best").step == 2
    save_steps(copy, tiny_run, {8: 0.95}, keep_latest=1)
    assert steps_in(copy) == [8]
    assert restore(copy, "best").step == 8


def test_a_folder_without_checkpoints_is_a_fresh_start(tmp_path, tiny_run):
    assert latest(tmp_path, tiny_run) is None


def test_saving_a_step_twice_keeps_the_first(copy, tiny_run):
    save_steps(copy, tiny_run, {3: 0.99})  # it was 0.3
    assert restore(copy, "best").step == 2


def remove_arrays(step):
    shutil.rmtree(step / "train")


def truncate_files(step):
    for path in (step / "train").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_all(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize("damage", [remove_arrays, truncate_files, remove_all])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(
    damage, copy, tiny_run, warnings_of_run
):
    damage(copy / "checkpoints" / "4")
    state, running, _ = latest(copy, tiny_run)
    support.assert_trees_equal(state, state_at(tiny_run, 3))
    support.assert_trees_equal(running, running_at(tiny_run, 3))
    assert "checkpoint 4 is damaged: " in warnings_of_run.text
    assert "the one before it is used" in warnings_of_run.text
    assert steps_in(copy) == [2, 3] and (copy / "damaged" / "4").is_dir()


def test_a_run_goes_on_saving_after_damage(copy, tiny_run):
    truncate_files(copy / "checkpoints" / "4")
    meta = make_meta(to_dict(tiny_run.config), tiny_run.run.train_index.class_names, PROGRESS)
    with open_manager(copy) as manager:
        restore_latest(manager, tiny_run.fresh_state(), running_at(tiny_run, 0))
        save(manager, state_at(tiny_run, 4), running_at(tiny_run, 4), meta)
        record_evaluation(manager, 4, {"AP": 0.95})
    state, _, _ = latest(copy, tiny_run)
    support.assert_trees_equal(state, state_at(tiny_run, 4))
    assert restore(copy, "best").step == 4


def test_only_damaged_checkpoints_end_with_a_message(copy, tiny_run):
    for step in (copy / "checkpoints").iterdir():
        remove_arrays(step)
    with pytest.raises(ValueError, match="none of the checkpoints in .*another --workdir.*2: "):
        latest(copy, tiny_run)
    assert steps_in(copy) == [2, 3, 4]  # nothing is thrown away


def test_a_damaged_checkpoint_cannot_be_restored_for_use(copy):
    shutil.rmtree(copy / "checkpoints" / "4" / "model")
    with pytest.raises(ValueError, match=r"checkpoint 4 .*damaged.*\[2, 3\]"):
        restore(copy)
    assert restore(copy, 3).step == 3


def outputs(detector, variables, images):
    def forward(variables, images):
        return detector.model.apply(variables, detector.normalize(images), train=False)

    return jax.device_get(jax.jit(forward)(jax.device_get(variables), images))


@pytest.mark.parametrize("which", ["latest", "best", 3, "3"])
def test_restore_gives_the_detector_that_was_saved(which, copy, tiny_run, monkeypatch, tmp_path):
    step = {"latest": 4, "best": 2}.get(which, 3)
    moved = shutil.move(copy, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    found = restore("elsewhere" if which == "best" else moved, which)
    assert found.step == step
    assert found.class_names == tiny_run.run.train_index.class_names
    assert found.config.optimizer.learning_rate == tiny_run.config.optimizer.learning_rate
    support.assert_trees_equal(found.variables, state_at(tiny_run, step).eval_variables)
    if which != "latest":
        return
    expected = tiny_run.run.detector
    for field in dataclasses.fields(expected):
        if field.name != "anchors":
            assert getattr(found.detector, field.name) == getattr(expected, field.name)
    np.testing.assert_array_equal(found.detector.anchors, expected.anchors)
    images = support.random_batch(0)["image"][:2]
    before = outputs(expected, state_at(tiny_run, step).eval_variables, images)
    support.assert_trees_equal(outputs(found.detector, found.variables, images), before)


@pytest.mark.parametrize("which", ["5", 1, "newest", "-1"])
def test_an_unknown_checkpoint_lists_those_that_exist(which, saved):
    with pytest.raises(ValueError, match=rf"{which!r}; there are latest, best .*\[2, 3, 4\]"):
        restore(saved, which)


def test_best_where_nothing_was_evaluated(tmp_path, tiny_run):
    save_steps(tmp_path, tiny_run, {1: None})
    with pytest.raises(ValueError, match=r"'best'.*\[1\]"):
        restore(tmp_path, "best")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="no checkpoints there; give the --workdir"):
        restore(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no finished checkpoint"):
        restore(tmp_path)


def other_classes(run, names):
    return dataclasses.replace(
        run, train_index=dataclasses.replace(run.train_index, class_names=names)
    )


def test_other_class_names_are_refused(saved, tiny_run):
    names = ("cat", *tiny_run.run.train_index.class_names[1:])
    run = other_classes(tiny_run.run, names)
    refused = pytest.raises(ValueError, match="trained on the classes .*'disc'.*'cat'")
    with open_manager(saved, read_only=True) as manager, refused:
        start_or_resume(run, None, manager, tiny_run.config)


def test_a_changed_config_is_told(saved, tiny_run, warnings_of_run):
    config = support.tiny_config(overrides={"eval.patience": 3})
    config = dataclasses.replace(config, data=tiny_run.config.data)
    warnings_of_run.set_level(logging.INFO, "m2det_jax")
    with open_manager(saved, read_only=True) as manager:
        start_or_resume(tiny_run.run, None, manager, config)
    assert "config.eval.patience was 0, now 3" in warnings_of_run.text


def test_restore_is_found_at_the_package_root():
    assert m2det_jax.restore is restore
    with pytest.raises(AttributeError, match="no attribute 'reload'"):
        m2det_jax.reload  # noqa: B018
