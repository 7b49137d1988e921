"""The data of a workdir: decided once what is for validation, read anew, told apart by content."""

import csv
import dataclasses
import json
import os
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from m2det_jax.config import default_config
from m2det_jax.config.dotted import freeze, to_dict
from m2det_jax.config.paths import absolute_paths
from m2det_jax.data import read_csv, write_classes, write_csv
from m2det_jax.data.formats.write import write_dataset
from m2det_jax.datasets import record
from m2det_jax.datasets.evaluation import load_validation
from m2det_jax.datasets.loading import fingerprint, load_datasets
from m2det_jax.run import checkpoint
from m2det_jax.run.outputs import MANIFEST
from m2det_jax.training.resume import refuse_other_run

NAMES = [f"{i:02d}.png" for i in range(10)]


pytestmark = pytest.mark.usefixtures("log_of_run")


class DataSet:
    """Ten pictures with two boxes each, as CSV or as COCO, that can be changed."""

    def __init__(self, folder, format: str):
        self.folder, self.format = folder, format
        self.boxes = {name: [(1, 2, 9 + i, 12), (3, 3, 20, 20)] for i, name in enumerate(NAMES)}
        self.write()

    def write(self) -> None:
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        rows = []
        for name, boxes in self.boxes.items():
            if not (picture := self.folder / "images" / name).is_file():
                Image.new("RGB", (40, 30)).save(picture)
            rows += [f"images/{name},{','.join(map(str, box))},cell" for box in boxes]
        (self.folder / "train.csv").write_text("\n".join(rows) + "\n")
        (self.folder / "classes.csv").write_text("cell,0\n")
        if self.format == "coco":
            index = read_csv(self.folder / "train.csv", ("cell",))
            (self.folder / "annotations").mkdir(exist_ok=True)
            write_dataset({"train": index}, "coco", self.folder)

    def config(self, **changes):
        config = default_config()
        config.data.update({"val_csv": "", "val_split": "", "format": self.format})
        config.data.train_csv = str(self.folder / "train.csv")
        config.data.classes_csv = str(self.folder / "classes.csv")
        config.data.root = str(self.folder)
        config.update_from_flattened_dict(changes)
        return freeze(config)


@pytest.fixture(params=["csv", "coco"])
def data(request, tmp_path):
    return DataSet(tmp_path / "data", request.param)


@pytest.fixture
def csv_data(tmp_path):
    return DataSet(tmp_path / "data", "csv")


def start(config, workdir, allowed=False):
    """Starts a run as far as the data go; resumes where `trained` has left a checkpoint."""
    sizes = record.size_cache(workdir)
    train, val = load_datasets(config, workdir, sizes)
    prints = {"training": fingerprint(train), "validation": fingerprint(val)}
    run = types.SimpleNamespace(train_index=train, val_index=val, fingerprints=prints)
    if (workdir / "meta.json").is_file():
        meta = json.loads((workdir / "meta.json").read_text())
        refuse_other_run(meta, config, run, workdir / "checkpoints", allowed)
    workdir.mkdir(exist_ok=True)
    record.remember(config, workdir, train, val, prints, sizes)
    return run


def trained(config, workdir):
    """A run of which a checkpoint is kept."""
    run = start(config, workdir)
    meta = checkpoint.make_meta(to_dict(config), run.train_index.class_names, {}, run.fingerprints)
    (workdir / "checkpoints" / "00000001").mkdir(parents=True)
    (workdir / "meta.json").write_text(json.dumps(meta))
    return run


def names(index) -> list[str]:
    return [os.path.basename(path) for path in index.image_paths]


def refusal(config, workdir) -> str:
    with pytest.raises(ValueError, match="is of a run that would go another way: ") as caught:
        start(config, workdir)
    return str(caught.value)


def change(data: DataSet, run) -> None:
    """Corrects three boxes of two training images, one of validation; adds 4 images, removes 1."""
    first, second, gone = names(run.train_index)[:3]
    data.boxes[first] = [(1, 2, 11, 12), (3, 3, 21, 20)]
    data.boxes[second][1] = (3, 3, 22, 22)
    data.boxes[names(run.val_index)[0]].append((5, 5, 8, 8))
    del data.boxes[gone]
    data.boxes |= {f"new{i}.png": [(1, 1, 5, 5)] for i in range(4)}
    data.write()


def test_nothing_of_the_annotations_is_kept(data, tmp_path):
    start(data.config(), tmp_path / "run")
    found = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*.*")}
    assert found - {MANIFEST} == {"split/val.txt", "data_record.json", "image_sizes.json"}
    assert len((tmp_path / "run" / "split" / "val.txt").read_text().splitlines()) == 2


def test_a_changed_data_set_is_refused_with_what_changed(data, tmp_path):
    workdir = tmp_path / "run"
    run = trained(data.config(), workdir)
    start(data.config(), workdir)
    change(data, run)
    message = refusal(data.config(), workdir)
    a, b, c = names(run.train_index)[:3]
    folder = "images/"
    assert f"the training set: 3 boxes of 2 images changed ({folder}{a}, {folder}{b})" in message
    added = f"4 images were added ({folder}new0.png, {folder}new1.png, {folder}new2.png, ...)"
    assert added in message and f"1 image was removed ({folder}{c})" in message
    val = names(run.val_index)[0]
    assert f"the validation set: 1 box of 1 image changed ({folder}{val})" in message
    assert refusal(data.config(), workdir) == message  # nothing was noted of it
    other = start(data.config(), workdir, allowed=True)
    assert names(other.val_index) == names(run.val_index)
    assert "new0.png" in names(other.train_index) and other.train_index.num_images == 11
    # Noted, but not yet in a checkpoint.
    assert f"the training set: {run.fingerprints['training']}, now" in refusal(
        data.config(), workdir
    )


@pytest.mark.parametrize("change", [{"seed": 7}, {"data.val_fraction": 0.5}])
def test_another_split_is_refused_once_something_is_trained(data, tmp_path, change):
    workdir, (key, value) = tmp_path / "run", next(iter(change.items()))
    run = trained(data.config(), workdir)
    message = refusal(data.config(**change), workdir)
    assert f"config.{key} was" in message and f"now {value}" in message
    assert "set: " not in message  # the images for validation stay what they are
    other = start(data.config(**change), workdir, allowed=True)
    assert names(other.val_index) == names(run.val_index)


def test_before_training_corrections_are_used_and_told(data, tmp_path, log_of_run):
    workdir = tmp_path / "run"
    run = start(data.config(), workdir)
    listed = (workdir / "split" / "val.txt").read_text()
    change(data, run)
    log_of_run.clear()
    other = start(data.config(), workdir)
    assert names(other.val_index) == names(run.val_index)
    i = names(other.val_index).index(names(run.val_index)[0])
    assert len(other.val_index.objects(i)[1]) == 3 and other.train_index.num_images == 11
    assert "training: 3 boxes of 2 images changed" in log_of_run.text
    assert "4 images were added" in log_of_run.text
    assert "validation: 1 box of 1 image changed" in log_of_run.text
    assert "validation: 2 of 13 images, those listed in" in log_of_run.text
    assert (workdir / "split" / "val.txt").read_text() == listed
    log_of_run.clear()
    start(data.config(), workdir)
    assert "changed" not in log_of_run.text


def test_before_training_another_fraction_splits_anew(data, tmp_path, log_of_run):
    workdir = tmp_path / "run"
    start(data.config(**{"data.val_fraction": 0.5}), workdir)
    # With the same seed a smaller part lies in the larger one.
    for fraction in (0.2, 0.3, 0.2):
        config = data.config(**{"data.val_fraction": fraction})
        log_of_run.clear()
        drawn = start(config, workdir)
        assert "it is decided anew" in log_of_run.text
        again = start(config, workdir)
        assert drawn.val_index.num_images == 10 * fraction
        assert names(again.val_index) == names(drawn.val_index)


def test_moved_data_are_found(data, tmp_path):
    workdir = tmp_path / "run"
    run = trained(data.config(), workdir)
    data.folder = data.folder.rename(tmp_path / "elsewhere")
    if data.format == "coco":
        data.write()  # its file has absolute paths here
    other = start(data.config(), workdir)
    assert names(other.val_index) == names(run.val_index)
    assert all("/elsewhere/" in path for path in other.val_index.image_paths)


def test_images_outside_of_the_folder_of_the_csv(csv_data, tmp_path):
    workdir, tables = tmp_path / "run", tmp_path / "tables"
    tables.mkdir()
    text = (csv_data.folder / "train.csv").read_text()
    (tables / "train.csv").write_text(text.replace("images/", f"{csv_data.folder}/images/"))
    config = csv_data.config(**{"data.train_csv": str(tables / "train.csv")})
    run = trained(config, workdir)
    moved = tmp_path / "a" / "b" / "train.csv"
    moved.parent.mkdir(parents=True)
    (tables / "train.csv").rename(moved)
    other = start(csv_data.config(**{"data.train_csv": str(moved)}), workdir)
    assert other.val_index.image_paths == run.val_index.image_paths


def test_other_data_altogether(csv_data, tmp_path):
    run = trained(csv_data.config(), tmp_path / "run")
    csv_data.boxes = {f"other{i}.png": [(1, 1, 5, 5)] for i in range(5)}
    csv_data.write()
    with pytest.raises(ValueError, match=r"val\.txt lists 2 images .* 0 are among the 5"):
        start(csv_data.config(), tmp_path / "run")
    other = start(csv_data.config(), tmp_path / "fresh")
    csv_data.boxes = {name: [(1, 1, 5, 5)] for name in NAMES}
    csv_data.write()
    assert start(csv_data.config(), tmp_path / "fresh").val_index.num_images == 2
    assert other.val_index.num_images == 1 and run.val_index.num_images == 2


def test_a_changed_set_beside_a_validation_set(csv_data, tmp_path):
    workdir, val = tmp_path / "run", csv_data.folder / "val.csv"
    val.write_text("images/00.png,1,1,5,5,cell\n")
    csv_data.boxes.pop("00.png")
    csv_data.write()
    config = csv_data.config(**{"data.val_csv": str(val)})
    trained(config, workdir)
    assert not (workdir / "split").exists()
    val.write_text("images/00.png,1,1,6,5,cell\n")
    message = refusal(config, workdir)
    assert "the validation set: 1 box of 1 image changed (images/00.png)" in message
    assert "training set" not in message


def test_rows_in_another_order_and_pictures_of_another_size(csv_data, tmp_path):
    workdir = tmp_path / "run"
    run = trained(csv_data.config(), workdir)
    csv_data.boxes = dict(reversed(csv_data.boxes.items()))
    csv_data.write()
    assert "the training set: the images are in another order" in refusal(
        csv_data.config(), workdir
    )
    csv_data.boxes = dict(reversed(csv_data.boxes.items()))
    name = names(run.train_index)[0]
    csv_data.boxes[name].reverse()
    Image.new("RGB", (41, 30)).save(csv_data.folder / "images" / name)
    csv_data.write()
    message = refusal(csv_data.config(), workdir)
    assert f"the boxes of 1 image are in another order (images/{name})" in message
    assert f"the size of 1 image changed (images/{name})" in message


def old_workdir(data: DataSet, workdir):
    """A workdir as an earlier version left it: with copies of both parts."""
    run = trained(data.config(), workdir)
    for path in workdir.rglob("*.*"):
        if path.name != "meta.json":
            path.unlink()
    write_csv(run.train_index, workdir / "split" / "train.csv")
    write_csv(run.val_index, workdir / "split" / "val.csv")
    write_classes(("cell",), workdir / "split" / "classes.csv")
    return run


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def test_a_workdir_with_copies_goes_on(csv_data, tmp_path):
    workdir = tmp_path / "run"
    # Another part than the seed would give.
    drawn = csv_data.config(seed=3)
    run = old_workdir(csv_data, workdir)
    assert names(load_datasets(drawn, tmp_path / "new")[1]) != names(run.val_index)
    before = contents(workdir / "split")
    config = csv_data.config()
    assert names(load_validation(config, workdir, ("cell",))[0]) == names(run.val_index)
    assert names(start(config, workdir).val_index) == names(run.val_index)
    assert (workdir / "split" / "val.txt").is_file()
    assert names(start(config, workdir).val_index) == names(run.val_index)
    assert contents(workdir / "split") == before


def test_a_workdir_with_stale_copies_is_refused(csv_data, tmp_path):
    workdir = tmp_path / "run"
    run = old_workdir(csv_data, workdir)
    before = contents(workdir / "split")
    csv_data.folder = csv_data.folder.rename(tmp_path / "moved")
    assert names(start(csv_data.config(), workdir).val_index) == names(run.val_index)
    (workdir / "data_record.json").unlink()
    (workdir / "split" / "val.txt").unlink()
    change(csv_data, run)
    message = refusal(csv_data.config(), workdir)
    assert "the training set: 3 boxes of 2 images changed (images/" in message
    assert "4 images were added" in message and "1 image was removed" in message
    assert "the validation set: 1 box of 1 image changed" in message
    other = start(csv_data.config(), workdir, allowed=True)
    assert names(other.val_index) == names(run.val_index)
    assert contents(workdir / "split") == before


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "training": {"images": {"a": 1}}}']
)
def test_a_damaged_record_is_ignored_and_written_anew(csv_data, tmp_path, content):
    workdir = tmp_path / "run"
    run = trained(csv_data.config(), workdir)
    whole = (workdir / "data_record.json").read_text()
    (workdir / "data_record.json").write_text(content)
    assert names(start(csv_data.config(), workdir).val_index) == names(run.val_index)
    assert (workdir / "data_record.json").read_text() == whole


def test_evaluate_finds_the_part_again_and_tells_of_changes(data, tmp_path, log_of_run):
    workdir = tmp_path / "run"
    run = trained(absolute_paths(data.config()), workdir)
    config = absolute_paths(data.config())
    before = sorted(path for path in tmp_path.rglob("*"))
    index, what = load_validation(config, workdir, ("cell",))
    assert names(index) == names(run.val_index) and what.startswith("part of ")
    assert "not what it was" not in log_of_run.text
    assert sorted(path for path in tmp_path.rglob("*")) == before
    # The folder of the project is renamed, with the run and its data.
    project = tmp_path / "project"
    project.mkdir()
    for name in ("run", "data"):
        shutil.move(tmp_path / name, project / name)
    data.folder = project / "data"
    if data.format == "coco":
        data.write()
    index, _ = load_validation(config, project / "run", ("cell",))
    assert names(index) == names(run.val_index)
    assert all("/project/" in path for path in index.image_paths)
    change(data, run)
    index, _ = load_validation(config, project / "run", ("cell",))
    assert names(index) == names(run.val_index)
    assert "not what it was in training: 1 box of 1 image changed" in log_of_run.text
    data.folder.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="the data of the run are not there, .*start the run once"):
        load_validation(config, project / "run", ("cell",))


def test_names_that_are_no_plain_lines(csv_data, tmp_path):
    odd = 'a\nb"\u2028ä.png'
    Image.new("RGB", (40, 30)).save(csv_data.folder / "images" / odd)
    with open(csv_data.folder / "train.csv", "w", newline="") as file:
        for name in [*NAMES[:5], odd]:
            csv.writer(file).writerow([f"images/{name}", 1, 2, 9, 9, "cell"])
    held_out = set()
    for seed in range(12):
        workdir = tmp_path / f"run{seed}"
        run = trained(csv_data.config(seed=seed), workdir)
        again = start(csv_data.config(seed=seed), workdir)
        assert names(again.val_index) == names(run.val_index)
        held_out |= {*names(run.val_index)}
    assert odd in held_out


def test_regions_and_flags_count(csv_data):
    index = read_csv(csv_data.folder / "train.csv", ("cell",))
    note = record.note_images(index, str(csv_data.folder))
    flagged = dataclasses.replace(index, difficult=np.arange(20) == 3)
    crowd = dataclasses.replace(
        index,
        regions=np.array([[1, 1, 5, 5]], np.float32),
        region_labels=np.array([-1], np.int32),
        region_offsets=np.array([0, 0, *[1] * 9], np.int64),
    )
    for other in (flagged, crowd):
        changes = record.describe_changes(note, record.note_images(other, str(csv_data.folder)))
        assert changes == ["1 box of 1 image changed (images/01.png)"]


def test_a_list_that_people_changed_is_not_replaced(csv_data, tmp_path):
    workdir = tmp_path / "run"
    start(csv_data.config(), workdir)
    listed = workdir / "split" / "val.txt"
    listed.write_text("images/03.png\n")
    start(csv_data.config(), workdir)  # taken
    with pytest.raises(ValueError, match=r"val\.txt: .*or it was changed since; .*move it away"):
        start(csv_data.config(seed=9), workdir)
    assert listed.read_text() == "images/03.png\n"
