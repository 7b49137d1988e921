"""The rules for boxes, against plain loops and against a fine grid of points."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m2det_jax.data.augment.canvas import boxes_around, corners_of, cut_polygons, overlaps, stays

WINDOW = (10.0, 20.0, 50.0, 40.0)


def test_the_centre_rule():
    boxes = np.array([[0, 20, 20, 40], [0, 20, 19, 40], [40, 30, 60, 40], [12, 38, 14, 42.0]])
    assert stays(boxes, WINDOW).tolist() == [True, False, False, False]


def test_the_share_rule():
    boxes = np.array([[0, 20, 20, 40], [0, 20, 14, 40], [44, 34, 56, 46], [50, 20, 60, 40.0]])
    # Shown: a half, 4 of 14, a quarter, nothing.
    assert stays(boxes, WINDOW, 0.25).tolist() == [True, True, True, False]
    assert stays(boxes, WINDOW, 0.3).tolist() == [True, False, False, False]
    assert stays(boxes, WINDOW, 0.5).tolist() == [True, False, False, False]
    assert stays(boxes, WINDOW, 0.0).tolist() == [True, True, True, False]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_overlaps_are_those_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    first, second = (np.sort(rng.uniform(0, 9, (4, 2, 2)), axis=1).reshape(4, 4) for _ in range(2))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
            assert np.isclose(overlaps(first, second)[i, j], width * height)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_cut_parallelogram_is_what_a_grid_of_points_sees(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.uniform(-1.5, 1.5, (2, 2))
    if abs(np.linalg.det(matrix)) < 0.2:
        matrix += 2 * np.eye(2)
    offset = rng.uniform(0, 60, 2)
    box = np.array([[-10, -8, 10, 8.0]])
    polygon = corners_of(box) @ matrix.T + offset
    boxes, areas = cut_polygons(polygon, WINDOW)

    step = 0.1
    x, y = np.meshgrid(np.arange(10, 50, step) + step / 2, np.arange(20, 40, step) + step / 2)
    points = np.stack([x, y], -1).reshape(-1, 2)
    local = (points - offset) @ np.linalg.inv(matrix).T
    inside = points[(np.abs(local) <= (10, 8)).all(axis=1)]
    assert abs(len(inside) * step**2 - areas[0]) <= 0.02 * 640 + 3
    if len(inside):
        seen = np.concatenate([inside.min(0), inside.max(0)])
        # Everything seen lies inside, and all sides are touched but for thin corners.
        assert (boxes[0, :2] <= seen[:2] + 1e-6).all() and (boxes[0, 2:] >= seen[2:] - 1e-6).all()
        assert areas[0] < 5 or np.abs(boxes[0] - seen).max() < 3
        around = boxes_around(polygon)[0]
        assert (boxes[0, :2] >= around[:2] - 1e-9).all()
        assert (boxes[0, 2:] <= around[2:] + 1e-9).all()


def test_polygons_out_of_sight_leave_nothing():
    polygons = corners_of(np.array([[0, 0, 5, 5.0], [60, 20, 70, 30], [20, 25, 30, 35]]))
    boxes, areas = cut_polygons(polygons, WINDOW)
    assert areas.tolist() == [0, 0, 100]
    assert boxes[2].tolist() == [20, 25, 30, 35]
