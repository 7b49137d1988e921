"""Saved first, evaluated then: what goes wrong in an evaluation costs no step, and no image."""

import gc
import logging
import os
import pathlib
import re
import shutil
import signal
import time

import jax
import pytest
from support import changed, leaves, short_config

from benchmarks.outcome import differences, outcome
from m2det_jax import train
from m2det_jax.data import read_csv
from m2det_jax.detector import evaluation
from m2det_jax.run import memory
from m2det_jax.run.checksums import finished_steps
from m2det_jax.run.history import read_history
from m2det_jax.run.signals import Stopped, StopSignals
from m2det_jax.training import validation
from m2det_jax.training.prepare import prepare


@pytest.fixture(autouse=True)
def log_lines(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("m2det_jax"), "propagate", True)
    caplog.set_level("INFO", "m2det_jax")
    return caplog


@pytest.fixture
def expected(whole):
    return outcome(whole[0])


@pytest.fixture
def own_images(drawn_files, tmp_path):
    """The config of a short run whose validation images may be broken, and one of these."""
    folder = shutil.copytree(drawn_files.val.parent, tmp_path / "data")
    path = pathlib.Path(read_csv(folder / "val.csv", drawn_classes(drawn_files)).image_paths[9])
    assert path.is_relative_to(folder)
    return short_config(drawn_files, data__val_csv=str(folder / "val.csv")), path


def drawn_classes(files) -> tuple[str, ...]:
    return tuple(line.split(",")[0] for line in files.classes.read_text().split())


def truncate(path: pathlib.Path) -> bytes:
    """Leaves the header whole; returns what the file was."""
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    return before


def contents(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def fail_once(monkeypatch, error: BaseException, step_of_failure: int = 1) -> None:
    """Lets an evaluation raise: the first, or a later one."""
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == step_of_failure:
            raise error
        return evaluation.evaluate(*args, **kwargs)

    monkeypatch.setattr(validation, "evaluate", failing)


@pytest.mark.parametrize(("number", "step"), [(1, 3), (2, 6)])
def test_a_failed_evaluation_costs_nothing(
    number, step, drawn_files, tmp_path, monkeypatch, expected, log_lines
):
    config = short_config(drawn_files)
    fail_once(monkeypatch, RuntimeError("lightning"), number)
    with pytest.raises(RuntimeError, match="lightning"):
        train.train(config, tmp_path)
    assert finished_steps(tmp_path)[-1] == step
    before = contents(tmp_path / "checkpoints" / str(step))
    trained = []
    monkeypatch.setattr(train, "put_batch", lambda *a: trained.append(1) or put_batch(*a))
    metrics = train.train(config, tmp_path)
    assert f"step {step} was saved and not evaluated" in log_lines.text
    assert len(trained) == 6 - step and metrics["AP50"] >= 0
    assert differences(outcome(tmp_path), expected) == []
    after = contents(tmp_path / "checkpoints" / str(step))
    assert {name: after[name] for name in before} == before  # a finished checkpoint stays


put_batch = train.put_batch


def test_a_figure_that_was_not_recorded_is_evaluated_again(
    drawn_files, tmp_path, monkeypatch, expected
):
    """As if killed between the line of the history and the record beside the checkpoint."""
    config = short_config(drawn_files)
    with monkeypatch.context() as patch:
        patch.setattr(validation.checkpoint, "record_evaluation", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.train(config, tmp_path)
    assert [r["step"] for r in read_history(tmp_path) if "val_AP" in r] == [3]
    train.train(config, tmp_path)
    assert differences(outcome(tmp_path), expected) == []


@pytest.mark.parametrize("moment", [0, 1])
def test_a_signal_is_heard_between_batches(moment, drawn_files, tmp_path, monkeypatch, expected):
    config, seen = short_config(drawn_files), []

    def struck(*args, between, **kwargs):
        def before_a_batch():
            if len(seen) == moment:
                os.kill(os.getpid(), signal.SIGTERM)
                while signals.number is None:  # the thread that hears it may be late
                    time.sleep(0.01)
            between()
            seen.append(1)

        return evaluation.detect(*args, between=before_a_batch, **kwargs)

    signals = StopSignals()
    monkeypatch.setattr(train, "StopSignals", lambda: signals)
    monkeypatch.setattr(validation, "detect", struck)
    with pytest.raises(Stopped) as stopped:
        train.train(config, tmp_path)
    assert (stopped.value.step, stopped.value.status) == (3, 128 + signal.SIGTERM)
    assert len(seen) == moment and finished_steps(tmp_path) == [3]
    assert not (tmp_path / "checkpoints" / "3" / "metrics").exists()
    monkeypatch.undo()
    train.train(config, tmp_path)
    assert differences(outcome(tmp_path), expected) == []


def test_a_broken_validation_image_ends_the_run_early_and_costs_nothing(
    own_images, tmp_path, expected
):
    config, path = own_images
    before = truncate(path)
    with pytest.raises(ValueError, match=f"{path.name}.*on_bad_image=skip"):
        train.train(config, tmp_path / "run")
    assert all("val_AP" not in record for record in read_history(tmp_path / "run"))
    path.write_bytes(before)
    train.train(config, tmp_path / "run")
    found = differences(outcome(tmp_path / "run"), expected)
    assert set(found) <= {"config.json"}  # another path of val.csv


def test_broken_validation_images_are_left_out_on_demand(own_images, tmp_path, log_lines):
    config, path = own_images
    truncate(path)
    config = changed(config, data__on_bad_image="skip")
    metrics = train.train(config, tmp_path / "run")
    assert f"1 of 12 images cannot be read and are left out of the evaluation: ({path})" in (
        log_lines.text
    )
    # As if the image were not in the set at all.
    names = [name for name in config.data.val_csv.split("/") if name]
    csv = pathlib.Path("/", *names)
    kept = [row for row in csv.read_text().splitlines() if path.name not in row]
    assert len(kept) < len(csv.read_text().splitlines())
    without = csv.with_name("without.csv")
    without.write_text("\n".join(kept) + "\n")
    config = changed(config, data__val_csv=str(without))
    expected = train.train(config, tmp_path / "other")
    assert metrics.keys() == expected.keys()
    for name in ("AP", "AP50", "loss", "loss_box"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name
    pages = [(tmp_path / name / "report.html").read_text() for name in ("run", "other")]
    objects = [re.findall(r"(\d+) objects to find", page) for page in pages]
    assert objects[0] == objects[1] and len(objects[0]) == 1


def test_all_images_broken_is_no_evaluation(own_images, tmp_path):
    config, path = own_images
    config = changed(config, data__on_bad_image="skip")
    for other in path.parent.glob("*.jpg"):
        truncate(other)
    with pytest.raises(ValueError, match="none of the 12 images to evaluate on can be read"):
        train.train(config, tmp_path / "run")
    assert finished_steps(tmp_path / "run") == [3]


def test_an_evaluation_that_does_not_fit_is_told_at_the_start(drawn_files, tmp_path, monkeypatch):
    class Huge:
        memory = 1 << 60

    monkeypatch.setattr(validation, "read_cost", lambda *_: Huge)
    with pytest.raises(memory.OutOfMemory, match="the evaluation does not fit .*good checkpoint"):
        train.train(short_config(drawn_files, max_steps=6), tmp_path)


def test_there_is_one_state_on_the_devices(drawn_files, tmp_path, monkeypatch):
    config, live = short_config(drawn_files), []

    def looking(*args, **kwargs):
        live.append(live_bytes() - before)
        return evaluation.evaluate(*args, **kwargs)

    monkeypatch.setattr(validation, "evaluate", looking)
    before = live_bytes()
    train.train(changed(config, max_steps=4), tmp_path)  # evaluates after step 3
    before = live_bytes()
    train.train(config, tmp_path)  # resumes after step 4, evaluates after step 6
    state = prepare(config, tmp_path).state_shapes
    expected = sum(x.size * x.dtype.itemsize for x in leaves_of(state))
    assert live == [pytest.approx(expected, rel=0.4)] * 2  # two states: 2


def live_bytes() -> int:
    """Bytes of all buffers that are alive on the first device."""
    gc.collect()
    shards = [shard for array in jax.live_arrays() for shard in array.addressable_shards]
    mine = [shard.data for shard in shards if shard.device == jax.devices()[0]]
    return sum({data.unsafe_buffer_pointer(): data.nbytes for data in mine}.values())


def leaves_of(tree):
    return jax.tree.leaves(tree)


def test_the_state_before_the_first_step_is_as_its_shapes(tiny_run):
    shapes = tiny_run.run.state_shapes
    assert jax.tree.structure(shapes) == jax.tree.structure(tiny_run.initial)
    for shape, array in zip(leaves_of(shapes), leaves(tiny_run.initial), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
