"""Whole runs on a small drawn data set: train, stop, resume, evaluate, predict."""

import json
import math
import pathlib
import shutil

import jax
import pytest
import support
from PIL import Image

from m2det_jax import checkpoint, demo, runtime, train
from m2det_jax.data import read_classes, read_csv
from m2det_jax.datasets import load_datasets
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.history import read_history
from m2det_jax.predict import predict
from m2det_jax.watch import IntervalMetrics

# 3 steps an epoch; the stop at step 4 lies inside an epoch and inside a log interval.
LENGTH = {"epochs": 2.0, "eval.every_epochs": 1.0, "log.every_steps": 3, "eval.max_detections": 20}
COCO_FIGURES = (
    "AP AP50 AP75 AP_small AP_medium AP_large AR_1 AR_10 AR_100 AR_small AR_medium AR_large"
).split()
WALL_CLOCK = {"images_per_second", "data_wait_share"}


def config_of(files, **overrides):
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return support.tiny_config(files, LENGTH | dotted)


def history_without_clock(workdir) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in WALL_CLOCK} for r in read_history(workdir)]


def final_state(workdir, tiny_run):
    """(State, interval metrics, progress) of the latest checkpoint, in host memory."""
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        state, running, meta = checkpoint.restore_latest(
            manager,
            tiny_run.initial,
            jax.device_get(IntervalMetrics.empty()),
            tiny_run.run.replicated,
        )
    return jax.device_get((state, running)), meta["progress"]


@pytest.fixture(scope="module")
def whole(drawn_files, tmp_path_factory):
    """A run of 6 steps that nothing stopped: (workdir, metrics, traces of its step)."""
    workdir = tmp_path_factory.mktemp("whole")
    with support.counted_traces() as traces:
        metrics = train.train(config_of(drawn_files), workdir)
    return workdir, metrics, traces


@pytest.fixture(scope="module")
def stopped(drawn_files, tmp_path_factory):
    """The same run, stopped after 4 steps."""
    workdir = tmp_path_factory.mktemp("stopped")
    train.train(config_of(drawn_files, max_steps=4), workdir)
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
    assert training[1]["loss"] < training[0]["loss"]
    assert all(0 < r["val_loss"] < 20 and 0 <= r["val_AP50"] <= 1 for r in validation)
    assert whole[1]["loss"] == pytest.approx(validation[-1]["val_loss"])


def test_a_resumed_run_is_the_uninterrupted_one(whole, copy_of_stopped, drawn_files, tiny_run):
    before = final_state(copy_of_stopped, tiny_run)[0][0]
    assert before.step == 4
    samples = (copy_of_stopped / "train_samples.png").read_bytes()
    # Another number of data workers must not matter either.
    train.train(config_of(drawn_files, data__num_workers=1), copy_of_stopped)
    support.assert_trees_equal(
        final_state(copy_of_stopped, tiny_run), final_state(whole[0], tiny_run)
    )
    assert final_state(whole[0], tiny_run)[0][0].step == 6
    assert history_without_clock(copy_of_stopped) == history_without_clock(whole[0])
    assert (copy_of_stopped / "train_samples.png").read_bytes() == samples


def test_a_finished_run_does_nothing_more(whole, drawn_files, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    assert train.train(config_of(drawn_files), workdir) == {}
    assert history_without_clock(workdir) == history_without_clock(whole[0])


def test_a_loss_that_is_not_finite_stops_the_run(copy_of_stopped, drawn_files, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "open_batches", spy_on(train.open_batches, seen))
    config = config_of(drawn_files, optimizer__learning_rate=1e30, checkpoint__every_steps=100)
    with pytest.raises(FloatingPointError) as caught:
        train.train(config, copy_of_stopped)
    message = str(caught.value)
    assert "at step 6" in message  # step 5 breaks the weights, step 6 sees it
    assert "the last good checkpoint is step 4" in message
    assert str(copy_of_stopped / "checkpoints") in message
    index = read_csv(drawn_files.train, read_classes(drawn_files.classes))
    for image_id in seen[1]:
        assert index.image_paths[image_id] in message
    with checkpoint.open_manager(copy_of_stopped, read_only=True) as manager:
        assert max(manager.all_steps()) == 4


def spy_on(open_batches, seen):
    class Spy:
        def __init__(self, *args):
            self.batches = open_batches(*args)

        def __next__(self):
            batch = next(self.batches)
            seen.append(batch["image_id"].tolist())
            return batch

        def close(self):
            self.batches.close()

    return Spy


def test_early_stopping_keeps_the_best(tmp_path, drawn_files, monkeypatch):
    aps = iter([0.1, 0.3, 0.2, 0.25, 0.9])

    def scripted(*args, **kwargs):
        return {"AP": next(aps), "AP50": 0.5, "AP75": math.nan, "loss": 1.0}, []

    monkeypatch.setattr(train, "evaluate", scripted)
    config = config_of(
        drawn_files, epochs=10.0, eval__patience=2, checkpoint__keep_latest=1, log__sample_images=0
    )
    metrics = train.train(config, tmp_path)
    assert metrics["AP"] == 0.25
    assert [r["step"] for r in read_history(tmp_path) if "val_AP" in r] == [3, 6, 9, 12]
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        assert sorted(manager.all_steps()) == [6, 12] and manager.best_step() == 6
    assert not (tmp_path / "train_samples.png").exists()


def test_one_csv_is_split_by_image_and_the_split_reused(tmp_path, drawn_files):
    config = config_of(drawn_files, data__val_csv="", data__val_fraction=0.25)
    first = load_datasets(config, tmp_path / "run")
    assert [index.num_images for index in first] == [18, 6]
    assert not set(first[0].image_paths) & set(first[1].image_paths)
    other = load_datasets(config_of(drawn_files, data__val_csv="", seed=5), tmp_path / "other")
    assert set(other[1].image_paths) != set(first[1].image_paths)
    config.seed = 5
    again = load_datasets(config, tmp_path / "run")
    assert [index.image_paths for index in again] == [index.image_paths for index in first]
    assert (again[0].boxes == first[0].boxes).all()


def test_evaluate_prints_the_table_and_writes_it(whole, capsys):
    workdir, trained, _ = whole
    metrics = evaluate_checkpoint(workdir)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("AP50", "VOC", "disc", "00000006.json"))
    written = json.loads((workdir / "evaluation" / "00000006.json").read_text())
    assert set(COCO_FIGURES) <= written.keys() and "VOC_AP50" in written
    assert len(written["per_class"]) == 8
    assert written["step"] == 6
    for name in ("loss", "AP", "AP50", "AR_100"):
        assert metrics[name] == pytest.approx(trained[name], rel=1e-4, abs=1e-6), name
    detections = json.loads((workdir / "evaluation" / "00000006_detections.json").read_text())
    assert all(entry["score"] >= 0.01 for entry in detections)


def test_evaluate_on_other_annotations_and_another_checkpoint(whole, drawn_files, tmp_path):
    output = tmp_path / "new" / "train.json"
    arguments = dict(csv=str(drawn_files.train), checkpoint="3", output=str(output), batch_size=16)
    metrics = evaluate_checkpoint(whole[0], **arguments)
    written = json.loads(output.read_text())
    assert (written["step"], written["csv"]) == (3, str(drawn_files.train))
    assert metrics["loss"] != pytest.approx(whole[1]["loss"], rel=1e-4)
    with pytest.raises(ValueError, match="--batch_size=3 does not divide over 8 devices"):
        evaluate_checkpoint(whole[0], batch_size=3)


def test_predict_draws_files_and_folders(whole, drawn_files, tmp_path, capsys):
    folder = tmp_path / "pictures"
    (folder / "inner").mkdir(parents=True)
    sources = sorted(drawn_files.val.with_suffix("").glob("*.jpg"))[:3]
    shutil.copy(sources[0], folder / "inner" / "a.jpg")
    Image.open(sources[1]).convert("L").save(folder / "a.png")
    (folder / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    results = predict(
        whole[0], [str(sources[2]), str(folder)], output=str(output), threshold=0.0
    )
    assert len(results) == 3
    pictures = {path.name: Image.open(path).size for path in output.glob("*.jpg")}
    inputs = [sources[2], folder / "a.png", folder / "inner" / "a.jpg"]
    expected = dict(zip([sources[2].name, "a.jpg", "a_2.jpg"], inputs, strict=True))
    assert pictures == {name: Image.open(path).size for name, path in expected.items()}

    found = json.loads((output / "predictions.json").read_text())
    assert len(found) == sum(len(r.scores) for r in results) > 0
    assert {entry["file_name"] for entry in found} <= {str(path) for path in inputs}
    names = read_classes(drawn_files.classes)
    for entry in found:
        assert entry["category_name"] in names
        x, y, w, h = entry["bbox"]
        width, height = Image.open(entry["file_name"]).size
        assert 0 <= x <= x + w <= width + 1e-3 and 0 <= y <= y + h <= height + 1e-3
    assert f"{len(found)} detections in 3 images" in capsys.readouterr().out


def test_predict_names_all_paths_that_hold_no_image(whole, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = [str(tmp_path / "gone.jpg"), str(tmp_path / "empty")]
    with pytest.raises(ValueError, match=r"gone\.jpg: no such file.*empty: no images"):
        predict(whole[0], paths)


def test_the_demo_walks_the_whole_road(whole, drawn_files, tmp_path, capsys):
    workdir = shutil.copytree(whole[0], tmp_path / "demo")
    shutil.copytree(drawn_files.classes.parent, workdir / "data")
    experiment = tmp_path / "tiny.py"
    experiment.write_text(
        "from m2det_jax.config import default_config\n\n\ndef get_config():\n"
        "    config = default_config()\n"
        f"    config.update_from_flattened_dict({support.TINY | LENGTH!r})\n    return config\n"
    )
    metrics = demo.demo(workdir, config_name=str(experiment))
    assert metrics["AP"] == pytest.approx(whole[1]["AP"], abs=1e-6)
    printed = capsys.readouterr().out
    assert "AP50" in printed and str(workdir / "detections.jpg") in printed
    with Image.open(workdir / "detections.jpg") as sheet:
        assert sheet.width > 4 * 64 and sheet.height > 6 * 64


def test_a_bad_batch_size_names_both_numbers(tmp_path, drawn_files):
    with pytest.raises(ValueError, match="batch_size=12 does not divide over 8 devices"):
        train.train(config_of(drawn_files, batch_size=12), tmp_path)
    runtime.check_divisible("batch", 32, 2)
    with pytest.raises(ValueError, match="24 does not divide over 8 devices x 2 micro-batches"):
        runtime.check_divisible("batch", 24, 2)
    assert list(pathlib.Path(tmp_path).iterdir()) == []
