"""Testing at several sizes and mirrored: views, their anchors, and what evaluate and predict do."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import support
from PIL import Image

from m2det_jax import ops
from m2det_jax.build import build_detector, make_anchors, make_views
from m2det_jax.data import read_classes, read_csv
from m2det_jax.detector.detector import Detector
from m2det_jax.detector.reading import Reading
from m2det_jax.detector.views import MultiScale, Views, detector_at
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.model import feature_map_sizes
from m2det_jax.predict import predict
from m2det_jax.predict.outputs import detections_of
from m2det_jax.trained import restore

NAMES = ("cat", "dog")


def tiny_detector(**overrides) -> Detector:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return build_detector(support.tiny_config(overrides=dotted), NAMES)


def test_views_of_a_config():
    config = support.tiny_config()
    assert make_views(config) is None
    config = support.changed(config, eval__test_sizes=((64, 96),))
    assert make_views(config) is None
    config = support.changed(config, eval__test_sizes=(64, (64, 96), 64))
    views = make_views(config)
    assert views.sizes == ((64, 64), (64, 96)) and not views.flip
    config = support.changed(config, eval__test_sizes=(), eval__test_flip=True)
    views = make_views(config)
    assert views.sizes == ((64, 96),) and views.flip


@pytest.mark.parametrize("kind", ["ssd", "retinanet"])
@pytest.mark.parametrize("size", [(96, 128), (64, 64), (128, 96)])
def test_anchors_are_those_of_a_training_at_that_size(kind, size):
    trained = make_anchors(support.tiny_config(overrides={"anchors.kind": kind}), size)
    np.testing.assert_array_equal(
        detector_at(tiny_detector(anchors__kind=kind), size).anchors, trained
    )


def test_anchors_at_another_size_keep_their_pixels():
    detector = tiny_detector(model__num_scales=3)
    assert detector_at(detector, (64, 96)) is detector
    other = detector_at(detector, (96, 128))
    maps = feature_map_sizes((96, 128), 3)
    assert len(other.anchors) == 6 * sum(rows * columns for rows, columns in maps)
    assert other.resize.image_size == (96, 128)

    def per_scale(anchors, maps):
        ends = np.cumsum([6 * rows * columns for rows, columns in maps])
        return np.split(anchors, ends[:-1])

    before = per_scale(detector.anchors, feature_map_sizes((64, 96), 3))
    for old, new, (rows, columns) in zip(before, per_scale(other.anchors, maps), maps, strict=True):
        sides = (new[:, 2:] - new[:, :2]).reshape(-1, 6, 2)
        np.testing.assert_allclose(sides, np.broadcast_to(sides[:1], sides.shape), atol=1e-4)
        np.testing.assert_allclose(sides[0], old[:6, 2:] - old[:6, :2], atol=1e-4)
        centres = ((new[:, :2] + new[:, 2:]) / 2).reshape(rows, columns, 6, 2)
        x, y = (np.arange(columns) + 0.5) * 128 / columns, (np.arange(rows) + 0.5) * 96 / rows
        np.testing.assert_allclose(centres[..., 0], np.tile(x[None, :, None], (rows, 1, 6)), 1e-5)
        np.testing.assert_allclose(
            centres[..., 1], np.tile(y[:, None, None], (1, columns, 6)), 1e-5
        )


def test_the_same_size_gives_the_same_anchors():
    maps, size = feature_map_sizes((64, 96), 2), (64, 96)
    anchors = ops.ssd_anchors(maps, size, sizes=(10, 30, 60), clip=False)
    again = ops.spread_anchors(anchors, maps, new_feature_maps=maps, new_image_size=size)
    np.testing.assert_allclose(again, anchors, atol=1e-5)
    with pytest.raises(ValueError, match="do not fit"):
        ops.spread_anchors(anchors[:-1], maps, new_feature_maps=maps, new_image_size=size)


def test_a_size_that_carries_no_network_names_the_key():
    with pytest.raises(ValueError, match=r"config\.eval\.test_sizes: .*32 x 64 .*cannot have"):
        detector_at(tiny_detector(model__num_scales=3, data__image_size=(128, 128)), (32, 64))


@pytest.fixture(scope="module")
def replicated():
    return jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()), "data"), jax.sharding.PartitionSpec()
    )


@pytest.fixture
def seen(monkeypatch):
    """Image sizes that a network was traced for."""
    seen, normalize = [], Detector.normalize

    def spy(self, images):
        seen.append(images.shape[1:3])
        return normalize(self, images)

    monkeypatch.setattr(Detector, "normalize", spy)
    return seen


def test_evaluate_by_several_views(whole, drawn_files, tmp_path, seen):
    arguments = dict(csv=str(drawn_files.val), batch_size=8)
    plain = evaluate_checkpoint(whole[0], output=str(tmp_path / "plain.json"), **arguments)
    assert seen == [(64, 96)]
    seen.clear()
    several = evaluate_checkpoint(
        whole[0],
        output=str(tmp_path / "several.json"),
        overrides=["eval.test_sizes=64,(96,128)", "eval.test_flip=True", "eval.nms=soft_linear"],
        **arguments,
    )
    # Two batches, both mirrored as well: still one program for each size. The third is the
    # network's own, for the loss alone.
    assert sorted(seen) == [(64, 64), (64, 96), (96, 128)]
    for name in ("loss", "loss_class", "loss_box"):
        assert several[name] == pytest.approx(plain[name], rel=1e-4)
    written = json.loads((tmp_path / "several.json").read_text())
    assert written["eval"]["nms"] == "soft_linear" and written["eval"]["test_flip"] is True
    found, one_view = (
        json.loads((tmp_path / f"{name}_detections.json").read_text())
        for name in ("several", "plain")
    )
    assert found and found != one_view
    index = read_csv(drawn_files.val, read_classes(drawn_files.classes))
    for entry in found:
        (x, y, w, h), (width, height) = entry["bbox"], index.sizes[entry["image_id"]]
        assert 0 <= x <= x + w <= width + 1e-3 and 0 <= y <= y + h <= height + 1e-3


def test_views_agree_on_where_objects_are(whole, drawn_files, tmp_path, replicated):
    """The mirrored view of mirrored pictures is the plain view of the pictures."""
    restored = restore(whole[0])
    index = read_csv(drawn_files.val, restored.class_names)
    mirrored_paths = []
    for number, path in enumerate(index.image_paths):
        with Image.open(path) as image:
            mirrored = image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mirrored.save(tmp_path / f"{number}.png")
            image.convert("RGB").save(tmp_path / f"plain{number}.png")
        mirrored_paths.append(str(tmp_path / f"{number}.png"))
    twin = dataclasses.replace(index, image_paths=tuple(mirrored_paths))
    plain_paths = tuple(
        path.replace(str(tmp_path) + "/", f"{tmp_path}/plain") for path in mirrored_paths
    )
    index = dataclasses.replace(index, image_paths=plain_paths)
    multi = MultiScale(restored.detector, Views(((64, 96),), True))
    by_batch = jax.sharding.NamedSharding(replicated.mesh, jax.sharding.PartitionSpec("data"))
    variables = jax.device_put(restored.variables, replicated)

    def boxes_of(index):
        found = multi.detect(variables, index, Reading(8), sharding=by_batch)
        return [detections for images, _ in found for detections in images]

    for one, other in zip(boxes_of(index), boxes_of(twin), strict=True):
        width = index.sizes[one.image_id][0]
        assert len(one.scores) == len(other.scores) > 5
        np.testing.assert_allclose(other.scores, one.scores, rtol=1e-3, atol=1e-5)
        top = one.scores[:5] - one.scores[1:6] > 1e-4  # rank decided
        x1, y1, x2, y2 = other.boxes.T
        flipped = np.stack([width - x2, y1, width - x1, y2], axis=1)
        np.testing.assert_allclose(flipped[:5][top], one.boxes[:5][top], atol=0.05)


def test_one_view_of_the_own_size_is_the_plain_detection(whole, drawn_files, tmp_path, replicated):
    restored = restore(whole[0], overrides=["eval.max_per_class=3"])
    index = read_csv(drawn_files.val, restored.class_names)
    by_batch = jax.sharding.NamedSharding(replicated.mesh, jax.sharding.PartitionSpec("data"))
    variables = jax.device_put(restored.variables, replicated)
    multi = MultiScale(restored.detector, Views(((64, 96),), False))
    batches = multi.detect(variables, index, Reading(8), sharding=by_batch)
    found = [detections for images, _ in batches for detections in images]
    done = predict(
        whole[0],
        list(index.image_paths),
        output=str(tmp_path),
        threshold=0.01,
        overrides=["eval.max_per_class=3"],
    )
    plain = [detections_of(line, index.class_names) for line in done.lines()]
    assert [d.image_id for d in found] == list(range(index.num_images))
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
        assert np.bincount(one.labels).max() <= 3
        np.testing.assert_allclose(np.sort(one.boxes, 0), np.sort(other.boxes, 0), atol=0.02)


def test_predict_by_several_views(whole, drawn_files, tmp_path, seen):
    picture = sorted(drawn_files.val.with_suffix("").glob("*.jpg"))[0]
    options = ["eval.nms=soft_gaussian", "eval.test_sizes=(64,128)"]
    done = predict(
        whole[0], [str(picture)], output=str(tmp_path), threshold=0.01, overrides=options
    )
    assert sorted(seen) == [(64, 64), (128, 128)]
    (line,) = done.lines()
    scores = [one["score"] for one in line["detections"]]
    assert len(scores) == done.detections > 0 and min(scores) >= 0.01
    assert (tmp_path / picture.name).is_file()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("eval.nsm=hard", ["--set eval.nsm", "nearest is eval.nms"]),
        ("model.num_levels=3", ["--set model.num_levels", "section eval"]),
        ("eval.iou_threshold", ["--set eval.iou_threshold", "KEY=VALUE"]),
        ("eval.iou_threshold=high", ["--set eval.iou_threshold=high", "float", "0.5"]),
        ("eval.iou_threshold=1.5", ["config.eval.iou_threshold=1.5", "0..1"]),
        ("eval.nms=gentle", ["config.eval.nms='gentle'", "'soft_linear'"]),
        ("eval.test_sizes=16", ["config.eval.test_sizes has 16", "64 or more"]),
    ],
)
def test_a_wrong_override_is_named(whole, override, parts):
    with pytest.raises(ValueError) as caught:
        restore(whole[0], overrides=[override])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_predict_takes_its_threshold_by_its_own_option(whole):
    with pytest.raises(ValueError, match="--threshold"):
        predict(whole[0], ["x.jpg"], overrides=["eval.score_threshold=0.3"])


def test_overrides_change_what_is_restored(whole):
    restored = restore(whole[0], overrides=["eval.nms=soft_linear", "eval.soft_iou_threshold=0.4"])
    assert restored.config.eval.nms == restored.detector.suppression.nms == "soft_linear"
    assert restored.detector.suppression.soft_iou_threshold == 0.4
    assert restore(whole[0]).detector.suppression.nms == "hard"
