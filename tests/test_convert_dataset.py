"""The command that converts data sets: round trips, what it says, what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from m2det_jax.convert_dataset import cli
from m2det_jax.data import Source, read_csv, read_dataset

BETWEEN = ("coco", "voc", "kitti", "openimages", "yolo")


@pytest.fixture
def small(tmp_path):
    """A CSV set of two splits in tmp_path/in; two images have the same name."""
    root = tmp_path / "in"
    (root / "more").mkdir(parents=True)
    for name, size in (("a.png", (40, 30)), ("more/a.png", (64, 48)), ("b c.jpg", (20, 20))):
        Image.new("RGB", size, (len(name) * 20, 0, 0)).save(root / name)
    (root / "train.csv").write_text("a.png,1,2,30,20.5,cat\nmore/a.png,0,0,64,48,dog\n")
    (root / "val.csv").write_text("b c.jpg,0,0,20,20,cat\na.png,,,,,\n")
    (root / "classes.csv").write_text("cat,0\ndog,1\n")
    return root


def convert(*arguments):
    cli([str(argument) for argument in arguments])


def from_csv(root, target, output, *more):
    convert("--from", "csv", "--input", root, "--split", "train.csv", "--split", "val.csv",
            "--classes", "classes.csv", "--to", target, "--output", output, *more)  # fmt: skip


@pytest.mark.parametrize("between", BETWEEN)
def test_bccd_there_and_back_is_unchanged(tmp_path, bccd_dir, between, capsys):
    from_csv(bccd_dir, between, tmp_path / "there")
    convert("--from", between, "--input", tmp_path / "there", "--split", "train", "--split", "val",
            "--to", "csv", "--output", tmp_path / "back")  # fmt: skip
    said = capsys.readouterr().out
    assert "train: " in said and "3941 objects, 3 classes" in said
    for split in ("train", "val"):
        first = read_csv(bccd_dir / f"{split}.csv", bccd_dir / "classes.csv")
        back = read_csv(tmp_path / "back" / f"{split}.csv", tmp_path / "back" / "classes.csv")
        assert back.class_names == first.class_names == ("RBC", "WBC", "Platelets")
        names = [path.rpartition("/")[2] for path in back.image_paths]
        back = back.subset([names.index(path.rpartition("/")[2]) for path in first.image_paths])
        assert [back.class_names[k] for k in back.labels] == [
            first.class_names[k] for k in first.labels
        ]
        if between in ("coco", "voc", "kitti"):
            np.testing.assert_array_equal(back.boxes, first.boxes)
        np.testing.assert_allclose(back.boxes, first.boxes, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(back.offsets, first.offsets)
        np.testing.assert_array_equal(back.sizes, first.sizes)


def test_rows_of_a_csv_come_back_in_their_order(tmp_path, bccd_dir):
    from_csv(bccd_dir, "coco", tmp_path / "there")
    convert("--from", "coco", "--input", tmp_path / "there", "--split", "val", "--to", "csv",
            "--output", tmp_path / "back")  # fmt: skip
    first = (bccd_dir / "val.csv").read_text().replace("images/", f"{bccd_dir}/images/")
    assert (tmp_path / "back" / "val.csv").read_text() == first
    classes = (tmp_path / "back" / "classes.csv").read_text()
    assert classes == (bccd_dir / "classes.csv").read_text()


def test_says_what_becomes_of_everything(tmp_path, small, capsys):
    from_csv(small, "voc", tmp_path / "voc")
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "train: 2 images, 2 objects, 2 classes",
        "val: 2 images, 1 objects, 2 classes",
        "train: not held by voc: 1 boxes have fractions of pixels, which VOC itself rarely has",
        "val: not held by voc: classes without an object are named only in our list classes.csv: dog",  # noqa: E501
        f"written: voc in {tmp_path / 'voc'}; images: 4 hard links, 3 with a new name",
    ]
    assert sorted(p.name for p in (tmp_path / "voc" / "JPEGImages").iterdir()) == [
        "a.png", "a_2.png", "a_3.png", "b_c.jpg",
    ]  # fmt: skip
    linked = tmp_path / "voc" / "JPEGImages" / "a.png"
    assert linked.samefile(small / "a.png")
    from_csv(small, "csv", tmp_path / "csv", "--copy_images")
    copied = tmp_path / "csv" / "images" / "train" / "a.png"
    assert copied.read_bytes() == (small / "a.png").read_bytes() and not copied.samefile(
        small / "a.png"
    )
    assert (tmp_path / "csv" / "train.csv").read_text().startswith("images/train/a.png,1,2,30,20.5")


def test_nothing_is_overwritten_without_being_told(tmp_path, small):
    from_csv(small, "coco", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"error: --output .*out: not empty; .* --force"):
        from_csv(small, "coco", tmp_path / "out")
    from_csv(small, "coco", tmp_path / "out", "--force")
    (tmp_path / "killed" / ".m2det-partial").mkdir(parents=True)
    from_csv(small, "coco", tmp_path / "killed")
    with pytest.raises(SystemExit, match="2 splits and the names a, A"):
        from_csv(small, "coco", tmp_path / "two", "--as", "a", "--as", "A")
    with pytest.raises(SystemExit, match="classes.csv is the list of the classes"):
        from_csv(small, "csv", tmp_path / "two", "--as", "classes", "--as", "b")
    with pytest.raises(SystemExit, match="that is the input"):
        from_csv(small, "csv", small, "--force")
    with pytest.raises(SystemExit, match="holds images of the input, such as"):
        from_csv(small, "voc", tmp_path, "--force")
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="there is a file of that name"):
        from_csv(small, "coco", tmp_path / "file")


def test_classes_mapped_and_filtered(tmp_path, small, capsys):
    from_csv(small, "yolo", tmp_path / "one", "--class_map", "cat=animal", "dog=animal")
    index = read_dataset(Source("yolo", str(tmp_path / "one"), "train"))
    assert index.class_names == ("animal",) and len(index.boxes) == 2
    from_csv(small, "coco", tmp_path / "two", "--labels_filter", "dog")
    assert "train.csv: 1 objects of other classes left out" in capsys.readouterr().out
    index = read_dataset(Source("coco", str(tmp_path / "two"), "train"))
    assert index.class_names == ("dog",) and index.num_images == 2


def test_bad_data_are_refused_or_mended(tmp_path, small, capsys):
    (small / "train.csv").write_text("a.png,1,2,45,20,cat\n")
    with pytest.raises(SystemExit, match=r"train\.csv:1: the box leaves the image, 40 x 30"):
        from_csv(small, "coco", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    from_csv(small, "coco", tmp_path / "out", "--on_bad_box", "clip")
    said = capsys.readouterr().out
    assert "train.csv: a box leaves its image, 1 times: the box is cut to the image" in said


def test_names_of_splits(tmp_path, small):
    arguments = ["--from", "csv", "--input", small, "--split", "train.csv", "--classes",
                 "classes.csv", "--to", "csv", "--output", tmp_path / "out"]  # fmt: skip
    with pytest.raises(SystemExit, match="2 splits|1 splits and the names a, b"):
        convert(*arguments, "--as", "a", "--as", "b")
    with pytest.raises(SystemExit, match="a name without /"):
        convert(*arguments, "--as", "../a")
    convert(*arguments, "--as", "first")
    assert (tmp_path / "out" / "first.csv").is_file()


def test_ctrl_c_leaves_nothing_behind(tmp_path, small, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("m2det_jax.data.formats.voc.write_classes", interrupt)
    for more in ([], ["--force"]):
        with pytest.raises(SystemExit) as ended:
            from_csv(small, "voc", tmp_path / "out", *more)
        assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"
        assert not [p.name for p in tmp_path.rglob("*") if "partial" in p.name]
        assert not list((tmp_path / "out").rglob("*.xml"))
        (tmp_path / "out").mkdir(exist_ok=True)


def test_the_command_needs_no_jax(tmp_path, small):
    program = "import sys, runpy; sys.argv[0] = 'x'; " \
        "runpy.run_module('m2det_jax.convert_dataset', run_name='__main__'); " \
        "assert 'jax' not in sys.modules, 'jax is loaded'"  # fmt: skip
    arguments = ["--from", "csv", "--input", str(small), "--split", "train.csv", "--classes",
                 "classes.csv", "--to", "coco", "--output", str(tmp_path / "out")]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True
    )
    assert "written: coco" in result.stdout, result.stderr
