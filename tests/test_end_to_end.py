"""Whole runs on a small drawn data set: train, stop, resume, evaluate, predict."""

import json
import math
import pathlib
import shutil

import jax
import pytest
import support
from PIL import Image
from support import changed, short_config

from m2det_jax import train
from m2det_jax.data import read_classes, read_csv
from m2det_jax.data.synthetic import DatasetFiles
from m2det_jax.run import checkpoint, devices
from m2det_jax.run.devices import place
from m2det_jax.run.history import read_history
from m2det_jax.training import validation
from m2det_jax.training.step import IntervalMetrics

WALL_CLOCK = {"images_per_second", "data_wait_share"}


def history_without_clock(workdir) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in WALL_CLOCK} for r in read_history(workdir)]


def final_state(workdir, tiny_run):
    """(State, interval metrics, progress) of the latest checkpoint, in host memory."""
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        state, running, meta = checkpoint.restore_latest(
            manager,
            tiny_run.fresh_state(),
            place(IntervalMetrics.empty(), tiny_run.run.replicated),
        )
    return jax.device_get((state, running)), meta["progress"]


@pytest.fixture(scope="module")
def stopped(drawn_files, tmp_path_factory):
    """The same run, stopped after 4 steps."""
    workdir = tmp_path_factory.mktemp("stopped")
    train.train(short_config(drawn_files, max_steps=4), workdir)
    return workdir


@pytest.fixture
def copy_of_stopped(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def test_a_run_traces_its_step_once(whole):
    assert whole[2] == ["trace"]


def test_a_run_leaves_its_files(whole, drawn_files):
    workdir, _, _ = whole
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["train_csv"] == str(drawn_files.train)
    assert config["model"]["backbone_width"] == 0.125
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    with Image.open(workdir / "train_samples.png") as sheet:
        assert sheet.width >= 4 * 96 and sheet.height >= 2 * 64
        assert len(sheet.convert("RGB").getcolors(1 << 24)) > 1000


def test_history_has_training_and_validation_figures(whole):
    records = read_history(whole[0])
    training = [r for r in records if "loss" in r]
    validation = [r for r in records if "val_AP" in r]
    assert [r["step"] for r in training] == [3, 6] == [r["step"] for r in validation]
    for record in training:
        assert {"loss_class", "loss_box", "learning_rate", "grad_norm"} <= record.keys()
        assert record["images_per_second"] > 0 and 0 <= record["data_wait_share"] <= 1
        assert record["loss"] == pytest.approx(record["loss_class"] + record["loss_box"], rel=1e-3)
    assert training[0]["loss"] != training[1]["loss"]
    assert all(0 < r["val_loss"] < 20 and 0 <= r["val_AP50"] <= 1 for r in validation)
    assert whole[1]["loss"] == pytest.approx(validation[-1]["val_loss"])


def test_a_resumed_run_is_the_uninterrupted_one(whole, copy_of_stopped, drawn_files, tiny_run):
    before = final_state(copy_of_stopped, tiny_run)[0][0]
    assert before.step == 4
    samples = (copy_of_stopped / "train_samples.png").read_bytes()
    # Another number of data workers must not matter either.
    train.train(short_config(drawn_files, data__num_workers=1), copy_of_stopped)
    support.assert_trees_equal(
        final_state(copy_of_stopped, tiny_run), final_state(whole[0], tiny_run)
    )
    assert final_state(whole[0], tiny_run)[0][0].step == 6
    assert history_without_clock(copy_of_stopped) == history_without_clock(whole[0])
    assert (copy_of_stopped / "train_samples.png").read_bytes() == samples


def test_a_finished_run_does_nothing_more(whole, drawn_files, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    assert train.train(short_config(drawn_files), workdir) == {}
    assert history_without_clock(workdir) == history_without_clock(whole[0])


def spy_on(open_batches, seen):
    class Spy:
        def __init__(self, *args):
            self.batches = open_batches(*args)

        def __iter__(self):
            return self

        def __next__(self):
            batch = next(self.batches)
            seen.append(batch["image_id"].tolist())
            return batch

        def close(self):
            self.batches.close()

    return Spy


def test_a_loss_that_is_not_finite_stops_the_run(copy_of_stopped, drawn_files, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "open_batches", spy_on(train.open_batches, seen))
    config = short_config(drawn_files, optimizer__learning_rate=1e30)
    with pytest.raises(FloatingPointError) as caught:
        train.train(config, copy_of_stopped, allow_config_change=True)
    message = str(caught.value)
    assert "at step 6" in message  # step 5 breaks the weights, step 6 sees it
    assert "the last good checkpoint is step 4" in message
    assert str(copy_of_stopped / "checkpoints") in message
    index = read_csv(drawn_files.train, read_classes(drawn_files.classes))
    for image_id, path in enumerate(index.image_paths):
        assert (path in message) == (image_id in seen[1])
    with checkpoint.open_manager(copy_of_stopped, read_only=True) as manager:
        assert max(manager.all_steps()) == 4


def test_early_stopping_keeps_the_best(tmp_path, drawn_files, monkeypatch):
    aps = iter([0.1, 0.3, 0.2, 0.25, 0.9])

    def scripted(*args, **kwargs):
        return {"AP": next(aps), "AP50": 0.5, "AP75": math.nan, "loss": 1.0}, []

    monkeypatch.setattr(validation, "evaluate", scripted)
    config = short_config(
        drawn_files,
        epochs=10.0,
        eval__patience=2,
        checkpoint__keep_latest=1,
        log__sample_images=0,
        log__report=False,
    )
    metrics = train.train(config, tmp_path)
    assert metrics["AP"] == 0.25
    assert [r["step"] for r in read_history(tmp_path) if "val_AP" in r] == [3, 6, 9, 12]
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        assert sorted(manager.all_steps()) == [6, 12] and manager.best_step() == 6
    assert not (tmp_path / "train_samples.png").exists()
    # The same command once more, as of a cluster that starts it until it is done.
    assert train.train(config, tmp_path) == {}
    assert [r["step"] for r in read_history(tmp_path) if "val_AP" in r] == [3, 6, 9, 12]
    patient = changed(config, eval__patience=3, max_steps=15)
    assert train.train(patient, tmp_path)["AP"] == 0.9


def test_a_corrected_box_of_one_csv_is_refused_and_told(tmp_path, drawn_files):
    data = shutil.copytree(drawn_files.classes.parent, tmp_path / "data")
    files = DatasetFiles(*(data / file.name for file in drawn_files))
    config = short_config(files, data__val_csv="", max_steps=1, log__sample_images=0)
    train.train(config, tmp_path / "run")
    assert train.train(config, tmp_path / "run") == {}
    rows = files.train.read_text().splitlines()
    name, x1, *rest = rows[0].split(",")
    files.train.write_text("\n".join([",".join([name, str(float(x1) + 1), *rest]), *rows[1:]]))
    with pytest.raises(ValueError, match=rf"1 box of 1 image changed \({name}\)"):
        train.train(config, tmp_path / "run")
    listed = set((tmp_path / "run" / "split" / "val.txt").read_text().split())
    assert len(listed) == 5 and listed < {row.partition(",")[0] for row in rows}
    assert not list((tmp_path / "run" / "split").glob("*.csv"))


def test_a_run_that_is_refused_after_reading_leaves_no_folder(tmp_path, drawn_files):
    config = short_config(drawn_files, data__val_csv="", loss__focal_alpha_per_class=(0.5,))
    with pytest.raises(ValueError, match="focal_alpha_per_class has 1 values for 6 classes"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bad_batch_size_names_both_numbers(tmp_path, drawn_files):
    with pytest.raises(ValueError, match="batch_size=12 cannot be split evenly over 8 devices"):
        train.train(short_config(drawn_files, batch_size=12), tmp_path)
    devices.check_divisible("batch", 32, 2)
    with pytest.raises(ValueError, match="24 cannot be .* evenly over 8 devices x 2 micro-batches"):
        devices.check_divisible("batch", 24, 2)
    assert list(pathlib.Path(tmp_path).iterdir()) == []
