"""Image files: every kind becomes an upright RGB picture, every broken one a clear error."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from m2det_jax.data import images, load_image, read_size
from m2det_jax.data.images import reduction

WIDTH, HEIGHT = 40, 24


@pytest.fixture
def colors():
    """A smooth RGB picture, uint8 [HEIGHT, WIDTH, 3], without symmetry."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 6, y * 10, (x + y) * 3], axis=-1).astype(np.uint8)


def loaded(path):
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, colors, orientation, extension):
    path = tmp_path / f"image.{extension}"
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(colors).save(path, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert read_size(path) == expected.size
    assert np.array_equal(loaded(path), np.asarray(expected))
    assert expected.size == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))


def test_result_is_not_turned_twice(tmp_path, colors):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(colors).save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png")
    assert ImageOps.exif_transpose(image).size == image.size == (HEIGHT, WIDTH)


def test_damaged_exif_is_ignored(tmp_path, colors):
    Image.fromarray(colors).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00\x2a\xff")
    assert read_size(tmp_path / "a.jpg") == (WIDTH, HEIGHT)
    assert loaded(tmp_path / "a.jpg").shape == (HEIGHT, WIDTH, 3)


def test_grey(tmp_path, colors):
    grey = colors[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(loaded(tmp_path / "a.png"), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bit_grey(tmp_path, extension):
    wide = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / f"a.{extension}")
    picture = loaded(tmp_path / f"a.{extension}")
    assert np.array_equal(picture[..., 1], np.rint(wide / 257).astype(np.uint8))
    assert picture.min() == 0 and picture.max() == 255


def test_thirty_two_bit_grey(tmp_path):
    wide = np.array([[-5, 0, 257, 65535, 70000]], np.int32)
    Image.fromarray(wide).save(tmp_path / "a.tif")
    assert loaded(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_one_bit(tmp_path, colors):
    bits = colors[..., 0] > 100
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(loaded(tmp_path / "a.png")[..., 2], np.where(bits, 255, 0))


def test_alpha_is_laid_over_white(tmp_path, colors):
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    Image.fromarray(np.dstack([colors, alpha])).save(tmp_path / "a.png")
    share = alpha[..., None] / 255
    assert np.abs(loaded(tmp_path / "a.png") - (colors * share + 255 * (1 - share))).max() <= 1
    Image.fromarray(np.dstack([colors[..., 0], alpha])).save(tmp_path / "grey.png")
    expected = colors[..., :1] * share + 255 * (1 - share)
    assert np.abs(loaded(tmp_path / "grey.png") - expected).max() <= 1


def test_palette(tmp_path, colors):
    palette = Image.fromarray(colors).quantize(16)
    palette.save(tmp_path / "a.png")
    assert np.array_equal(loaded(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))
    transparent = np.asarray(palette) == 3
    palette.save(tmp_path / "b.png", transparency=3)
    picture = loaded(tmp_path / "b.png")
    assert transparent.any() and (picture[transparent] == 255).all()
    assert np.array_equal(picture[~transparent], np.asarray(palette.convert("RGB"))[~transparent])


def test_transparent_color(tmp_path, colors):
    Image.fromarray(colors).save(tmp_path / "a.png", transparency=tuple(colors[3, 5].tolist()))
    assert loaded(tmp_path / "a.png")[3, 5].tolist() == [255] * 3
    assert np.array_equal(loaded(tmp_path / "a.png")[4, 5], colors[4, 5])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_large_pictures_are_laid_over_white_in_strips(colors, mode, monkeypatch):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (37, 50, 4), np.uint8)).convert(mode)
    if mode in ("P", "RGB"):
        image.info["transparency"] = 3 if mode == "P" else image.getpixel((9, 9))
    whole = np.asarray(images._over_white(image))
    assert (whole == 255).all(axis=-1).any()
    monkeypatch.setattr(images, "_STRIP", 120)
    np.testing.assert_array_equal(images._over_white(image), whole)


def test_cmyk(tmp_path, colors):
    Image.fromarray(colors).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(loaded(tmp_path / "a.jpg").astype(int) - colors).mean() < 4


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (8, 6), grey) for grey in (50, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (loaded(tmp_path / "a.gif") == 50).all()


def test_broken_files(tmp_path, colors):
    buffer = io.BytesIO()
    Image.fromarray(colors).resize((400, 240)).save(buffer, "JPEG")
    files = {
        "cut.jpg": (buffer.getvalue()[: len(buffer.getvalue()) // 2], "truncated"),
        "empty.jpg": (b"", r"the file is empty \(0 bytes\)"),
        "text.jpg": (b"hello", "not an image file"),
    }
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: .*{reason}"):
            load_image(tmp_path / name)
    assert read_size(tmp_path / "cut.jpg") == (400, 240)
    for name, reason in (("empty.jpg", "empty"), ("none.jpg", "no such file"), ("", "directory")):
        with pytest.raises(ValueError, match=reason):
            read_size(tmp_path / name)


def test_cut_png_and_float(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a.png"):
        load_image(tmp_path / "a.png")
    Image.fromarray(noise[..., 0].astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f.tif: float pixels"):
        load_image(tmp_path / "f.tif")


@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decoding(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    y, x = np.mgrid[:403, :601]
    Image.fromarray(((x + y) // 8 * 2).astype(np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    full = read_size(tmp_path / "a.jpg")
    whole = load_image(tmp_path / "a.jpg")
    assert whole.size == full
    for needed, factor in ((1.0, 1), (0.6, 1), (0.49, 2), (0.25, 2), (0.24, 4), (0.1, 8)):
        size = tuple(round(side * needed) for side in full)
        image = load_image(tmp_path / "a.jpg", min_scale_size=size)
        assert reduction(full, image.size) == factor
        assert image.width >= size[0] and image.height >= size[1]
        small = np.asarray(whole.resize(image.size), int)
        assert np.abs(np.asarray(image) - small).mean() < 2


def test_reduction_of_another_image():
    assert reduction((5, 3), (3, 2)) == 2
    with pytest.raises(ValueError, match=r"expected \(640, 480\), got \(480, 640\)"):
        reduction((640, 480), (480, 640))


@pytest.mark.parametrize("form", images.CONTENT_FORMATS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_file_in_memory_is_read_as_one_on_disk(tmp_path, colors, form, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / "image"
    Image.fromarray(colors).save(path, form, exif=exif)
    content = images.ImageContent(path.read_bytes())
    assert read_size(content) == read_size(path)
    assert images.count_pixels(content) == WIDTH * HEIGHT
    assert np.array_equal(np.asarray(load_image(content)), loaded(path))


def test_a_file_in_memory_may_have_few_formats_and_pixels(tmp_path, colors, monkeypatch):
    picture = io.BytesIO()
    Image.fromarray(colors).save(picture, "PNG")
    content = images.ImageContent(picture.getvalue(), max_pixels=WIDTH * HEIGHT)
    assert read_size(content) == (WIDTH, HEIGHT)
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image))
    small = images.ImageContent(picture.getvalue(), max_pixels=WIDTH * HEIGHT - 1)
    for function in (read_size, load_image, images.count_pixels):
        with pytest.raises(images.UnreadableImage, match="the image: .*limit is 959") as raised:
            function(small)
        assert isinstance(raised.value.__cause__, images.TooManyPixels)
    assert not decoded
    (tmp_path / "the image").mkdir()  # the message names no file that is there by chance
    monkeypatch.chdir(tmp_path)
    for broken in (b"", b"P5 2 2 255 abcd", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(images.UnreadableImage, match="the image: (not an image|.*empty)"):
            read_size(images.ImageContent(broken))


def test_a_file_in_memory_may_not_have_many_scans(colors):
    picture = io.BytesIO()
    comment = b"\xff\xda" * 200  # is no scan
    Image.fromarray(colors).save(picture, "JPEG", progressive=True, comment=comment)
    content = picture.getvalue()
    assert content.count(b"\xff\xda") > 200
    assert load_image(images.ImageContent(content + b"\xff\xda" * 200)).size == (WIDTH, HEIGHT)
    last = content[content.rindex(b"\xff\xda") : -2]
    many = content[:-2] + last * 150 + content[-2:]
    with Image.open(io.BytesIO(many)) as image:
        image.load()  # Pillow takes it
    with pytest.raises(images.UnreadableImage, match="more than 100 scans"):
        load_image(images.ImageContent(many))


def test_sixteen_bits_of_all_modes(tmp_path):
    wide = np.arange(0, 65536, 7, np.uint16).reshape(1, -1)
    expected = (wide.astype(np.int64) + 128) // 257
    for dtype in (np.uint16, np.int32):
        Image.fromarray(wide.astype(dtype)).save(tmp_path / "a.tif")
        assert np.array_equal(loaded(tmp_path / "a.tif")[..., 0], expected), dtype
    beyond = Image.fromarray(np.array([[-5, 70_000, 2**31 - 1]], np.int32))
    assert np.asarray(images.upright_rgb(beyond, "a"))[0, :, 0].tolist() == [0, 255, 255]
