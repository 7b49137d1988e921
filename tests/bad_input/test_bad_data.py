"""Every bad input is refused in clear lines; none hangs, or takes the memory."""

import os
import time
import tracemalloc

import numpy as np
import pytest
from reading_cases import ACCEPTED, CASES
from sound_sets import SOUND, outcome

from m2det_jax.convert_dataset import cli
from m2det_jax.data import DataError, Source, read_dataset


def test_the_table_is_long_and_covers_all_formats():
    assert len(CASES) >= 60
    assert len({case[0] for case in CASES}) == len(CASES)
    assert {case[1] for case in CASES} == set(SOUND)


@pytest.mark.parametrize("format", SOUND)
def test_the_sound_sets_are_sound(tmp_path, format):
    index = outcome(tmp_path, format, {})
    np.testing.assert_allclose(index.boxes, [[1, 2, 10, 12]], atol=1e-5)
    assert [index.class_names[k] for k in index.labels] == ["cat"]


@pytest.mark.parametrize(("format", "changes", "expected"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])  # fmt: skip
def test_bad_input(tmp_path, format, changes, expected):
    tracemalloc.start()
    begin = time.perf_counter()
    found = outcome(tmp_path, format, changes)
    seconds, (_, peak) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10 and peak < 100 * 2**20
    if expected == ACCEPTED:
        np.testing.assert_allclose(found.boxes, [[1, 2, 10, 12]], atol=1e-5)
        assert [found.class_names[k] for k in found.labels] == ["cat"]
        assert found.sizes.tolist() == [[40, 30]] and not len(found.regions)
    elif expected.endswith("..."):
        assert found.startswith(expected[:-3])
    else:
        assert found == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
@pytest.mark.parametrize(("name", "expected"), [
    ("train.csv", "train.csv: cannot read the file (Permission denied); check the path"),
    ("a.png", "train.csv:1: cannot read image a.png: Permission denied; repair or remove the "
              "image"),
])  # fmt: skip
def test_no_permission(tmp_path, name, expected):
    def unreadable(path):
        content = SOUND["csv"][name]
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0)

    assert outcome(tmp_path, "csv", {name: unreadable}) == expected


@pytest.mark.parametrize(("format", "name", "limit"), [
    ("csv", "train.csv", 4 * 2**30),
    ("coco", "annotations/instances_train.json", 4 * 2**30),
    ("voc", "Annotations/a.xml", 16 * 2**20),
    ("kitti", "train/label_2/a.txt", 16 * 2**20),
    ("yolo", "data.yaml", 2**20),
])  # fmt: skip
def test_files_of_endless_size_are_not_read(tmp_path, format, name, limit):
    def sparse(path):
        path.touch()
        os.truncate(path, limit + 1)

    begin = time.perf_counter()
    found = outcome(tmp_path, format, {name: sparse})
    assert found == f"{name}: the file has {limit + 1} bytes, at most {limit} are read; split it"
    assert time.perf_counter() - begin < 2


def test_a_box_over_the_edge_by_rounding_is_cut(tmp_path):
    from reading_cases import annotation

    index = outcome(tmp_path, "coco", annotation(bbox=[1, 2, 39.01, 10]))
    assert index.boxes.tolist() == [[1, 2, 40, 12]]


def test_many_findings_are_counted_not_kept(tmp_path):
    (tmp_path / "classes.csv").write_text("cat,0\n")
    (tmp_path / "train.csv").write_text("a.png,1,2,x,4,cat\n" * 20_000)
    with pytest.raises(DataError) as caught:
        read_dataset(Source("csv", str(tmp_path), "train.csv", "classes.csv"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "20000 problems in the data:" and lines[-1] == "... and 19950 more"


def test_the_command_line_ends_in_one_message(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [a\n")
    with pytest.raises(SystemExit) as caught:
        cli(["--from", "yolo", "--input", str(tmp_path), "--split", "train", "--to", "csv",
             "--output", str(tmp_path / "out")])  # fmt: skip
    text = caught.value.code
    assert (
        text.startswith("error: 1 problem in the data:") and "data.yaml:2: not usable YAML" in text
    )
