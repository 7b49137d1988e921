"""Training at several picture sizes: one compilation each, and a resumed run goes on exactly."""

import itertools
import logging

import jax
import numpy as np
import pytest
import support

from m2det_jax.build import build_detector
from m2det_jax.config import resolve
from m2det_jax.data.feeding.sampling import size_of_step
from m2det_jax.model import feature_map_sizes
from m2det_jax.run.devices import place
from m2det_jax.training import prepare
from m2det_jax.training.plan import images_of_epoch, make_plan
from m2det_jax.training.prepare import open_batches

SIZES = ((64, 96), (96, 64))
# Little to compile; two maps at both sizes.
SMALL = {
    "data__train_sizes": SIZES,
    "model__num_levels": 1,
    "model__frozen_stages": 5,
    "augment__pipeline": ("mosaic", "affine", "flip", "paste", "mixup"),
}


def small_config(drawn_files, **overrides):
    return support.short_config(drawn_files, **SMALL, **overrides)


def steps_from(run, config, state, start, count):
    """Takes steps on the batches from step `start` on; returns the state and the sizes seen."""
    sizes = []
    with open_batches(config, run, start) as batches:
        for batch in itertools.islice(batches, count):
            del batch["image_id"]
            sizes.append(batch["image"].shape[1:3])
            train_step = run.train_steps[sizes[-1]]
            state, metrics = train_step(state, jax.device_put(batch, run.by_batch))
            assert np.isfinite(metrics["loss"]) and metrics["num_positives"] > 0
    return state, sizes


def test_each_size_is_compiled_once_and_a_resumed_run_goes_on_exactly(drawn_files, tmp_path):
    config = small_config(drawn_files, seed=1)
    with support.counted_traces() as traces:
        run = prepare.prepare(config, tmp_path)
    state, sizes = steps_from(run, config, prepare.first_state(config, run), 0, 2)
    assert sizes == [SIZES[size_of_step(SIZES, 1, step)] for step in range(2)]
    assert set(sizes) == set(SIZES) and len(traces) == 2
    halfway, compiled = jax.device_get(state), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "compile" in event else None
    )
    try:
        state, sizes = steps_from(run, config, state, 2, 4)
    finally:
        jax.monitoring.clear_event_listeners()
    assert set(sizes) == set(SIZES)
    assert compiled == [] and len(traces) == 2
    resumed, _ = steps_from(run, config, place(halfway, run.replicated), 2, 3)
    resumed, _ = steps_from(run, config, resumed, 5, 1)
    support.assert_trees_equal(resumed, state)


def test_the_run_begins_with_its_pipeline(drawn_files, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("m2det_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "m2det_jax")
    config = small_config(drawn_files, data__repeat_threshold=0.9)
    run = prepare.prepare(config, tmp_path)
    text = caplog.text
    positions = [text.index(f"{i}. {name}") for i, name in enumerate(config.augment.pipeline, 1)]
    assert positions == sorted(positions)
    assert "stretch to 64 x 96 or 96 x 64" in text and "one size drawn for each step" in text
    assert "repeat-factor sampling, threshold 0.9" in text
    raised = images_of_epoch(config, run.train_index)
    assert raised > run.train_index.num_images
    assert run.plan == make_plan(config, raised)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("size", [(128, 96), (64, 64), (256, 320)])
def test_anchors_keep_their_pixels_at_other_sizes(size, clip):
    sizes = (20.0, 60.0, 100.0)
    overrides = {"data.image_size": (96, 128), "anchors.sizes": sizes, "anchors.clip": clip}
    config = support.tiny_config(overrides=overrides)
    own = prepare.make_anchors(config)
    np.testing.assert_array_equal(own, build_detector(config, ("a",)).anchors)
    np.testing.assert_array_equal(own, prepare.make_anchors(config, (96, 128)))
    other = prepare.make_anchors(config, size)
    shapes = []
    for anchors, image_size in ((own, (96, 128)), (other, size)):
        cells = [rows * columns for rows, columns in feature_map_sizes(image_size, 2)]
        assert len(anchors) == 6 * sum(cells)
        sides = anchors[:, 2:] - anchors[:, :2]
        # Of each scale: the sides of its six anchors, the same in all cells.
        by_scale = [s.reshape(-1, 6, 2) for s in np.split(sides, [6 * cells[0]])]
        shapes.append(np.stack([s[0] for s in by_scale]))
        for scale in by_scale:
            np.testing.assert_allclose(scale, np.broadcast_to(scale[:1], scale.shape), atol=1e-4)
    np.testing.assert_allclose(shapes[1], shapes[0], atol=1e-4)
    # Standing, 60 px of ratio 3 are higher than the config's image, to which they are cut.
    highest = 96 if clip else 60 * 3**0.5
    np.testing.assert_allclose(shapes[1][..., 1].max(), highest, atol=1e-4)


def test_steps_of_the_anchors_fit_one_size_only(drawn_files, tmp_path):
    config = small_config(drawn_files, anchors__steps=(8.0, 16.0))
    with pytest.raises(ValueError, match=r"config.anchors.steps .*\(96, 64\)"):
        prepare.prepare(resolve(config), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"augment__pipeline": ("crop", "cutout")}, r"config.augment.pipeline: .*'cutout'; known"),
        ({"augment__pipeline": ("crop", "mosaic")}, "config.augment.pipeline: 'mosaic' must come"),
        ({"data__train_sizes": ((64, 96), (32, 64))}, "config.data.train_sizes"),
        ({"data__train_sizes": (64, 96)}, "config.data.train_sizes"),
        ({"data__repeat_threshold": -0.1}, "config.data.repeat_threshold=-0.1"),
    ],
)
def test_impossible_wishes_are_refused_at_once(drawn_files, tmp_path, overrides, message):
    config = support.short_config(drawn_files, **overrides)
    with pytest.raises(ValueError, match=message):
        prepare.prepare(resolve(config), tmp_path)
