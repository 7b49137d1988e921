"""Sizes of images kept in a file: only what was measured, and is still so, is believed."""

import json
import os
import time

import pytest
from PIL import Image

from m2det_jax.data import sizes
from m2det_jax.data.formats.sources import Source, check_dataset
from m2det_jax.data.sizes import SizeCache

HOUR = 3_600_000_000_000  # nanoseconds


@pytest.fixture
def later(monkeypatch):
    """Lets an hour pass, so that no file is young."""
    now = time.time_ns() + HOUR
    monkeypatch.setattr(sizes.time, "time_ns", lambda: now)


@pytest.fixture
def opened(monkeypatch):
    """The files whose headers are read."""
    paths = []

    def read_size(path):
        paths.append(os.path.basename(path))
        return real(path)

    real = sizes.read_size
    monkeypatch.setattr(sizes, "read_size", read_size)
    return paths


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.new("RGB", (40 + i, 30)).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,1,1,9,9,x\n" for i in range(3)]
    (tmp_path / "a.csv").write_text("".join(rows))
    return tmp_path


def read(folder, file=None):
    """Reads the data set; returns (sizes, findings)."""
    cache = SizeCache(file or folder / "sizes.json")
    source = Source("csv", str(folder), "a.csv", ("x",))
    index, findings = check_dataset(source, read=cache.read_size)
    cache.write()
    return index.sizes.tolist(), [finding.text for finding in findings]


SIZES = [[40, 30], [41, 30], [42, 30]]


def test_headers_are_read_once(folder, later, opened):
    assert read(folder) == (SIZES, []) and sorted(opened) == ["0.png", "1.png", "2.png"]
    written = (folder / "sizes.json").read_bytes()
    opened.clear()
    assert read(folder) == (SIZES, []) and opened == []
    assert (folder / "sizes.json").read_bytes() == written


def test_what_was_touched_is_read_again(folder, later, opened):
    read(folder)
    opened.clear()
    times = os.stat(folder / "1.png")
    Image.new("RGB", (71, 30)).save(folder / "1.png")
    os.utime(folder / "1.png", ns=(times.st_atime_ns, times.st_mtime_ns))  # as copying may do
    assert read(folder)[0] == [[40, 30], [71, 30], [42, 30]] and opened == ["1.png"]
    opened.clear()
    os.utime(folder / "2.png")
    assert read(folder)[0][2] == [42, 30] and opened == ["2.png"]


def test_young_files_are_not_believed(folder, opened):
    read(folder)
    assert json.loads((folder / "sizes.json").read_text())["images"] == {}
    opened.clear()
    Image.new("RGB", (99, 30)).save(folder / "0.png")
    assert read(folder)[0][0] == [99, 30] and len(opened) == 3


def test_an_image_that_is_gone_or_broken_is_found(folder, later):
    read(folder)
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"no image")
    findings = read(folder)[1]
    assert len(findings) == 2 and "no such file" in findings[0]
    assert "not an image file" in findings[1]
    known = json.loads((folder / "sizes.json").read_text())["images"]
    assert [os.path.basename(path) for path in known] == ["2.png"]  # others are forgotten


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"format": 1}', b'{"format": 2, "images": {}}',
        b'{"format": 1, "images": []}', b'{"format": 1, "images": {"PATH": [1, 2, 3]}}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_cache_is_written_anew(folder, later, content):
    (folder / "sizes.json").write_bytes(content)
    assert read(folder) == (SIZES, [])
    assert len(json.loads((folder / "sizes.json").read_text())["images"]) == 3


@pytest.mark.parametrize("entry", [[0, 5], [-1, 5], [2**31, 5], ["40", 30], [40.0, 30], [True, 1]])
def test_impossible_sizes_are_not_believed(folder, later, entry):
    read(folder)
    content = json.loads((folder / "sizes.json").read_text())
    for path in content["images"]:
        content["images"][path][3:] = entry
    (folder / "sizes.json").write_text(json.dumps(content))
    assert read(folder) == (SIZES, [])


def test_a_full_disk_leaves_the_cache_as_it_was(folder, later, monkeypatch):
    read(folder)
    before = (folder / "sizes.json").read_bytes()
    os.utime(folder / "2.png")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        read(folder)
    assert (folder / "sizes.json").read_bytes() == before
