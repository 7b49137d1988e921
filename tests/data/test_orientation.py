"""Photographs turned by EXIF: boxes fit the picture as people see it, in every orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data import (
    DataError,
    ResizeSettings,
    Source,
    eval_batches,
    read_csv,
    read_dataset,
    read_size,
)
from m2det_jax.data.images import ImageContent

WIDTH, HEIGHT = 96, 64  # as seen
BOX = (8, 40, 32, 56)
# What a camera stores for each orientation, from the upright picture: the inverse of what a viewer
# does to show it.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
KINDS = ("jpg", "png", "png with the chunk behind the pixels", "webp", "tif")


def photograph(orientation: int, kind: str) -> bytes:
    """A dark picture with a bright marker at BOX, stored as a camera held otherwise would."""
    pixels = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 240
    picture = Image.fromarray(pixels)
    if STORED[orientation] is not None:
        picture = picture.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer, suffix = io.BytesIO(), kind.split()[0]
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    form = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    if not kind.endswith("pixels"):
        picture.save(buffer, form, exif=exif, **options)
        return buffer.getvalue()
    picture.save(buffer, form)
    data = exif.tobytes().removeprefix(b"Exif\x00\x00")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + data))
    end = buffer.getvalue().rindex(b"IEND") - 4
    return buffer.getvalue()[:end] + chunk + buffer.getvalue()[end:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_fit_the_picture_as_people_see_it(tmp_path, orientation, kind):
    name = f"a.{kind.split()[0]}"
    (tmp_path / name).write_bytes(photograph(orientation, kind))
    (tmp_path / "val.csv").write_text(f"{name},{','.join(map(str, BOX))},mark\n")
    index = read_csv(tmp_path / "val.csv", ["mark"])
    assert index.sizes.tolist() == [[WIDTH, HEIGHT]] == [list(read_size(tmp_path / name))]
    assert read_size(ImageContent((tmp_path / name).read_bytes())) == (WIDTH, HEIGHT)
    resize = ResizeSettings((2 * HEIGHT, 3 * WIDTH))
    with eval_batches(index, resize=resize, batch_size=1, num_threads=0) as batches:
        batch = next(batches)
    left, top, right, bottom = batch["boxes"][0, 0].astype(int)
    assert (left, top, right, bottom) == (24, 80, 96, 112)
    bright = batch["image"][0].mean(axis=-1) > 130
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(edges - (left, top, right, bottom)).max() <= 1
    assert bright[top + 2 : bottom - 2, left + 2 : right - 2].all()


def test_boxes_drawn_on_the_stored_pixels_are_told(tmp_path):
    # A program that ignores the orientation sees 64 x 96, and a box there leaves the picture.
    (tmp_path / "a.jpg").write_bytes(photograph(6, "jpg"))
    (tmp_path / "val.csv").write_text("a.jpg,8,40,24,90,mark\n")
    with pytest.raises(DataError, match=r"width and height swapped: .* after EXIF orientation"):
        read_csv(tmp_path / "val.csv", ["mark"])


def test_sizes_of_the_stored_pixels_are_told(tmp_path):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(photograph(8, "jpg"))
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    (tmp_path / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>{HEIGHT}</width><height>{WIDTH}</height></size></annotation>"
    )
    source = Source("voc", str(tmp_path), "val")
    with pytest.raises(DataError, match=r"96 x 64 pixels \(64 x 96\); boxes are in pixels of the"):
        read_dataset(source)
    with pytest.raises(DataError):
        read_dataset(source, on_bad_box="clip")  # no box can be trusted
