"""CSV files: what is read, what is refused and how the refusal reads."""

import csv
import time

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data import DataError, read_classes, read_csv, write_classes, write_csv
from m2det_jax.data.errors import Findings
from m2det_jax.data.formats.csv_boxes import RowReader

CLASSES = ("disc", "ring", "a, b")


@pytest.fixture
def folder(tmp_path):
    """Images a.png (40 x 30), b.png (64 x 48), rotated.jpg (30 x 40 as seen) and classes.csv."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    Image.new("L", (64, 48)).save(tmp_path / "sub" / "b.png")
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "rotated.jpg", exif=exif)
    write_classes(CLASSES, tmp_path / "classes.csv")
    return tmp_path


def read(folder, text):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "train.csv").write_bytes(data)
    return read_csv(folder / "train.csv", folder / "classes.csv")


def findings(folder, text):
    with pytest.raises(DataError) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()[1:]
    return [line.removeprefix(f"{folder / 'train.csv'}:") for line in lines]


def test_reads_images_boxes_and_empty_images(folder):
    index = read(
        folder,
        "a.png,1,2,40,30,ring\nsub/b.png,,,,,\nrotated.jpg,0,0,30,40,disc\n"
        'a.png,0.5,1.25,3,4.75,"a, b"\n',
    )
    assert index.image_paths == tuple(
        str(folder / name) for name in ("a.png", "sub/b.png", "rotated.jpg")
    )
    assert index.sizes.tolist() == [[40, 30], [64, 48], [30, 40]]
    assert index.class_names == CLASSES
    boxes, labels = index.objects(0)
    assert boxes.tolist() == [[1, 2, 40, 30], [0.5, 1.25, 3, 4.75]]
    assert labels.tolist() == [1, 2]
    assert [len(index.objects(i)[1]) for i in range(3)] == [2, 0, 1]
    assert index.boxes.dtype == np.float32 and index.labels.dtype == np.int32


def test_plain_twins(folder):
    plain = "a.png,1,2,3,4,disc\nsub/b.png,,,,,\n"
    expected = read(folder, plain)
    twins = {
        "bom": b"\xef\xbb\xbf" + plain.encode(),
        "crlf": plain.replace("\n", "\r\n"),
        "backslash": plain.replace("sub/", "sub\\"),
        "no last newline": plain[:-1],
        "blank lines": "\n" + plain.replace("\n", "\n\n"),
        "dotted path": plain.replace("sub/b", "./sub/../sub/b"),
        "absolute path": plain.replace("a.png", str(folder / "a.png")),
    }
    for name, text in twins.items():
        index = read(folder, text)
        assert index.image_paths == expected.image_paths, name
        assert np.array_equal(index.boxes, expected.boxes), name
        assert np.array_equal(index.offsets, expected.offsets), name


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,1,2,3,4", "5 column(s) where 6 are expected (a.png,1,2,3,4)"),
        ("a.png,1,2,3,4,disc,9", "7 column(s) where 6 are expected"),
        ("a.png;1;2;3;4;disc", "with commas, not semicolons"),
        ("a.png,1,2,3,four,disc", "y2 is not a number (four)"),
        ("a.png,1,2,3,1_0,disc", "y2 is not a number (1_0)"),
        ("a.png,nan,2,3,4,disc", "a coordinate is not finite (nan,2,3,4)"),
        ("a.png,1,2,inf,4,disc", "a coordinate is not finite (1,2,inf,4)"),
        ("a.png,1,2,1e300,4,disc", "a coordinate is not finite"),
        ("a.png,5,2,3,4,disc", "x2 is less than x1 (5,2,3,4); swap the corners"),
        ("a.png,1,9,3,4,disc", "y2 is less than y1 (1,9,3,4); swap the corners"),
        ("a.png,3,2,3,4,disc", "no width, x2 equals x1 (3,2,3,4)"),
        ("a.png,1,4,3,4,disc", "no height, y2 equals y1 (1,4,3,4)"),
        ("a.png,1,2,40.5,4,disc", "leaves the image, 40 x 30 pixels (1,2,40.5,4)"),
        ("a.png,-1,2,4,4,disc", "leaves the image, 40 x 30 pixels (-1,2,4,4)"),
        ("rotated.jpg,0,0,40,30,disc", "30 x 40 pixels (0,0,40,30); it fits the image with width"),
        ("a.png,1,2,3,4,Disc", "unknown class (Disc); did you mean disc?"),
        ("a.png,1,2,3,4, disc", "unknown class ( disc); remove the blanks"),
        ("a.png,1,2,3,4,xyz", "unknown class (xyz); the classes are disc, ring, a, b"),
        ("a.png,1,,3,4,disc", "y1 empty (a.png,1,,3,4,disc)"),
        ("a.png,1,2,3,4,", "class_name empty"),
        ("a.png,,,,,disc", "x1, y1, x2, y2 empty"),
        (",1,2,3,4,disc", "path empty"),
        ("none.png,1,2,3,4,disc", "none.png: no such file; relative paths start from"),
        ("a.png ,1,2,3,4,disc", "no such file; remove the blanks around the path"),
        ("sub,1,2,3,4,disc", "sub: it is a directory"),
        ("zero.png,1,2,3,4,disc", "zero.png: the file is empty (0 bytes)"),
        ("classes.csv,,,,,", "classes.csv: not an image file"),
        ("a.png,10,10,20,20,disc", "repeats line 1 (10,10,20,20); remove one"),
        ("a.png,10.0,1e1,20,20,disc", "repeats line 1 (10,10,20,20); remove one"),
        ("a.png,,,,,", "said to have no objects, but line 1 gives it a box"),
        ('"a.png,1,2,3,4,disc', "not valid CSV (unexpected end of data)"),
    ],
)
def test_malformed_row(folder, row, message):
    (folder / "zero.png").touch()
    found = findings(folder, f"a.png,10,10,20,20,disc\nsub/b.png,1,2,3,4,ring\n\n{row}\n")
    assert len(found) == 1
    assert found[0].startswith("4: ") and message in found[0]


def test_all_findings_at_once_with_line_numbers(folder):
    (folder / "classes.csv").write_text("disc,0\nring,0\n")
    with pytest.raises(DataError) as caught:
        read(folder, 'a.png,3,2,1,4,disc\n"x\ny.png",1,2,3,4,disc\na.png,1,2,3,4,cup\na.png,1\n')
    lines = [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]
    places = [line.split(": ")[0] for line in lines[1:]]
    assert lines[0] == "5 problems in the data:"
    assert places[0] == "classes.csv:2"
    assert places[1] == "train.csv:1" and places[2] == "train.csv:2"  # where the record begins
    assert "x\\ny.png: no such file" in lines[3]
    assert lines[4].startswith("train.csv:4: unknown class (cup)")
    assert lines[5].startswith("train.csv:5: 2 column(s)")


def test_at_most_fifty_findings_are_printed(folder):
    found = findings(folder, "".join(f"a.png,9,2,{i / 100},4,disc\n" for i in range(60)))
    assert len(found) == 51 and found[-1] == "... and 10 more"


def test_header_row(folder):
    found = findings(folder, "path,x1,y1,x2,y2,class_name\na.png,1,2,3,4,disc\n")
    assert len(found) == 1 and found[0].startswith("1: a header row (path,x1,y1,x2,y2,class_name)")
    found = findings(folder, "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,,,,,\n")
    assert len(found) == 1 and "a header row" in found[0]


def test_files_without_rows(folder):
    for text in ("", "\n\n", b"\xef\xbb\xbf"):
        with pytest.raises(DataError, match=r"train.csv: no rows"):
            read(folder, text)
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 0xff at offset 0\)"):
        read(folder, "a.png,1,2,3,4,disc\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"missing.csv: cannot read the file"):
        read_csv(folder / "missing.csv", folder / "classes.csv")
    with pytest.raises(DataError, match=r"cannot read the file"):
        read_csv(folder, folder / "classes.csv")


def test_repeated_rows_of_an_empty_image(folder):
    found = findings(folder, "a.png,,,,,\n./a.png,,,,,\n")
    assert len(found) == 1 and found[0].startswith("2: repeats line 1")


def test_class_names_in_place_of_the_file(folder):
    (folder / "train.csv").write_text("a.png,1,2,3,4,ring\n")
    index = read_csv(folder / "train.csv", ["disc", "ring"])
    assert index.class_names == ("disc", "ring") and index.labels.tolist() == [1]


def test_classes_in_any_order(tmp_path):
    (tmp_path / "classes.csv").write_bytes(b'\xef\xbb\xbfring,1\r\n"a, b",2\r\ndisc,0\r\n')
    assert read_classes(tmp_path / "classes.csv") == CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "classes.csv: no classes"),
        ("disc,0\nring,2\n", "ids have a gap (1 is missing, 2 is the largest)"),
        ("disc,0\nring,999999999\n", "ids have a gap (1 is missing"),
        ("disc,0\nring,0\n", "classes.csv:2: id 0 is taken by disc (ring)"),
        ("disc,0\ndisc,1\n", "classes.csv:2: class name repeats line 1 (disc)"),
        ("disc,0\nring,1.0\n", "classes.csv:2: id is not a whole number from 0 (1.0)"),
        ("disc,0\nring,-1\n", "classes.csv:2: id is not a whole number from 0 (-1)"),
        ("disc,0\nring\n", "classes.csv:2: 1 column(s) where 2 are expected (ring)"),
        ("disc,0\n,1\n", "classes.csv:2: the class name is empty"),
        ("disc,0\n ring,1\n", "classes.csv:2: blanks around the class name"),
        ("class_name,id\ndisc,0\n", "classes.csv:1: a header row (class_name,id)"),
        ("name,class_id\ndisc,0\n", "classes.csv:1: a header row"),
    ],
)
def test_malformed_classes(tmp_path, text, message):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_classes(tmp_path / "classes.csv")
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 2


def test_missing_class_file_does_not_bury_itself(folder):
    (folder / "classes.csv").unlink()
    with pytest.raises(DataError) as caught:
        read(folder, "a.png,1,2,3,4,disc\n" * 3)
    assert "classes.csv: cannot read the file" in str(caught.value)
    assert "unknown class" not in str(caught.value)


def test_round_trip(folder):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 29, (40, 2, 2)).astype(np.float32), axis=1).reshape(40, 4)
    rows = [["a.png", *(str(v) for v in box), CLASSES[i % 3]] for i, box in enumerate(corners)]
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([*rows, ["sub/b.png", "", "", "", "", ""]])
    index = read_csv(folder / "train.csv", folder / "classes.csv")
    assert np.array_equal(index.boxes, corners)
    for target in (folder / "again.csv", folder / "sub" / "below.csv"):
        write_csv(index, target)
        again = read_csv(target, folder / "classes.csv")
        assert again.image_paths == index.image_paths
        for name in ("boxes", "labels", "offsets", "sizes"):
            assert np.array_equal(getattr(again, name), getattr(index, name)), name
    assert "a.png" in (folder / "again.csv").read_text().splitlines()[0].split(",")


def test_bccd(bccd_dir):
    train = read_csv(bccd_dir / "train.csv", bccd_dir / "classes.csv")
    val = read_csv(bccd_dir / "val.csv", bccd_dir / "classes.csv")
    assert (len(train.boxes), len(val.boxes)) == (3941, 945)
    assert not set(train.image_paths) & set(val.image_paths)
    assert (train.sizes == (640, 480)).all()


def test_many_rows_are_quick(tmp_path):
    text = "".join(
        f"i{i}.jpg,{j},{j},{j + 9}.5,{j + 9},disc\n" for i in range(5000) for j in range(10)
    )
    (tmp_path / "many.csv").write_text(text)
    start = time.perf_counter()
    rows = RowReader(tmp_path / "many.csv", CLASSES, Findings()).read()
    seconds = time.perf_counter() - start
    assert len(rows.labels) == 50_000 and len(rows.image_paths) == 5000
    # The aim is 1,000,000 rows in 15 s; a twentieth of them here, with room for a busy machine.
    assert seconds < 2
