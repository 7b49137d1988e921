"""The train step: it learns, compiles once, and does the same on any number of devices."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import support
from jaxtyping import TypeCheckError

from m2det_jax.build import build_detector, step_settings
from m2det_jax.model import init_variables
from m2det_jax.run.devices import place
from m2det_jax.run.state import create_train_state
from m2det_jax.training.step import make_train_step

NAMES = tuple(f"class{i}" for i in range(8))


def leaves(tree) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


@pytest.fixture(scope="module")
def course(tiny_run):
    """Twelve steps on one batch: the metrics of each, and the states after the first three."""
    state, batch = tiny_run.fresh_state(), support.random_batch(0)
    metrics, states = [], [jax.device_get(state)]
    for _ in range(12):
        state, step_metrics = tiny_run.step(state, batch)
        metrics.append(jax.device_get(step_metrics))
        if len(states) < 4:
            states.append(jax.device_get(state))
    return metrics, states


def test_the_loss_falls_on_a_fixed_batch(course):
    losses = [m["loss"] for m in course[0]]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


def test_metrics_are_one_flat_dict_of_scalars(course):
    batch = support.random_batch(0)
    for metrics in course[0]:
        assert set(metrics) == {
            "loss", "loss_class", "loss_box", "num_positives", "grad_norm", "learning_rate",
        }  # fmt: skip
        assert all(v.shape == () and v.dtype == np.float32 for v in metrics.values())
        assert metrics["loss"] == pytest.approx(metrics["loss_class"] + metrics["loss_box"])
        assert metrics["num_positives"] >= batch["mask"].sum()
        assert metrics["learning_rate"] == pytest.approx(0.005)
        assert metrics["grad_norm"] > 0


def test_state_moves_and_keeps_its_form(course):
    before, after = course[1][0], course[1][1]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert after.step == before.step + 1
    old, new = (
        leaves((before.params, before.batch_stats)),
        leaves((after.params, after.batch_stats)),
    )
    assert all(new[k].dtype == np.float32 for k in new)
    unmoved = [k for k in old if np.array_equal(old[k], new[k])]
    assert not [k for k in unmoved if "kernel" in k or "[1]" in k[:3]]  # all kernels and statistics
    assert len(unmoved) < len(old) / 10  # such as the box bias of a scale without positives


def test_the_average_forgets_the_random_start(course):
    # Step number n = 0, 1, 2 keeps (1 + n) / (10 + n) of the average so far.
    ema = leaves((course[1][0].params, course[1][0].batch_stats))
    for n in range(3):
        after = course[1][n + 1]
        keep = (1 + n) / (10 + n)
        raw = leaves((after.params, after.batch_stats))
        ema = {k: keep * ema[k] + (1 - keep) * raw[k] for k in ema}
        found = leaves((after.ema_params, after.ema_batch_stats))
        for key in ema:
            np.testing.assert_allclose(found[key], ema[key], rtol=1e-4, atol=1e-5, err_msg=key)


def test_a_late_average_keeps_the_configured_share(tiny_run):
    state = dataclasses.replace(tiny_run.initial, step=np.int32(10_000))
    after, _ = tiny_run.step(place(state, tiny_run.run.replicated), support.random_batch(0))
    old, raw, ema = leaves(state.params), leaves(after.params), leaves(after.ema_params)
    for key in old:
        expected = 0.9 * old[key] + 0.1 * raw[key]
        np.testing.assert_allclose(ema[key], expected, rtol=1e-4, atol=1e-6, err_msg=key)


def test_the_state_is_donated(tiny_run):
    state = tiny_run.fresh_state()
    tiny_run.step(state, support.random_batch(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.ema_params)))


def test_steps_after_the_first_compile_nothing(tiny_run, course):
    compiled = []
    state, _ = tiny_run.step(tiny_run.fresh_state(), support.random_batch(0))
    batches = [support.random_batch(seed) for seed in range(3)]
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "compile" in event else None
    )
    try:
        for batch in batches:
            state, _ = tiny_run.step(state, batch)
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    assert tiny_run.traces == ["trace"]


def test_one_device_gives_the_losses_of_eight(tiny_run, course):
    assert jax.device_count() == 8
    step, _ = support.make_step(tiny_run.config, tiny_run.run.detector)
    alone = jax.jit(step)
    metrics, states = course
    state, batch = jax.device_put((tiny_run.initial, support.random_batch(0)), jax.devices()[0])
    for n in range(4):
        state, found = alone(state, batch)
        assert found["loss"].devices() == {jax.devices()[0]}
        # The network is chaotic: rounding errors grow a hundredfold a step.
        tolerance = 1e-5 if n == 0 else 1e-3
        np.testing.assert_allclose(found["loss"], metrics[n]["loss"], rtol=tolerance)
        if n == 0:
            np.testing.assert_allclose(found["grad_norm"], metrics[n]["grad_norm"], rtol=1e-3)
            # The statistics are those of the batch of eight, not of one device's image.
            one, eight = leaves(state.batch_stats), leaves(states[1].batch_stats)
            for key in one:
                np.testing.assert_allclose(eight[key], one[key], rtol=1e-3, atol=1e-4, err_msg=key)


def test_a_batch_without_objects(tiny_run):
    batch = support.random_batch(2)
    batch = {k: v if k == "image" else np.zeros_like(v) for k, v in batch.items()}
    state, metrics = tiny_run.step(tiny_run.fresh_state(), batch)
    assert metrics["num_positives"] == 0
    assert metrics["loss_box"] == 0
    assert metrics["loss_class"] > 0
    assert all(np.isfinite(leaf).all() for leaf in leaves(state).values())


def test_the_same_step_gives_the_same_bits(tiny_run):
    once, again = (tiny_run.step(tiny_run.fresh_state(), support.random_batch(3)) for _ in range(2))
    support.assert_trees_equal(once, again)


def test_the_types_of_a_step_are_checked(tiny_run):
    step, _ = support.make_step(tiny_run.config, tiny_run.run.detector)
    batch = support.random_batch(0)
    with pytest.raises(TypeCheckError, match="batch"):
        step(tiny_run.initial, batch["image"])
    with pytest.raises(TypeCheckError, match="batch"):
        step(tiny_run.initial, batch | {"boxes": batch["boxes"].tolist()})
    with pytest.raises(TypeCheckError, match="state"):
        step(tiny_run.initial.params, jax.device_put(batch))


@pytest.fixture(scope="module")
def parts():
    """One step with frozen stages in 1 and 2 parts: before, {parts: (after, metrics)}, paths."""
    overrides = {
        "model.frozen_stages": 2,
        "model.num_levels": 1,
        "model.num_scales": 2,
        "optimizer.weight_decay": 0.1,
        "optimizer.clip_norm": 0.0,
        "optimizer.norm_warmup": True,
    }
    config = support.tiny_config(overrides=overrides)
    detector = build_detector(config, NAMES)
    # Every image twice, one after the other, with different objects: the two parts then have the
    # batch statistics of the whole, and their gradients must add up to that of the whole.
    batch = support.random_batch(4)
    batch["image"] = np.repeat(batch["image"][::2], 2, axis=0)
    results = {}
    for count in (1, 2):
        at_count = support.changed(config, accumulation=count)
        step, optimizer = support.make_step(at_count, detector)
        before = create_train_state(init_variables(detector.model, (64, 96), 0), optimizer)
        results[count] = jax.device_get(jax.jit(step)(before, batch))
    return before, results, detector.model.frozen_paths()


def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    before, results, _ = parts
    (whole, whole_metrics), (summed, summed_metrics) = results[1], results[2]
    for name, expected in whole_metrics.items():
        np.testing.assert_allclose(summed_metrics[name], expected, rtol=1e-3, err_msg=name)
    start, one, two = leaves(before.params), leaves(whole.params), leaves(summed.params)
    for key in one:
        scale = np.abs(one[key] - start[key]).max() + 1e-7
        np.testing.assert_allclose(two[key], one[key], atol=2e-2 * scale, rtol=1e-5, err_msg=key)


def test_statistics_keep_their_share_once_a_part(parts):
    before, results, _ = parts
    start = leaves(before.batch_stats["mlfpn"])
    # The first step keeps a tenth for each part, and each part has the whole batch's statistics.
    one, two = (leaves(results[count][0].batch_stats["mlfpn"]) for count in (1, 2))
    for key in start:
        whole, both = (one[key] - 0.1 * start[key]) / 0.9, (two[key] - 0.01 * start[key]) / 0.99
        np.testing.assert_allclose(both, whole, rtol=1e-3, atol=1e-4, err_msg=key)


def test_frozen_stages_stay_as_they_are(parts):
    before, results, frozen = parts
    assert frozen
    after = results[1][0]
    names = {path[-1] for path in frozen}
    for collection in ("params", "batch_stats", "ema_params", "ema_batch_stats"):
        old, new = getattr(before, collection), getattr(after, collection)
        for name in old["backbone"]:
            same = [
                np.array_equal(a, b)
                for a, b in zip(
                    leaves(old["backbone"][name]).values(),
                    leaves(new["backbone"][name]).values(),
                    strict=True,
                )
            ]
            if not collection.startswith("ema"):
                assert all(same) if name in names else not any(same), (collection, name)
            elif name in names:  # the average of equal numbers is equal but for rounding
                for a, b in zip(
                    jax.tree.leaves(old["backbone"][name]),
                    jax.tree.leaves(new["backbone"][name]),
                    strict=True,
                ):
                    np.testing.assert_allclose(a, b, rtol=1e-6)


class Linear:
    """As little of a detector's model as a step needs: A anchors, C classes, one weight each."""

    anchors, classes = 6, 2

    def apply(self, variables, images, train, mutable):
        features = images.mean(axis=(1, 2, 3))[:, None, None]  # [B, 1, 1]
        params = variables["params"]
        outputs = {
            "class_logits": features * params["class"][None],  # [B, A, C]
            "box_deltas": features * params["box"][None],  # [B, A, 4]
        }
        mean = variables["batch_stats"]["mean"]
        return outputs, {"batch_stats": {"mean": 0.9 * mean + 0.1 * features.mean()}}


@pytest.mark.parametrize("skip", [True, False])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(skip):
    edges = np.arange(6, dtype=np.float32) * 12
    anchors = np.stack([edges, edges, edges + 16, edges + 16], -1)
    config = support.tiny_config(overrides={
        "on_nonfinite": "skip" if skip else "stop", "accumulation": 2,
    })  # fmt: skip
    detector = build_detector(config, ("cat", "dog"))
    detector = dataclasses.replace(detector, model=Linear(), anchors=anchors)
    settings = step_settings(config)
    optimizer = optax.adamw(0.01)
    step = jax.jit(make_train_step(detector, optimizer, optax.constant_schedule(0.01), settings))
    params = {"class": np.ones((6, 2), np.float32), "box": np.ones((6, 4), np.float32)}
    variables = {"params": params, "batch_stats": {"mean": np.float32(1.0)}}
    state, batch = create_train_state(variables, optimizer), support.random_batch(0, num_classes=2)
    state, first = step(state, batch)
    assert np.isfinite(first["loss"]) and not np.array_equal(state.params["class"], params["class"])

    broken = batch | {"image": np.full(batch["image"].shape, np.nan, np.float32)}
    after, metrics = step(state, broken)
    assert not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"])
    assert after.step == state.step + 1 == 2
    if not skip:
        assert not np.isfinite(after.params["class"]).all()
        return
    support.assert_trees_equal(dataclasses.replace(after, step=state.step), state)
    later, _ = step(after, batch)
    assert np.isfinite(later.params["class"]).all()
    assert not np.array_equal(later.params["class"], after.params["class"])
