"""An index knows where its images and boxes are written."""

import numpy as np
from PIL import Image

from m2det_jax.data import read_csv
from m2det_jax.data.places import Places


def test_lines_of_a_csv_survive_sorting_and_choosing(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    rows = ["a.png,0,0,9,9,x", "b.png,,,,,", "", "c.png,1,1,9,9,x", "a.png,5,5,20,20,x"]
    csv = tmp_path / "train.csv"
    csv.write_text("\n".join(rows))
    index = read_csv(csv, ("x",))
    found = [(index.place_of_box(k)["line"], index.boxes[k, 0]) for k in range(3)]
    assert found == [(1, 0), (5, 5), (4, 1)]
    assert [index.place_of_image(i)["line"] for i in range(3)] == [1, 2, 4]
    part = index.subset([2, 0])
    assert [part.place_of_box(k)["line"] for k in range(3)] == [4, 1, 5]
    assert part.place_of_image(0) == {"file": str(csv), "line": 4, "item": ""}


def test_positions_in_files_without_lines_and_joined_sets():
    def part(file, items):
        lines = np.array([7, 8])
        numbers = (lines - 7, lines - 6) if items else ()
        return Places((file,), np.zeros(2, np.int64), lines, lines + 10, (items,), *numbers)

    both = Places.joined([part("a.csv", None), part("b.json", ("images[{}]", "annotations[{}]"))])
    assert both.of_image(1) == {"file": "a.csv", "line": 8, "item": ""}
    assert both.of_image(2) == {"file": "b.json", "line": 7, "item": "images[0]"}
    assert both.of_box(3, 3) == {"file": "b.json", "line": 18, "item": "annotations[2]"}
