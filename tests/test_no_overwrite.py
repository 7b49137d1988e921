"""No verb writes over a file of the user's, and each may replace what it wrote itself."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import support
from PIL import Image

from m2det_jax import convert_dataset, demo, train
from m2det_jax.check.run import check
from m2det_jax.convert import weights
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.predict import predict
from m2det_jax.run.outputs import MANIFEST, Outputs


class Verb(NamedTuple):
    """A verb as called on a folder for its output: the files it writes, and one that it reads."""

    run: Callable[[Path], object]
    targets: tuple[str, ...]
    read: Path


def _predict(whole, root: Path) -> Verb:
    photo = root / "photo.jpg"
    Image.new("RGB", (60, 40), "red").save(photo)
    targets = ("photo.jpg", "predictions.jsonl", "predictions.json")
    return Verb(lambda out: predict(whole, [str(photo)], output=str(out)), targets, photo)


def _evaluate(whole, root: Path) -> Verb:
    csv = root / "val.csv"
    Image.new("RGB", (60, 40), "red").save(root / "a.png")
    csv.write_text("a.png,1,1,30,30,disc\n")

    def run(out):
        evaluate_checkpoint(whole, csv=str(csv), output=str(out / "m.json"))

    return Verb(run, ("m.json", "m_detections.json", "m.html"), root / "a.png")


def _config(root: Path):
    Image.new("RGB", (60, 40), "red").save(root / "a.png")
    (root / "train.csv").write_text("a.png,1,1,30,30,disc\n")
    (root / "classes.csv").write_text("disc,0\n")
    files = {"train_csv": "train.csv", "val_csv": "train.csv", "classes_csv": "classes.csv"}
    data = {f"data.{key}": str(root / name) for key, name in files.items()}
    return support.tiny_config(overrides=data)


def _check(whole, root: Path) -> Verb:
    config = _config(root)
    return Verb(
        lambda out: check(config, out, name="x", samples=0),
        ("report.html", "findings.json"),
        root / "a.png",
    )


def _demo(whole, root: Path) -> Verb:
    Image.new("RGB", (60, 40), "red").save(root / "a.png")
    return Verb(lambda out: demo.demo(out), ("detections.jpg",), root / "a.png")


def _convert_dataset(whole, root: Path) -> Verb:
    _config(root)

    def run(out):
        out.mkdir(exist_ok=True)
        (out / "notes.txt").write_text("of the user")
        convert_dataset.cli(["--from", "csv", "--input", str(root), "--split", "train.csv",
            "--classes", "classes.csv", "--to", "coco", "--output", str(out), "--force",
            "--copy_images"])  # fmt: skip

    return Verb(run, ("annotations/instances_train.json", "train/a.png"), root / "a.png")


def _convert(whole, root: Path) -> Verb:
    Image.new("RGB", (60, 40), "red").save(root / "a.png")
    return Verb(
        lambda out: weights.to_official(out / "x.safetensors", workdir=str(whole)),
        ("x.safetensors",),
        root / "a.png",
    )


def _train(whole, root: Path) -> Verb:
    config = support.changed(_config(root), max_steps=1, batch_size=8, eval__batch_size=8)
    return Verb(
        lambda out: train.train(config, out),
        ("config.json", "train_samples.png", "history.jsonl"),
        root / "a.png",
    )


VERBS = {
    "train": _train,
    "predict": _predict,
    "evaluate": _evaluate,
    "check": _check,
    "demo": _demo,
    "convert_dataset": _convert_dataset,
    "convert": _convert,
}


def contents(folder: Path) -> dict[str, str]:
    """What the files under a folder hold, and where links lead."""
    return {
        str(path): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() or path.is_symlink()
    }


def put_in_the_way(kind: str, target: Path, read: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file of the user":
        target.write_text("mine")
    elif kind == "hard link to an input":
        os.link(read, target)
    elif kind == "link to an input":
        target.symlink_to(read)
    elif kind == "link to nowhere":
        target.symlink_to("nowhere")
    else:
        target.mkdir()


@pytest.fixture(params=VERBS)
def verb(request, whole, tmp_path) -> Verb:
    (tmp_path / "in").mkdir()
    return VERBS[request.param](whole[0], tmp_path / "in")


@pytest.mark.parametrize(
    "kind",
    ["file of the user", "hard link to an input", "link to an input", "link to nowhere", "folder"],
)
def test_what_stands_in_the_way_stays(verb, kind, tmp_path):
    for target in verb.targets:
        out = tmp_path / "out"
        put_in_the_way(kind, out / target, verb.read)
        (out / "notes.txt").write_text("of the user")
        before = contents(tmp_path)
        with pytest.raises((ValueError, SystemExit)) as refused:
            verb.run(out)
        message = str(refused.value)
        assert Path(target).name in message and "\n" not in message, message
        assert "another folder" in message or "give a new name" in message
        assert contents(tmp_path) == before
        shutil.rmtree(out)


@pytest.mark.parametrize("name", ["predict", "evaluate", "check", "convert_dataset"])
def test_a_verb_replaces_its_own_until_somebody_changes_it(name, whole, tmp_path):
    (tmp_path / "in").mkdir()
    verb, out = VERBS[name](whole[0], tmp_path / "in"), tmp_path / "out"
    verb.run(out)
    assert all((out / target).is_file() for target in verb.targets)
    verb.run(out)
    moved = shutil.copytree(out, tmp_path / "moved")
    verb.run(moved)
    for target in verb.targets:
        kept = (out / target).read_bytes()
        (out / target).write_bytes(kept + b" ")
        with pytest.raises((ValueError, SystemExit), match="or it was changed since"):
            verb.run(out)
        assert (out / target).read_bytes() == kept + b" "
        (out / target).write_bytes(kept)
    verb.run(out)


def test_predict_never_writes_over_its_photographs(whole, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.JPG", "c.png"):
        Image.new("RGB", (60, 40), "red").save(folder / name)
    (tmp_path / "link").symlink_to(folder)
    before = contents(folder)
    for output in (folder, tmp_path / "link", tmp_path / "photos" / ".." / "photos"):
        with pytest.raises(ValueError, match=r"a\.jpg: it is one of the files to read"):
            predict(whole[0], [str(folder)], output=str(output))
    assert contents(folder) == before
    # Pictures of a run that are among the photographs are not looked at again.
    predict(whole[0], [str(folder / "c.png")], output=str(folder))
    (folder / "a.jpg").unlink(), (folder / "b.JPG").unlink()
    assert predict(whole[0], [str(folder)], output=str(folder)).images == 1


def test_convert_dataset_leaves_what_others_wrote(whole, tmp_path):
    (tmp_path / "in").mkdir()
    verb, out = VERBS["convert_dataset"](whole[0], tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / ".m2det-partial").symlink_to(tmp_path / "in")
    before = contents(tmp_path / "in")
    with pytest.raises(SystemExit, match=r"\.m2det-partial"):
        verb.run(out)
    assert contents(tmp_path / "in") == before
    (out / ".m2det-partial").unlink()
    (out / ".m2det-partial" / "train").mkdir(parents=True)  # of a run that was killed
    verb.run(out)
    assert (out / "notes.txt").read_text() == "of the user"
    assert not [name for name in os.listdir(out) if "partial" in name]


def test_training_notices_a_config_that_was_changed(drawn_files, tmp_path):
    config = support.short_config(drawn_files, max_steps=1)
    train.train(config, tmp_path)
    written = tmp_path / "config.json"
    kept = written.read_text()
    written.write_text(kept.replace('"epochs": 2.0', '"epochs": 4.0'))
    config = support.changed(config, max_steps=2)
    with pytest.raises(ValueError, match=r"config\.json: it was changed since the run wrote it"):
        train.train(config, tmp_path)
    assert '"epochs": 4.0' in written.read_text()
    config = support.changed(config, epochs=4.0, max_steps=1)  # what it says now
    train.train(config, tmp_path)
    config = support.changed(config, log__every_steps=5)  # once it was taken, it is the run's own
    train.train(config, tmp_path)
    written.write_text(kept)
    config = support.changed(config, epochs=2.0, max_steps=1, log__every_steps=3)
    train.train(config, tmp_path)
    config = support.changed(config, max_steps=2)
    train.train(config, tmp_path)
    assert '"max_steps": 2' in written.read_text()


def test_a_run_of_an_older_version_goes_on(drawn_files, tmp_path):
    config = support.short_config(drawn_files, max_steps=1)
    train.train(config, tmp_path)
    (tmp_path / MANIFEST).unlink()
    config = support.changed(config, max_steps=2)
    train.train(config, tmp_path)
    assert '"max_steps": 2' in (tmp_path / "config.json").read_text()


def test_the_list_of_what_was_written_stays_short(tmp_path):
    for run in range(6):
        outputs = Outputs(tmp_path, "predict")
        outputs.claim(["a.txt", "lines"])
        outputs.write("a.txt", f"run {run}")
        with outputs.stream("lines") as append:
            for number in range(600):
                append(f"{number}\n")
    Outputs(tmp_path, "predict").claim(["a.txt", "lines"])
    assert len((tmp_path / MANIFEST).read_text().splitlines()) < 1100
    (tmp_path / "lines").write_text("mine")
    with pytest.raises(ValueError, match="or it was changed since"):
        Outputs(tmp_path, "predict").claim(["lines"])
