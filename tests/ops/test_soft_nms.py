"""Soft-NMS against a list that is worked on as the official code does, and its stored results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2det_jax import ops
from m2det_jax.ops.soft_nms import PICKS_PER_ROUND, _decay, _pick, _pick_by_list, _pick_by_score

FLOOR = 0.001


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def by_list(boxes, scores, factor, floor=FLOOR):
    """[(index, score)] in the order taken: swap the best to the front, fill gaps with the last."""
    entries = [[i, float(score)] for i, score in enumerate(scores) if score >= floor]
    front = 0
    while front < len(entries):
        best = max(range(front, len(entries)), key=lambda place: (entries[place][1], -place))
        entries[front], entries[best] = entries[best], entries[front]
        place = front + 1
        while place < len(entries):
            entry = entries[place]
            iou = overlap(boxes[entries[front][0]], boxes[entry[0]])
            entry[1] = float(np.float32(entry[1] * factor(iou)))
            if iou > 0 and entry[1] < floor:
                entries[place] = entries[-1]
                entries.pop()
            else:
                place += 1
        front += 1
    return entries


def linear(iou, threshold=0.3):
    return 1 - iou if iou > threshold else 1.0


def gaussian(iou, sigma=0.5):
    return np.exp(-iou * iou / sigma)


def clustered_boxes(rng, count, classes=None, height=60, width=110):
    """Whole-pixel boxes in a few places, float32 [..., count, 4]: many equal overlaps."""
    shape = (count, 2) if classes is None else (classes, count, 2)
    corner = rng.uniform(0, (width, height), (5, 2))[rng.integers(0, 5, shape[:-1])]
    corner = (corner + rng.integers(-6, 7, shape)).round()
    return np.concatenate([corner, corner + rng.integers(5, 30, shape)], -1).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("max_outputs", "method"))
def soft_nms(boxes, scores, max_outputs, method, **options):
    return ops.soft_nms(boxes, scores, max_outputs=max_outputs, method=method, **options)


METHODS = [("linear", linear), ("gaussian", gaussian)]


@pytest.mark.parametrize(("method", "factor"), METHODS)
def test_equals_the_list(method, factor):
    removed = 0
    for seed in range(9):
        rng = np.random.default_rng(seed)
        boxes, floor = clustered_boxes(rng, 60), (0.001, 0.1, 0.3)[seed % 3]
        scores = rng.uniform(0.05, 1, 60).astype(np.float32)
        if seed > 2:
            scores = scores.round(1)  # many ties
        expected = by_list(boxes, scores, factor, floor)
        index, taken, valid = soft_nms(boxes, scores, 65, method, score_floor=floor)
        count = len(expected)
        removed += (scores >= floor).sum() - count
        assert int(valid.sum()) == count and valid[:count].all()
        np.testing.assert_allclose(taken[:count], [score for _, score in expected], rtol=1e-5)
        np.testing.assert_array_equal(index[:count], [i for i, _ in expected])
        assert (index[count:] == 0).all() and (taken[count:] == 0).all()
    assert removed > 50
    for got, want in zip(
        soft_nms(boxes, scores, 7, method, score_floor=floor), (index, taken, valid), strict=True
    ):
        np.testing.assert_array_equal(got, want[:7])


_GROUPS, _BOXES = 3, 40


@functools.partial(jax.jit, static_argnames=("pick", "method", "num_picks"))
def picks(pick, boxes, scores, floor, method, num_picks=_BOXES):
    decay = _decay(method, 0.3, 0.5)
    return pick(boxes, scores, scores >= floor, decay, floor, num_picks)


def groups_of(kind, seed):
    """Boxes [G, N, 4] and scores [G, N] of a kind that is hard for the order of the picks."""
    rng = np.random.default_rng(seed)
    boxes = clustered_boxes(rng, _BOXES, classes=_GROUPS)
    scores = rng.uniform(0, 1, (_GROUPS, _BOXES)).astype(np.float32)
    if kind == "spread":
        boxes += 200 * np.arange(_BOXES, dtype=np.float32)[:, None]
    elif kind == "one place":
        boxes = boxes[:, :1] + rng.integers(0, 4, boxes.shape).astype(np.float32)
    elif kind == "ties":
        scores = scores.round(1)
    elif kind == "late tie":  # the second box decays to 0.4, the score of the third
        boxes += 200 * np.arange(_BOXES, dtype=np.float32)[:, None]
        boxes[:, :2] = [[0, 0, 30, 10], [10, 0, 40, 10]]
        scores[:, :3] = 0.9, 0.8, 0.4
    elif kind == "one group tied":
        scores[1] = 0.5
    elif kind == "degenerate":
        boxes[:, ::3, 2:] = boxes[:, ::3, :2]  # without area
        boxes[0, 1], scores[0, 2], scores[1, 3], scores[2] = np.inf, np.nan, np.inf, 0
        boxes[1, 5] = np.nan
    return boxes, scores


KINDS = ["random", "spread", "one place", "ties", "late tie", "one group tied", "degenerate"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_several_picks_a_round_equal_one_at_a_time_bit_for_bit(method, kind):
    for seed in range(6):
        boxes, scores = groups_of(kind, seed)
        floor = np.float32((0.001, 0.1, 0.3)[seed % 3])
        expected = picks(_pick_by_list, boxes, scores, floor, method)
        for got, want in zip(picks(_pick, boxes, scores, floor, method), expected, strict=True):
            np.testing.assert_array_equal(got, want)
        _, tied = picks(_pick_by_score, boxes, scores, floor, method)
        if kind in ("random", "spread", "one place"):
            assert not tied
        elif kind in ("ties", "one group tied") or (kind, method) == ("late tie", "linear"):
            assert tied
    assert expected.valid.any()


def test_rounds_are_an_eighth_of_the_picks(monkeypatch):
    rounds = []

    def in_python(unfinished, one_round, state):
        while unfinished(state):
            rounds.append(1)
            state = one_round(state)
        return state

    monkeypatch.setattr(jax.lax, "while_loop", in_python)
    boxes, scores = groups_of("spread", 0)
    decay, floor = _decay("linear", 0.3, 0.5), np.float32(0.001)
    _pick(*map(jnp.asarray, (boxes, scores, scores >= floor)), decay, floor, _BOXES)
    most = (scores >= floor).sum(axis=1).max()
    assert len(rounds) == -(-most // PICKS_PER_ROUND) == 5


def float32_overlap(a, b):
    """The IoU as the package computes it, each operation rounded to float32."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = width * height if width > 0 and height > 0 else np.float32(0)
    areas = [max(x[2] - x[0], np.float32(0)) * max(x[3] - x[1], np.float32(0)) for x in (a, b)]
    union = areas[0] + areas[1] - intersection
    return intersection / union if union > 0 else np.float32(0)


def float32_list(boxes, scores, floor):
    """As `by_list`, linear, bit for bit."""
    entries = [[i, score] for i, score in enumerate(scores) if score >= floor]
    for front in range(len(entries)):
        if front >= len(entries):
            break
        best = max(range(front, len(entries)), key=lambda place: (entries[place][1], -place))
        entries[front], entries[best] = entries[best], entries[front]
        place = front + 1
        while place < len(entries):
            entry = entries[place]
            iou = float32_overlap(boxes[entries[front][0]], boxes[entry[0]])
            entry[1] = entry[1] * (np.float32(1) - iou) if iou > np.float32(0.3) else entry[1]
            if entry[1] < floor:
                entries[place] = entries[-1]
                entries.pop()
            else:
                place += 1
    return entries


@given(
    corners=st.lists(st.tuples(*[st.integers(0, 12)] * 4), min_size=12, max_size=12),
    tenths=st.lists(st.integers(0, 10), min_size=12, max_size=12),
    noise=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_boxes_equal_the_naive_loop_bit_for_bit(corners, tenths, noise):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], np.float32)
    scores = np.array(tenths, np.float32) / np.float32(10)
    if noise:  # hardly any ties
        scores *= np.linspace(0.9, 1, 12, dtype=np.float32)
    expected = float32_list(boxes, scores, np.float32(0.05))
    index, taken, valid = soft_nms(boxes, scores, 12, "linear", score_floor=np.float32(0.05))
    assert int(valid.sum()) == len(expected)
    assert index[: len(expected)].tolist() == [i for i, _ in expected]
    assert taken[: len(expected)].tolist() == [float(score) for _, score in expected]


def test_of_equal_scores_the_first_in_the_list_is_taken():
    # Taking the third puts the first box in its place; so the second comes before it.
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    index, _, _ = soft_nms(boxes, np.array([0.5, 0.5, 0.9], np.float32), 3, "linear")
    np.testing.assert_array_equal(index, [2, 1, 0])


def test_decay_by_hand():
    # The second overlaps the first by 1/2 and the third by 1/5; the third overlaps only the second.
    boxes = np.array([[0, 0, 30, 10], [10, 0, 40, 10], [30, 0, 60, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    index, taken, _ = soft_nms(boxes, scores, 3, "linear")
    np.testing.assert_array_equal(index, [0, 2, 1])
    np.testing.assert_allclose(taken, [0.9, 0.7, 0.4], rtol=1e-6)
    _, low, _ = soft_nms(boxes, scores, 3, "linear", iou_threshold=0.1)
    np.testing.assert_allclose(low, [0.9, 0.7, 0.8 * 0.5 * 0.8], rtol=1e-6)
    _, smooth, _ = soft_nms(boxes, scores, 3, "gaussian", sigma=0.25)
    np.testing.assert_allclose(smooth, [0.9, 0.7, 0.8 * np.exp(-1 - 0.16)], rtol=1e-6)


def test_a_box_below_the_floor_goes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.05, np.nan], np.float32)
    for floor, expected in ((0.01, [0, 2]), (0.05, [0, 2]), (0.06, [0])):
        index, _, valid = soft_nms(boxes, scores, 4, "linear", score_floor=floor)
        np.testing.assert_array_equal(np.asarray(index)[np.asarray(valid)], expected)
    _, _, valid = soft_nms(boxes, scores, 4, "linear", score_threshold=0.05)
    assert int(valid.sum()) == 1


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("linear", "nms/soft_linear_nt0.45_plus1"),
        ("gaussian", "nms/soft_gaussian_sigma0.5_plus1"),
    ],
)
def test_equals_the_official_rows(method, key, reference_dir):
    reference = np.load(reference_dir / "official_ops.npz")
    detections = reference["nms/dets"]
    boxes = detections[:, :4] + np.array([[0, 0, 1, 1]], np.float32)
    index, taken, valid = soft_nms(boxes, detections[:, 4], 72, method, iou_threshold=0.45)
    count = len(reference[key])
    assert int(valid.sum()) == count
    got = np.concatenate([detections[index[:count], :4], taken[:count, None]], axis=1)
    np.testing.assert_allclose(got, reference[key], atol=1e-5)


def test_no_boxes_and_a_wrong_method():
    nothing = ops.soft_nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), max_outputs=3)
    assert [x.shape for x in nothing] == [(3,)] * 3 and not nothing[2].any()
    with pytest.raises(Exception, match="method|hard"):
        ops.soft_nms(np.zeros((1, 4), np.float32), np.zeros(1, np.float32), max_outputs=1,
                     method="hard")  # fmt: skip


def multiclass_by_lists(boxes, scores, factor, *, candidates, threshold, max_per_class, outputs):
    found = []
    for label in range(scores.shape[1]):
        anchors = np.sort(np.argsort(-scores[:, label], kind="stable")[:candidates])
        anchors = anchors[scores[anchors, label] > threshold]
        entries = by_list(boxes[anchors], scores[anchors, label], factor)
        entries = entries[: max_per_class or None]
        found += [(score, label, boxes[anchors[i]]) for i, score in entries]
    return sorted(found, key=lambda entry: -entry[0])[:outputs]


@pytest.mark.parametrize(("method", "factor"), METHODS)
@pytest.mark.parametrize(("candidates", "max_per_class", "outputs"), [(200, 0, 400), (40, 9, 30)])
def test_multiclass_equals_lists_for_each_class(method, factor, candidates, max_per_class, outputs):
    rng = np.random.default_rng(candidates)
    boxes = clustered_boxes(rng, 90)
    scores = (rng.uniform(size=(90, 4)) * (1, 1, 0.4, 0)).astype(np.float32)  # nothing in the last
    expected = multiclass_by_lists(
        boxes, scores, factor,
        candidates=candidates, threshold=0.2, max_per_class=max_per_class, outputs=outputs,
    )  # fmt: skip
    run = functools.partial(
        ops.multiclass_soft_nms,
        method=method,
        score_threshold=0.2,
        candidates=candidates,
        max_per_class=max_per_class,
        max_outputs=outputs,
    )
    got = jax.jit(run)(boxes, scores)
    count = len(expected)
    assert got.boxes.shape == (outputs, 4) and got.valid[:count].all()
    assert int(got.valid.sum()) == count
    np.testing.assert_allclose(got.scores[:count], [e[0] for e in expected], rtol=1e-5)
    np.testing.assert_array_equal(got.labels[:count], [e[1] for e in expected])
    np.testing.assert_array_equal(got.boxes[:count], [e[2] for e in expected])
    assert (got.labels[count:] == -1).all() and (got.scores[count:] == 0).all()
    if max_per_class:
        assert np.bincount(got.labels[:count]).max() <= max_per_class


def test_class_agnostic_boxes_act_on_all_classes():
    boxes = np.array([[0, 0, 50, 20], [0, 0, 50, 20], [0, 0, 50, 10]], np.float32)
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.7]], np.float32)
    run = functools.partial(ops.multiclass_soft_nms, score_threshold=0.3, max_outputs=4)
    apart = jax.jit(run)(boxes, scores)
    np.testing.assert_allclose(apart.scores, [0.9, 0.8, 0.35, 0], rtol=1e-6)
    together = jax.jit(functools.partial(run, class_agnostic=True))(boxes, scores)
    np.testing.assert_allclose(together.scores, [0.9, 0.35, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(together.labels, [0, 1, -1, -1])


def test_vmap_over_images_equals_one_at_a_time():
    rng = np.random.default_rng(4)
    boxes = clustered_boxes(rng, 80, classes=3)
    scores = rng.uniform(size=(3, 80, 2)).astype(np.float32)
    scores[1] = 0
    run = functools.partial(ops.multiclass_soft_nms, candidates=50, max_outputs=20)
    batched = jax.jit(jax.vmap(run))(boxes, scores)
    single = jax.jit(run)
    assert batched.valid.sum(axis=1).tolist()[1] == 0
    for i in range(3):
        for got, want in zip(batched, single(boxes[i], scores[i]), strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-6)


def test_candidates_of_several_views_are_suppressed_together():
    rng = np.random.default_rng(5)
    boxes = clustered_boxes(rng, 40)
    scores = rng.uniform(size=(40, 3)).astype(np.float32)
    for per_class, run in ((True, ops.soft_suppress), (False, ops.suppress)):

        def both(boxes, scores, per_class=per_class, run=run):
            def candidates(rows):
                some = boxes[rows], scores[rows]
                return ops.top_candidates(*some, count=120, per_class=per_class)

            halves = [candidates(rows) for rows in (slice(0, 20), slice(20, 40))]
            return run(ops.merge_candidates(halves)), run(candidates(slice(None)))

        for got, want in zip(*jax.jit(both)(boxes, scores), strict=True):
            np.testing.assert_array_equal(got, want)
