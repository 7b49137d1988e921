"""Metrics against figures worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics import scores
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import (
    COCO_FIGURES,
    average_precision,
    coco_metrics,
    coco_results,
    format_table,
    voc_average_precision,
)

BOX = [10.0, 10.0, 50.0, 40.0]
FAR = [100.0, 80.0, 140.0, 110.0]


def make_index(objects: list[list[tuple[list[float], int]]], class_names=("cat", "dog")):
    """An index of 200 x 120 images from (box, label) pairs per image."""
    pairs = [pair for image in objects for pair in image]
    return DetectionIndex(
        image_paths=tuple(f"/data/{i}.jpg" for i in range(len(objects))),
        sizes=np.tile(np.int32([200, 120]), (len(objects), 1)),
        boxes=np.array([box for box, _ in pairs], np.float32).reshape(-1, 4),
        labels=np.array([label for _, label in pairs], np.int32),
        offsets=np.cumsum([0, *(len(image) for image in objects)], dtype=np.int64),
        class_names=class_names,
    )


def detect(image_id: int, *found: tuple[list[float], float, int]) -> ImageDetections:
    boxes, scores, labels = zip(*found, strict=True) if found else ([], [], [])
    return ImageDetections(
        image_id,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int32),
    )


def naive_voc(index, detections, threshold=0.5):
    """PASCAL's procedure, one detection at a time."""
    values = []
    for label in sorted(set(index.labels.tolist())):
        ranked = sorted(
            ((s, d.image_id, box) for d in detections
             for box, s, k in zip(d.boxes, d.scores, d.labels, strict=True) if k == label),
            key=lambda item: -item[0],
        )  # fmt: skip
        taken, hits = set(), []
        for _, image, box in ranked:
            best, best_object = -1.0, None
            for k in range(index.offsets[image], index.offsets[image + 1]):
                if index.labels[k] != label:
                    continue
                truth = index.boxes[k].astype(float)
                w = min(box[2], truth[2]) - max(box[0], truth[0])
                h = min(box[3], truth[3]) - max(box[1], truth[1])
                common = max(w, 0) * max(h, 0)
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box.astype(float), truth)]
                iou = common / (sum(areas) - common)
                if iou > best:
                    best, best_object = iou, k
            hits.append(best >= threshold and best_object not in taken)
            if hits[-1]:
                taken.add(best_object)
        total, recall, area = int(np.sum(index.labels == label)), 0.0, 0.0
        found = [sum(hits[: i + 1]) for i in range(len(hits))]
        points = [(n / total, n / (i + 1)) for i, n in enumerate(found)]
        for i, (r, _) in enumerate(points):
            area += (r - recall) * max(p for _, p in points[i:])
            recall = r
        values.append(area)
    return np.mean(values)


def random_case(seed: int):
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for image in range(12):
        corner = rng.uniform(0, 100, (rng.integers(0, 5), 2))
        boxes = np.concatenate([corner, corner + rng.uniform(4, 90, corner.shape)], 1)
        truth.append([(box.tolist(), int(rng.integers(3))) for box in boxes])
        # Also in the reverse order of images, shuffled, and some images without an entry.
        if image % 5 == 4:
            continue
        near = [(np.array(b) + rng.normal(0, 4, 4), rng.random(), k) for b, k in truth[-1] * 2]
        noise = [(np.r_[c, c + 30], rng.random(), int(rng.integers(3))) for c in corner]
        detections.append(detect(image, *(near + noise)))
    return make_index(truth, ("a", "b", "c")), detections[::-1]


def test_perfect_detections_score_one():
    index = make_index([[(BOX, 0), (FAR, 1)], [], [(FAR, 0)]])
    found = [detect(0, (BOX, 0.9, 0), (FAR, 0.8, 1)), detect(1), detect(2, (FAR, 0.7, 0))]
    metrics = coco_metrics(index, found)
    for name in ("AP", "AP50", "AP75", "AP_medium", "AR_1", "AR_10", "AR_100", "VOC_AP50"):
        assert metrics[name] == pytest.approx(1.0), name
    assert metrics["per_class"] == {
        "cat": pytest.approx({"AP": 1.0, "AP50": 1.0}),
        "dog": pytest.approx({"AP": 1.0, "AP50": 1.0}),
    }
    # All boxes are 40 x 30 = 1200 pixels: medium.
    assert math.isnan(metrics["AP_small"]) and math.isnan(metrics["AR_large"])


def test_no_detections_at_all_score_zero():
    index = make_index([[(BOX, 0)], [(BOX, 0)]])
    for nothing in ([], [detect(0), detect(1)]):
        metrics = coco_metrics(index, nothing)
        assert metrics["AP"] == metrics["AR_100"] == metrics["VOC_AP50"] == 0.0
        assert metrics["per_class"]["cat"] == {"AP": 0.0, "AP50": 0.0}
        # A class without ground truth is not averaged in, neither as -1 nor as 0.
        assert math.isnan(metrics["per_class"]["dog"]["AP"])
        assert coco_results(index, nothing) == []


def test_no_ground_truth_at_all_is_nan():
    metrics = coco_metrics(make_index([[], []]), [detect(1, (BOX, 0.5, 0))])
    assert all(math.isnan(metrics[name]) for name in (*COCO_FIGURES, "VOC_AP50"))
    assert "n/a" in format_table(metrics) and "-1" not in format_table(metrics)


def test_class_without_ground_truth_changes_no_mean():
    found = [detect(0, (BOX, 0.9, 0), (FAR, 0.95, 1))]
    metrics = coco_metrics(make_index([[(BOX, 0)]]), found)
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["VOC_AP50"] == 1.0


def test_coco_iou_thresholds_by_hand():
    # 30 pixels high against 23.4 of them: IoU 0.78 passes 0.50 .. 0.75, 6 of the 10 thresholds.
    index, part = make_index([[(BOX, 0)]]), [10.0, 10.0, 50.0, 33.4]
    metrics = coco_metrics(index, [detect(0, (part, 0.9, 0))])
    assert metrics["AP"] == pytest.approx(0.6)
    assert metrics["AP50"] == pytest.approx(1.0) and metrics["AP75"] == pytest.approx(1.0)
    moved = [30.0, 10.0, 70.0, 40.0]  # IoU 1/3
    assert coco_metrics(index, [detect(0, (moved, 0.9, 0))])["AP50"] == 0.0


def test_first_object_and_first_image_count():
    """COCO ids from 0 are taken for "no match": the very first annotation must be found too."""
    index = make_index([[(BOX, 0)], [(FAR, 0)]])
    metrics = coco_metrics(index, [detect(0, (BOX, 0.9, 0))])
    assert metrics["AR_100"] == pytest.approx(0.5)
    assert metrics["AP50"] == pytest.approx(51 / 101)  # 101 recall points, those up to 0.5


def test_voc_by_hand():
    # Ranked hits of "cat": yes, no, yes of 3 objects: precision 1, 1/2, 2/3 -> (1 + 2/3) / 3.
    index = make_index([[(BOX, 0), (FAR, 0)], [(BOX, 0), (FAR, 1)]])
    found = [
        detect(0, (BOX, 0.9, 0), (BOX, 0.8, 0)),  # the second finds nothing of its own
        detect(1, (BOX, 0.7, 0), (FAR, 0.6, 1)),
    ]
    assert voc_average_precision(index, found) == pytest.approx(((1 + 2 / 3) / 3 + 1.0) / 2)
    # The wrong class finds nothing.
    wrong = [detect(0, (BOX, 0.9, 1))]
    assert voc_average_precision(index, wrong) == 0.0


def test_voc_threshold_is_inclusive():
    half = [10.0, 10.0, 50.0, 25.0]  # IoU 0.5 exactly
    index = make_index([[(BOX, 0)]])
    assert voc_average_precision(index, [detect(0, (half, 0.9, 0))]) == 1.0
    assert voc_average_precision(index, [detect(0, (half, 0.9, 0))], iou_threshold=0.51) == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_voc_equals_the_naive_procedure(seed):
    index, detections = random_case(seed)
    expected = naive_voc(index, detections)
    assert 0.05 < expected < 0.95
    assert voc_average_precision(index, detections) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_per_class_figures_average_to_the_whole(seed):
    index, detections = random_case(seed)
    metrics = coco_metrics(index, detections)
    for name in ("AP", "AP50"):
        values = [figures[name] for figures in metrics["per_class"].values()]
        assert metrics[name] == pytest.approx(np.nanmean(values))
    assert metrics["AP75"] <= metrics["AP50"]
    # AP50 of COCO samples the same curve at 101 points.
    assert metrics["AP50"] == pytest.approx(metrics["VOC_AP50"], abs=0.03)


@pytest.mark.parametrize(
    ("hits", "objects", "expected"),
    [
        ([True], 1, 1.0),
        ([False, True], 1, 0.5),
        ([True, False, True], 3, (1 + 2 / 3) / 3),
        ([False, False, True, True, True], 3, 3 / 5),  # the envelope lifts the earlier points
        ([], 4, 0.0),
    ],
)
def test_average_precision(hits, objects, expected):
    assert average_precision(np.array(hits, bool), objects) == pytest.approx(expected)


def test_results_are_coco_records():
    index = make_index([[], [(BOX, 1)]])
    results = coco_results(index, [detect(1, (BOX, 0.25, 1))])
    assert json.loads(json.dumps(results)) == [
        {
            "image_id": 1,
            "file_name": "/data/1.jpg",
            "category_id": 1,
            "category_name": "dog",
            "bbox": [10.0, 10.0, 40.0, 30.0],
            "score": 0.25,
        }
    ]


def test_evaluation_is_quiet_and_table_names_everything(capsys):
    metrics = coco_metrics(make_index([[(BOX, 0)]]), [detect(0, (BOX, 0.9, 0))])
    assert capsys.readouterr() == ("", "")
    lines = format_table(metrics).splitlines()
    for name in (*COCO_FIGURES, "VOC_AP50"):
        assert sum(line.split()[:1] == [name] for line in lines) == 1
    assert "cat        1.000   1.000" in lines
    assert "dog          n/a     n/a" in lines


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([detect(5, (BOX, 0.9, 0))], "image 5: the index has images 0 to 0"),
        ([detect(0), detect(0)], "image 0 are given twice"),
        ([detect(0, (BOX, 0.9, 2))], r"labels \[2\] are not among the 2 classes"),
        ([detect(0, (BOX, math.nan, 0))], "image 0: boxes and scores must be finite"),
        ([ImageDetections(0, np.zeros((2, 4)), np.zeros(1), np.zeros(1, int))], r"got \(2, 4\)"),
    ],
)
def test_bad_detections_are_refused(found, message):
    with pytest.raises(ValueError, match=message):
        coco_metrics(make_index([[(BOX, 0)]]), found)


def flagged(index, *, difficult=(), regions=()):
    """The index with difficult objects (positions) and regions (image, box, label) of image 0."""
    count = len(regions)
    return dataclasses.replace(
        index,
        difficult=np.isin(np.arange(len(index.labels)), difficult),
        regions=np.array([box for box, _ in regions], np.float32).reshape(-1, 4),
        region_labels=np.array([label for _, label in regions], np.int32),
        region_offsets=np.int64([0] + [count] * index.num_images),
    )


def test_difficult_objects_are_neither_asked_for_nor_counted():
    index = make_index([[(BOX, 0), (FAR, 0)]])
    found = [detect(0, (FAR, 0.9, 0), (BOX, 0.8, 0))]
    missed = [detect(0, (BOX, 0.8, 0))]
    for detections, expected in ((found, 1.0), (missed, 0.5)):
        assert coco_metrics(index, detections)["VOC_AP50"] == pytest.approx(expected)
    for detections in (found, missed):
        metrics = coco_metrics(flagged(index, difficult=[1]), detections)
        assert [metrics["VOC_AP50"], metrics["AP"]] == pytest.approx([1.0, 1.0])
    # VOC ignores every detection of a difficult object, not only the first.
    twice = [detect(0, (FAR, 0.9, 0), (FAR, 0.85, 0), (BOX, 0.8, 0))]
    assert voc_average_precision(flagged(index, difficult=[1]), twice) == 1.0
    only_difficult = coco_metrics(flagged(index, difficult=[0, 1]), found)
    assert math.isnan(only_difficult["AP"]) and math.isnan(only_difficult["VOC_AP50"])


@pytest.mark.parametrize("label", [0, -1])
def test_detections_in_a_region_of_their_class_do_not_count(label):
    index = make_index([[(BOX, 0)], [(BOX, 1)]])
    inside = [FAR[0] + 2, FAR[1] + 2, FAR[0] + 12, FAR[1] + 12]
    found = [
        detect(0, (inside, 0.99, 0), (FAR, 0.95, 0), (BOX, 0.9, 0)),
        detect(1, (BOX, 0.9, 1)),
    ]
    assert coco_metrics(index, found)["per_class"]["cat"]["AP50"] < 0.5
    metrics = coco_metrics(flagged(index, regions=[(FAR, label)]), found)
    assert [metrics["AP50"], metrics["VOC_AP50"]] == pytest.approx([1.0, 1.0])
    other = coco_metrics(flagged(index, regions=[(FAR, 1)]), found)
    assert other["per_class"]["cat"]["AP50"] < 0.5 and other["VOC_AP50"] < 1


def test_an_object_found_inside_a_region_still_counts():
    index = flagged(make_index([[(BOX, 0)]]), regions=[([0, 0, 150, 110], 0)])
    assert coco_metrics(index, [detect(0, (BOX, 0.9, 0))])["VOC_AP50"] == 1
    assert coco_metrics(index, [detect(0)])["VOC_AP50"] == 0


def test_sizes_go_by_the_areas_of_the_index():
    index = dataclasses.replace(make_index([[(BOX, 0)]]), areas=np.float32([900]))
    metrics = coco_metrics(index, [detect(0, (BOX, 0.9, 0))])
    assert metrics["AP_small"] == pytest.approx(1.0) and math.isnan(metrics["AP_medium"])


def test_results_carry_the_ids_of_the_data_set():
    index = dataclasses.replace(
        make_index([[], [(BOX, 1)]]), class_ids=(1, 90), image_ids=(139, 285)
    )
    records = coco_results(index, [detect(1, (BOX, 0.5, 1))])
    assert (records[0]["image_id"], records[0]["category_id"]) == (285, 90)
    assert coco_metrics(index, [detect(1, (BOX, 0.5, 1))])["AP"] == pytest.approx(1.0)


def test_a_new_figure_is_measured_and_printed_by_its_line_in_one_table(monkeypatch):
    def found_per_object(index, detections):
        return sum(len(found.scores) for found in detections) / len(index.labels)

    monkeypatch.setitem(scores.OTHER_FIGURES, "FOUND", ("detections an object", found_per_object))
    index = make_index([[(BOX, 0), (FAR, 1)]])
    metrics = coco_metrics(index, [detect(0, (BOX, 0.9, 0), (BOX, 0.8, 0), (FAR, 0.7, 1))])
    assert metrics["FOUND"] == 1.5 and list(metrics)[-2:] == ["FOUND", "per_class"]
    assert "FOUND      1.500   detections an object" in format_table(metrics)
