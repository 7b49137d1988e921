"""What image files really are, and what is said of them."""

import time

import numpy as np
import pytest
from PIL import Image

from m2det_jax.check import image_facts
from m2det_jax.check.files import check_files, check_repeats
from m2det_jax.check.image_facts import iterate_facts, read_facts

SIZE = (40, 30)


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8))


def kinds_of(path, size=SIZE):
    remarks = check_files(
        "train", {0: read_facts(str(path))}, np.array([size]), lambda image: {"line": 7}
    )
    assert all((r.line, r.image, r.split) == (7, str(path), "train") for r in remarks)
    return [remark.kind for remark in remarks]


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", "png", []),
        ("L", "png", ["grey-image"]),
        ("1", "png", ["grey-image"]),
        ("P", "png", ["palette-image"]),
        ("RGBA", "png", ["alpha-image"]),
        ("LA", "png", ["grey-image", "alpha-image"]),
        ("CMYK", "jpg", ["cmyk-image"]),
        ("I;16", "png", ["deep-image"]),
        ("F", "tif", ["float-image"]),
    ],
)
def test_kinds_of_pixels(tmp_path, picture, mode, suffix, expected):
    path = tmp_path / f"a.{suffix}"
    picture.convert("I" if mode == "I;16" else mode).convert(mode).save(path)
    assert kinds_of(path) == expected


def test_16_bit_colour(tmp_path):
    # Pillow writes none: an RGB PNG by hand.
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data)
        )  # fmt: skip

    rows = b"".join(b"\0" + bytes(6 * SIZE[0]) for _ in range(SIZE[1]))
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert kinds_of(path) == ["deep-image"]


def test_turned_animated_and_changed(tmp_path, picture):
    exif = Image.Exif()
    exif[0x112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert kinds_of(tmp_path / "turned.jpg", SIZE[::-1]) == ["exif-turned"]
    assert kinds_of(tmp_path / "turned.jpg", SIZE) == ["changed-image", "exif-turned"]
    frames = [picture.convert("P"), picture.convert("P").transpose(0)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert "animated-image" in kinds_of(tmp_path / "moving.gif")


def test_broken_files(tmp_path, picture):
    picture.save(tmp_path / "whole.jpg", quality=95)
    data = (tmp_path / "whole.jpg").read_bytes()
    files = {
        "truncated.jpg": (data[: len(data) // 2], "truncated-image"),
        "empty.jpg": (b"", "empty-image"),
        "text.jpg": (b"no image at all", "unreadable-image"),
    }
    for name, (content, kind) in files.items():
        (tmp_path / name).write_bytes(content)
        assert kinds_of(tmp_path / name) == [kind]
    assert kinds_of(tmp_path / "gone.jpg") == ["missing-image"]
    facts = {0: read_facts(str(tmp_path / "truncated.jpg"))}
    refused, skipped = (
        check_files("train", facts, np.array([SIZE]), lambda image: {}, skipped=skip)[0]
        for skip in (False, True)
    )
    assert (refused.severity, skipped.severity) == ("error", "warning")
    assert "stops" in refused.effect and "next image instead" in skipped.effect


def test_the_same_image_by_bytes_and_by_pixels(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.bmp")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    picture.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "d.png")
    names = ("a.png", "d.png", "b.bmp", "c.png", "gone.png", "lost.png")
    facts = list(iterate_facts([str(tmp_path / name) for name in names]))
    splits = {"train": {0: facts[0], 1: facts[1], 2: facts[4]}, "val": {0: facts[2], 5: facts[3],
                                                                        6: facts[5]}}  # fmt: skip
    places = {name: lambda image: {"line": 10 + image} for name in splits}
    found = check_repeats(splits, places)
    assert [(r.kind, r.split, r.line) for r in found] == [
        ("split-leak", "val", 10),
        ("split-leak", "val", 15),
    ]
    assert "the same pixels as" in found[0].what and "the same file as" in found[1].what
    repeated = check_repeats({"train": {0: facts[0], 1: facts[3]}}, places)
    assert [r.kind for r in repeated] == ["repeated-image"]


def test_large_pictures_one_at_a_time_and_in_strips(tmp_path, picture, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path in paths:
        picture.save(path)
    whole = read_facts(paths[0])
    monkeypatch.setattr(image_facts, "_LARGE", 120)
    at_once, most, read = [], [], image_facts.read_facts

    def watched(path):
        at_once.append(path)
        most.append(len(at_once))
        time.sleep(0.01)
        at_once.remove(path)
        return read(path)

    monkeypatch.setattr(image_facts, "read_facts", watched)
    facts = list(iterate_facts(paths, num_threads=4))
    assert [fact.path for fact in facts] == paths and max(most) == 1
    assert {fact.pixel_hash for fact in facts} == {whole.pixel_hash}
    monkeypatch.setattr(image_facts, "_LARGE", 10**6)
    list(iterate_facts(paths, num_threads=4))
    assert max(most) > 1
