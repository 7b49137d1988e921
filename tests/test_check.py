"""The check of a data set: what it finds, what it prints, and when it refuses."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import support
from PIL import Image
from test_main import ONE_DEVICE, REPOSITORY

from m2det_jax import convert_dataset
from m2det_jax.build import build_detector, make_anchors
from m2det_jax.check.run import check
from m2det_jax.check.samples import choose
from m2det_jax.config.dotted import with_values
from m2det_jax.data import read_classes
from m2det_jax.data.synthetic import DatasetFiles

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def sound(drawn_files, tmp_path_factory):
    """The report on the drawn set with fitted anchors: (contents, folder, printed)."""
    return inspected(drawn_files, tmp_path_factory.mktemp("sound"), fit=True, samples=4)


@pytest.fixture(scope="module")
def bad(drawn_files, tmp_path_factory):
    """A copy of the drawn set with things wrong in it, and the report on it."""
    root = shutil.copytree(drawn_files.train.parent, tmp_path_factory.mktemp("bad") / "data")
    files = DatasetFiles(*(root / file.name for file in drawn_files))
    rows = files.train.read_text().splitlines()
    names = [line.partition(",")[0] for line in rows if ",,," not in line]
    first, other = root / names[0], next(root / name for name in names if name != names[0])
    Image.open(first).convert("L").save(first)
    data = other.read_bytes()
    other.write_bytes(data[: len(data) // 2])
    leaked = next(name for name in reversed(names))
    shutil.copy(root / leaked, root / "leaked.jpg")
    wrong = f"1,1,2,2,{HOSTILE}", "-4,1,20,20,ring", "9,9,3,20,ring", "3,3,20,20,rong"
    rows += [*(f"{names[0]},{row}" for row in wrong), "gone.jpg,1,1,9,9,ring"]
    files.train.write_text("\n".join(rows))
    val = files.val.read_text().splitlines()
    val += [row.replace(leaked, "leaked.jpg") for row in rows if row.startswith(leaked)]
    files.val.write_text("\n".join(val))
    classes = files.classes.read_text().splitlines()
    extra = [f"{HOSTILE},{len(classes)}", f"never,{len(classes) + 1}"]
    files.classes.write_text("\n".join(classes + extra))
    report = inspected(files, tmp_path_factory.mktemp("report"), samples=6)
    return *report, files, {"grey": first, "cut": other, "rows": len(rows)}


def inspected(files, folder, overrides=None, **options):
    """Inspects the data set `files` with the tiny config: (contents, folder, what was printed)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        config = support.tiny_config(files, overrides)
        contents = check(config, folder, name="tiny", **options)
    return contents, folder, printed.getvalue()


def test_sound_data(sound, drawn_files):
    contents, folder, printed = sound
    assert not contents.refused
    assert not [group for group in contents.groups if group.severity == "error"]
    written = json.loads((folder / "findings.json").read_text())
    assert written["refused"] is False and written["experiment"] == "tiny"
    boxes = sum(",,,," not in line for line in drawn_files.train.read_text().splitlines())
    assert sum(row["train"] for row in written["classes"]) == boxes
    table = written["coverage"]["Training boxes by size at the network input"]
    assert table[-1]["name"] == "all" and table[-1]["boxes"] == boxes
    assert sum(row["boxes"] for row in table[:-1]) == boxes
    assert f"{boxes:,} boxes" in printed and str(folder / "report.html") in printed


def test_fitted_lines_are_taken_by_the_detector_and_are_no_worse(sound, drawn_files):
    fit = sound[0].fit
    assert fit.after["train"] >= fit.before["train"] or not fit.better
    config = support.tiny_config(drawn_files)
    detector = build_detector(config, read_classes(drawn_files.classes))
    for line in fit.lines:
        key, _, value = line.removeprefix("--config.").partition("=")
        values = tuple(map(float, value.strip("'()").rstrip(",").split(",")))
        config = with_values(config, {key: values})
    fitted = build_detector(config, read_classes(drawn_files.classes))
    assert fitted.anchors.shape == detector.anchors.shape  # a checkpoint still fits
    assert not np.array_equal(fitted.anchors, detector.anchors)
    np.testing.assert_array_equal(fitted.anchors, make_anchors(config))
    assert all(line in sound[2] for line in fit.lines)


def test_every_finding_has_its_place(bad):
    contents, folder, printed, files, places = bad
    found = {}
    for finding in json.loads((folder / "findings.json").read_text())["findings"]:
        found.setdefault(finding["kind"], []).append(finding)
    last = places["rows"]
    lines = {kind: [f["line"] for f in found[kind]] for kind in found}
    assert lines["outside"] == [last - 3] and lines["swapped"] == [last - 2]
    assert lines["unknown-class"] == [last - 1] and lines["no-image"] == [last]
    assert lines["tiny-box"][0] > 0 and last - 4 in lines["tiny-box"]
    assert [f["image"] for f in found["grey-image"]] == [str(places["grey"])]
    assert [f["image"] for f in found["truncated-image"]] == [str(places["cut"])]
    assert found["split-leak"][0]["file"] == str(files.val) and lines["split-leak"][0] > 0
    assert {f["what"].partition(":")[0] for f in found["unused-class"]} == {"never"}
    for kind in ("outside", "swapped", "unknown-class", "no-image", "truncated-image"):
        assert {f["severity"] for f in found[kind]} == {"error"}, kind
        assert all(f["effect"] for f in found[kind])
    assert {f["severity"] for kind in ("tiny-box", "split-leak") for f in found[kind]} == {
        "warning"
    }
    assert contents.refused
    assert f"{files.train}:{last}: " in printed and "training does not start" in printed


def test_the_page_is_safe_and_whole(bad):
    page = (bad[1] / "report.html").read_text()
    assert HOSTILE not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script>") == 1
    assert "http:" not in page and "https:" not in page and 'src="data:image/jpeg' in page
    assert page.count('class="picture"') == 6 + 3
    assert len(page.encode()) < 20_000_000


def test_samples_of_files_are_said(drawn_files, tmp_path):
    contents, folder, _ = inspected(drawn_files, tmp_path, max_images=5, samples=0)
    groups = {group.kind: group for group in contents.groups}
    assert groups["unchecked-images"].count == 2 and not contents.refused
    texts = [f.what for f in contents.findings if f.kind == "unchecked-images"]
    assert texts == ["19 of 24 image files", "7 of 12 image files"]
    assert contents.pictures == [] and "No picture to show" in (folder / "report.html").read_text()


def test_chosen_pictures(tiny_run):
    index = tiny_run.run.train_index
    reached = np.ones(len(index.labels), bool)
    reached[index.offsets[5] : index.offsets[5] + 2] = False
    readable = np.arange(index.num_images) != 7
    remarked = {index.image_paths[7], index.image_paths[9]}
    chosen = choose(index, reached, remarked, readable, 6)
    assert chosen[:2] == [(5, "most boxes without an anchor"), (9, "has findings")]
    assert len(chosen) == len(dict(chosen)) == 6 and 7 not in dict(chosen)
    assert chosen == choose(index, reached, remarked, readable, 6)
    assert len(choose(index, reached, remarked, readable, 100)) == index.num_images - 1


def test_mended_boxes_are_warnings(bad, tmp_path):
    """What config.data.on_bad_box mends is said, and does not refuse; what it cannot mend does."""
    files = bad[3]
    rows = files.train.read_text().splitlines()
    mendable = files.train.with_name("mendable.csv")
    mendable.write_text("\n".join(rows[:-2]))  # without the unknown class and the missing image
    whole = files._replace(train=mendable)
    options = {"data.on_bad_box": "clip"}
    contents, folder, _ = inspected(whole, tmp_path, options, max_images=1, samples=0)
    groups = {group.kind: group for group in contents.groups}
    assert groups["outside"].severity == groups["swapped"].severity == "warning"
    assert groups["outside"].effect == "the box is cut to the image"
    assert groups["swapped"].effect == "the box is left out"
    assert not contents.refused
    boxes = sum(
        row["train"] for row in json.loads((folder / "findings.json").read_text())["classes"]
    )
    assert boxes == sum(",,,," not in row for row in rows[:-2]) - 1


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_other_formats(drawn_files, tmp_path, form):
    root = tmp_path / form
    arguments = ["--from=csv", f"--input={drawn_files.train.parent}", "--classes=classes.csv"]
    arguments += ["--split=train.csv", "--as=train", f"--to={form}", f"--output={root}"]
    convert_dataset.convert_dataset(convert_dataset.parse(arguments))
    data = {"data.format": form, "data.root": str(root), "data.train_split": "train",
            "data.val_split": ""}  # fmt: skip
    contents, _, _ = inspected(drawn_files, tmp_path / "out", data, samples=2, smallest_side=20.0)
    assert not contents.refused and len(contents.pictures) == 2
    places = [f.where for f in contents.findings if f.kind == "tiny-box"]
    expected = r"annotations\[\d+\]" if form == "coco" else r"\.txt:\d+$"
    assert places and all(re.search(expected, place) for place in places), places[:3]


@pytest.mark.parametrize("whole_set", [True, False])
def test_the_shipped_command(drawn_files, tmp_path, whole_set):
    """Exit status 0 for sound data, split by seed or not, else 1 with the report all the same."""
    rows = drawn_files.train.read_text()
    table = drawn_files.train.with_name(f"table{whole_set}.csv")
    table.write_text(rows if whole_set else rows + "gone.jpg,1,2,3,4,ring\n")
    val = "" if whole_set else drawn_files.val
    files = {"train": table, "val": val, "classes": drawn_files.classes}
    arguments = [f"--config.data.{name}_csv={file}" for name, file in files.items()]
    command = [sys.executable, "-m", "m2det_jax.check", "--config", "quickstart", *arguments]
    result = subprocess.run(
        [*command, "--samples=2", "--max_images=4"],
        cwd=tmp_path,
        env=os.environ | ONE_DEVICE | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == (0 if whole_set else 1), result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "runs" / "check-quickstart" / "report.html").is_file()
    assert ("gone.jpg: no such file" in result.stdout) is not whole_set
    images = "19" if whole_set else "24"
    assert re.search(rf"training images +{images} ", result.stdout)
