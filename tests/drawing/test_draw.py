"""Drawn pictures: lines where the boxes are, text inside the picture, arguments left alone."""

import numpy as np
import pytest
from PIL import Image

from m2det_jax.drawing.boxes import class_colour, contact_sheet, draw_boxes

NAMES = ("cat", "a class with quite a long name", "dog")
GREY = 127


def blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def changed(picture: Image.Image) -> np.ndarray:
    return np.any(np.asarray(picture) != GREY, axis=-1)


def letters(picture: Image.Image, labels=(0,)) -> int:
    """The number of pixels that are neither ground nor line nor plate: those of text."""
    pixels = np.asarray(picture)
    flat = [(pixels == class_colour(label)).all(-1) for label in labels]
    return int((changed(picture) & ~np.any(flat, axis=0)).sum())


def test_solid_lines_lie_just_inside_the_box():
    picture = np.asarray(draw_boxes(blank(120, 160), [[20, 30, 90, 80]], [0], NAMES))
    colour = class_colour(0)
    assert picture.shape == (120, 160, 3)
    assert (picture[30, 20:90] == colour).all() and (picture[79, 20:90] == colour).all()
    assert (picture[30:80, 20] == colour).all() and (picture[30:80, 89] == colour).all()
    assert (picture[31:79, 21:89] == GREY).all() and (picture[80:] == GREY).all()
    assert (picture[:, :20] == GREY).all() and (picture[30:80, 90:] == GREY).all()


def test_dashed_lines_alternate():
    image = blank(200, 300)
    dashed = np.asarray(draw_boxes(image, [[40, 60, 240, 160]], [2], NAMES, dashed=True))
    line = (dashed[60, 40:240] == class_colour(2)).all(-1)
    assert 0.3 < line.mean() < 0.7 and np.abs(np.diff(line.astype(int))).sum() > 10
    assert (dashed[60, 40:240] != GREY).any(-1).all()  # dark between the dashes
    solid = np.asarray(draw_boxes(image, [[40, 60, 240, 160]], [2], NAMES))
    assert (solid[60, 40:240] == class_colour(2)).all()


def test_arguments_are_left_alone():
    image, boxes = blank(50, 70), np.array([[5, 5, 30, 30]], np.float32)
    draw_boxes(image, boxes, [0], NAMES, [0.5], zoom=2)
    assert (image == GREY).all() and boxes.tolist() == [[5, 5, 30, 30]]
    pil = Image.fromarray(image)
    assert changed(draw_boxes(pil, boxes, [0], NAMES)).any() and not changed(pil).any()


def test_no_boxes_gives_the_picture_back():
    for nothing in ([], np.zeros((0, 4), np.float32)):
        assert not changed(draw_boxes(blank(40, 60), nothing, [], NAMES, [])).any()


def test_labels_and_scores_are_written():
    box = [[30, 60, 150, 140]]
    plain = draw_boxes(blank(200, 300), box, [0], NAMES)
    scored = draw_boxes(blank(200, 300), box, [0], NAMES, [0.87])
    other = draw_boxes(blank(200, 300), box, [0], NAMES, [0.31])
    assert changed(scored).sum() > changed(plain).sum() > 2 * (120 + 80)
    assert scored.tobytes() != other.tobytes()
    # The plate stands on the box's upper edge.
    assert changed(scored)[50:60, 30:60].mean() > 0.5


@pytest.mark.parametrize("corner", ["top left", "top right", "bottom left", "bottom right", "all"])
@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (600, 900), (24, 200)])
def test_text_is_whole_at_every_edge(corner, shape):
    """A text at an edge has as many pixels as one in the middle: nothing of it is cut off."""
    height, width = shape
    x = width - 12 if "right" in corner else 0
    y = height - 12 if "bottom" in corner else 0
    box = [0, 0, width, height] if corner == "all" else [x, y, x + 12, y + 12]
    middle = [width // 2 - 6, height // 2, width // 2 + 6, height // 2 + 12]
    expected = letters(draw_boxes(blank(height, width), [middle], [0], NAMES, [0.5]))
    assert letters(draw_boxes(blank(height, width), [box], [0], NAMES, [0.5])) == expected > 60


def test_long_names_and_tiny_pictures():
    for shape in [(8, 8), (1, 1), (16, 40), (40, 16)]:
        picture = draw_boxes(blank(*shape), [[0, 0, shape[1], shape[0]]], [1], NAMES, [0.99])
        assert picture.size == shape[::-1]
    narrow = np.asarray(draw_boxes(blank(60, 70), [[5, 20, 60, 50]], [1], NAMES, [0.99]))
    plate = (narrow[8:20] == class_colour(1)).all(-1)
    assert plate.any() and not plate[:, -1].all()


def test_boxes_reach_over_the_edge():
    picture = draw_boxes(blank(60, 80), [[-30, -5, 500, 400]], [0], NAMES)
    edge = np.asarray(picture)
    assert (edge[-1] == class_colour(0)).all() and (edge[:, -1] == class_colour(0)).all()
    outside = [[80, 0, 90, 20], [10, -20, 30, 0], [200, 200, 300, 300]]
    assert not changed(draw_boxes(blank(60, 80), outside, [0, 0, 0], NAMES)).any()
    empty = draw_boxes(blank(60, 80), [[40, 30, 40, 30]], [0], NAMES)
    assert changed(empty).any()


def test_tags_of_crowded_boxes_do_not_cover_each_other():
    names, labels = ("aa", "bb", "cc", "dd"), (0, 1, 2, 3)
    boxes = [[60, 100, 160, 180], [62, 102, 162, 182], [60, 100, 158, 178], [61, 99, 160, 181]]
    together = letters(draw_boxes(blank(300, 400), boxes, labels, names), labels)
    alone = [
        letters(draw_boxes(blank(300, 400), [box], [label], names), labels)
        for box, label in zip(boxes, labels, strict=True)
    ]
    assert together == sum(alone) and min(alone) > 20


def test_tag_keeps_off_a_small_neighbour():
    neighbour = [40, 44, 60, 58]  # where the big box's tag would stand
    picture = draw_boxes(blank(200, 300), [[40, 60, 200, 150], neighbour], [0, 2], NAMES)
    assert (np.asarray(picture)[46:56, 42:58] == GREY).all()


def test_lines_and_text_grow_with_the_picture():
    def line_width(side: int) -> int:
        box = [[side // 4, side // 4, side // 2, side // 2]]
        pixels = np.asarray(draw_boxes(blank(side, side + 20), box, [0], NAMES))
        row = (pixels[3 * side // 8] == class_colour(0)).all(-1)
        return int(row[: 3 * side // 8].sum())

    assert line_width(100) == 1 and line_width(1600) >= 8


def test_zoom_enlarges_picture_and_boxes():
    pixels = np.asarray(draw_boxes(blank(40, 60), [[10, 20, 30, 35]], [0], NAMES, zoom=3))
    assert pixels.shape == (120, 180, 3)
    assert (pixels[60:105, 30] == class_colour(0)).all()
    assert (pixels[60:105, 89] == class_colour(0)).all()


def test_colours_are_distinct():
    colours = np.array([class_colour(i) for i in range(16)], float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distance[~np.eye(16, dtype=bool)].min() > 25
    assert all(0 <= c <= 255 for i in range(200) for c in class_colour(i))


def test_modes_are_converted():
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert draw_boxes(Image.new(mode, (30, 20)), [], [], NAMES).mode == "RGB"


def test_contact_sheet_places_every_image():
    reds = [np.full((40, 60 + 4 * i, 3), (200, 10 * i, 0), np.uint8) for i in range(5)]
    sheet = np.asarray(contact_sheet(reds, columns=2, titles=[f"image {i}" for i in range(5)]))
    for image in reds:
        assert (sheet == image[0, 0]).all(-1).sum() == image.shape[0] * image.shape[1]
    where = [np.argwhere((sheet == image[0, 0]).all(-1))[0] for image in reds]
    assert where[0][0] == where[1][0] < where[2][0] == where[3][0] < where[4][0]
    untitled = contact_sheet(reds, columns=2)
    assert untitled.height < sheet.shape[0]


def test_contact_sheet_reduces_but_never_enlarges():
    sheet = contact_sheet([blank(1000, 2000), blank(10, 10)], cell_size=(150, 200))
    pixels = np.asarray(sheet)
    assert sheet.width < 2 * 200 + 50 and sheet.height < 150 + 50
    assert (pixels == GREY).all(-1).sum() == 200 * 100 + 10 * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0, 0, 1]], [0]), "boxes: finite numbers"),
        (([[0, 0, np.nan, 5]], [0]), "boxes: finite numbers"),
        (([[0, 0, 5, 5]], [0, 1]), "labels: one per box expected, got 2 for 1 boxes"),
        (([[0, 0, 5, 5]], [3]), r"labels: class ids from 0 to 2 expected, got \[3\]"),
        (([[0, 0, 5, 5]], [-1]), r"labels: .* got \[-1\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_boxes(blank(20, 20), *arguments, NAMES)


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\] expected, got float32"):
        draw_boxes(np.zeros((4, 4, 3), np.float32), [], [], NAMES)
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 images, 4 columns, 1 titles"):
        contact_sheet([blank(4, 4), blank(4, 4)], titles=["one"])
