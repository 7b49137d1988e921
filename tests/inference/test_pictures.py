"""Pictures: all that a user may call an image, by one rule of colours and orientation."""

import io
import pathlib
import threading

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data import ResizeSettings, load_image
from m2det_jax.errors import InputError
from m2det_jax.inference.pictures import look_at, one_by_one

SMALL = ResizeSettings((64, 96), "stretch", (1, 2, 3))
BOXED = ResizeSettings((64, 96), "letterbox", (1, 2, 3))


def noise(height=40, width=60, channels=3) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, channels), "u1")


def pixels(image, **options) -> np.ndarray:
    """The upright RGB picture of an image."""
    return np.asarray(look_at(image, [SMALL], **options)[0].load())


def turned(path: pathlib.Path, orientation: int) -> pathlib.Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise()).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_pil_image_is_turned_as_its_file(tmp_path, orientation, suffix):
    path = turned(tmp_path / f"a.{suffix}", orientation)
    expected = np.asarray(load_image(path))
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels(image), expected)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        np.testing.assert_array_equal(pixels(image), expected)
        np.testing.assert_array_equal(pixels(image.convert("RGB")), expected)
    assert expected.shape[:2] == ((60, 40) if orientation >= 5 else (40, 60))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "YCbCr", "RGBA", "I;16", "I", "RGB"])
def test_a_pil_image_has_the_colours_of_its_file(tmp_path, mode):
    path = tmp_path / {"CMYK": "a.jpg", "YCbCr": "a.jpg", "I": "a.tif"}.get(mode, "a.png")
    if mode.startswith("I"):
        image = Image.fromarray(noise()[..., 0].astype("u2") * 257)
        image = image.convert(mode) if mode == "I" else image
    else:
        image = Image.fromarray(noise(channels=4)).convert(mode)
    image.save(path)
    with Image.open(path) as opened:
        before = opened.copy()
        np.testing.assert_array_equal(pixels(opened), np.asarray(load_image(path)))
        assert opened.mode == before.mode and opened.tobytes() == before.tobytes()


def test_arrays_of_all_forms():
    rgb = noise()
    np.testing.assert_array_equal(pixels(rgb), rgb)
    np.testing.assert_array_equal(pixels(rgb[:, ::-1]), rgb[:, ::-1])
    np.testing.assert_array_equal(pixels(np.asfortranarray(rgb)), rgb)
    for grey in (rgb[..., 0], rgb[..., :1]):
        np.testing.assert_array_equal(pixels(grey), np.repeat(rgb[..., :1], 3, axis=2))
    rgba = np.concatenate([rgb, np.zeros((40, 60, 1), "u1")], axis=2)
    rgba[:, :30, 3] = 255
    seen = pixels(rgba)
    np.testing.assert_array_equal(seen[:, :30], rgb[:, :30])
    assert (seen[:, 30:] == 255).all()


def test_an_array_of_jax():
    import jax.numpy as jnp

    np.testing.assert_array_equal(pixels(jnp.asarray(noise())), noise())


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (noise() / 255, ["uint8 [H, W, 3]", "float64 40 x 60 x 3", "255 * image"]),
        (noise() > 3, ["bool 40 x 60 x 3"]),
        (noise().astype("u2"), ["uint16 40 x 60 x 3", "0..255"]),
        (noise().transpose(2, 0, 1), ["uint8 3 x 40 x 60", "transpose(1, 2, 0)"]),
        (noise()[:, :, :2], ["uint8 40 x 60 x 2"]),
        (noise()[:0], ["0 x 60 x 3"]),
        (np.zeros(3, "u1"), ["uint8 3"]),
        (np.zeros((2, 2, 2, 2, 3), "u1"), ["2 x 2 x 2 x 2 x 3"]),
        (np.array("x.jpg"), ["no dimensions"]),
        (None, ["a path, an http or https URL, a PIL image or a uint8 array", "NoneType"]),
        (3, ["int (3)"]),
        (b"\xff\xd8", ["bytes", "io.BytesIO"]),
        ({"path": "x.jpg"}, ["dict"]),
        (Image.new("F", (3, 3)), ["float pixels"]),
        ("no such.jpg", ["no such.jpg: no such file"]),
        ("", ["no such file"]),
        ("ftp://host/a.jpg", ["http and https"]),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_got(image, words):
    with pytest.raises(InputError) as refused:
        look_at(image, [SMALL], "images[7]")
    assert all(word in str(refused.value) for word in words), refused.value


def test_an_image_without_a_name_is_named_by_its_place():
    with pytest.raises(InputError, match=r"images\[7\]: expected uint8"):
        look_at(noise() / 255, [SMALL], "images[7]")


def test_a_folder_is_refused_with_how_to_give_its_images(tmp_path):
    with pytest.raises(InputError, match=r"it is a folder; .*glob\('\*.jpg'\)"):
        look_at(tmp_path, [SMALL])


def test_a_large_jpeg_goes_the_road_of_evaluation(tmp_path):
    """Decoded at an eighth: other pixels than of the whole, and those of the verb."""
    from m2det_jax.data.augment.drawing import draw_image, map_image

    path = tmp_path / "large.jpg"
    Image.fromarray(noise(1600, 2400)).save(path)
    picture, (view,) = look_at(path, [SMALL])
    assert picture.size == (2400, 1600) and picture.name == str(path)
    pixel_map = map_image((2400, 1600), SMALL)
    np.testing.assert_array_equal(view.image, draw_image(str(path), (2400, 1600), pixel_map, SMALL))
    whole = look_at(load_image(path), [SMALL])[1][0].image
    assert (whole != view.image).any()
    np.testing.assert_allclose(whole.astype(float), view.image, atol=8)


@pytest.mark.parametrize("resizes", [[SMALL], [BOXED, SMALL]])
def test_a_view_says_where_it_is(tmp_path, resizes):
    picture, views = look_at(noise(60, 60), resizes)
    assert picture.size == (60, 60) and picture.name == ""
    for view, resize in zip(views, resizes, strict=True):
        assert view.image.shape == (64, 96, 3) and view.image.dtype == np.uint8
        corners = np.array([[0, 0], [60, 60]]) * view.scale + view.offset
        expected = [[16, 0], [80, 64]] if resize is BOXED else [[0, 0], [96, 64]]
        np.testing.assert_allclose(corners, expected)
    if resizes[0] is BOXED:
        assert (views[0].image[:, :16] == (1, 2, 3)).all()


def test_one_image_or_several():
    single = ["a.jpg", pathlib.Path("a.jpg"), Image.new("RGB", (2, 2)), noise(), noise()[..., 0]]
    assert all(one_by_one(image) is None for image in [*single, None, 3, {}, b"x"])
    assert one_by_one(["a.jpg"]) == ["a.jpg"] and one_by_one(()) == ()
    assert len(one_by_one(np.zeros((4, 5, 5, 3), "u1"))) == 4
    taken = one_by_one(image for image in single)
    assert next(taken) == "a.jpg"


def test_a_lazily_opened_image_may_be_read_by_threads_at_once(tmp_path):
    Image.fromarray(noise(300, 400)).save(tmp_path / "a.png")
    expected, found = noise(300, 400), []
    with Image.open(tmp_path / "a.png") as image:
        threads = [threading.Thread(target=lambda: found.append(pixels(image))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 8
    for seen in found:
        np.testing.assert_array_equal(seen, expected)
