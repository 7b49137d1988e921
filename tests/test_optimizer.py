"""Schedules at steps computed by hand, and what the optimiser does to which parameter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support

from m2det_jax.training.optimizer import (
    OptimizerSettings,
    make_optimizer,
    make_schedule,
    scaled_learning_rate,
)
from m2det_jax.training.plan import make_optimizer_settings, make_plan

SETTINGS = OptimizerSettings(
    name="sgd",
    learning_rate=0.1,
    momentum=0.0,
    weight_decay=0.0,
    clip_norm=0.0,
    backbone_factor=1.0,
    schedule="constant",
    steps=110,
    warmup_steps=0,
    warmup_start=0.0,
    decay_steps=(),
    decay_factors=(),
    final_factor=0.01,
)
PARAMS = {
    "backbone": {
        "conv1_1": {"conv": {"kernel": np.full((3, 2), 2.0, np.float32)}},
        "conv1_2": {"conv": {"kernel": np.full((3, 2), 2.0, np.float32)}},
    },
    "head": {
        "kernel": np.full((4,), -1.0, np.float32),
        "bias": np.full((4,), 3.0, np.float32),
        "norm": {"scale": np.full((4,), 3.0, np.float32), "bias": np.full((4,), 3.0, np.float32)},
    },
}


def settings(**changes) -> OptimizerSettings:
    return dataclasses.replace(SETTINGS, **changes)


def updates_of(optimizer, gradients, params=PARAMS, steps=1):
    @jax.jit
    def update(gradients, state, params):
        return optimizer.update(gradients, state, params)

    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = update(gradients, state, params)
    return jax.device_get(updates)


def no_gradients():
    return jax.tree.map(np.zeros_like, PARAMS)


def rates(schedule, steps):
    return [float(jax.jit(schedule)(jnp.int32(step))) for step in steps]


def test_warm_up_rises_linearly_from_the_first_step():
    schedule = make_schedule(settings(warmup_steps=10))
    # peak / 11 at step 0, then 10 equal parts up to the peak.
    expected = [0.1 / 11, 0.1 / 11 + 0.5 * (0.1 - 0.1 / 11), 0.1, 0.1]
    np.testing.assert_allclose(rates(schedule, [0, 5, 10, 109]), expected, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_ends_at_the_final_factor(warmup):
    schedule = make_schedule(settings(schedule="cosine", warmup_steps=warmup, steps=100 + warmup))
    # cos at 0, a quarter, half and all of the way: 1, (1 + sqrt(1/2)) / 2, 1/2, 0.
    shares = np.array([1, (1 + 0.5**0.5) / 2, 0.5, 0, 0])
    expected = 0.1 * (0.99 * shares + 0.01)
    steps = np.array([0, 25, 50, 100, 500]) + warmup
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 10])
def test_step_schedule_falls_at_steps_counted_from_the_start(warmup):
    decays = dict(decay_steps=(20, 30), decay_factors=(0.5, 0.2))
    schedule = make_schedule(settings(schedule="step", warmup_steps=warmup, **decays))
    expected = [0.1, 0.05, 0.05, 0.01, 0.01]
    np.testing.assert_allclose(rates(schedule, [19, 20, 29, 30, 109]), expected, rtol=1e-6)


def test_decays_that_round_to_the_same_step_both_count():
    decays = dict(decay_steps=(20, 20, 30), decay_factors=(0.5, 0.2, 0.1))
    schedule = make_schedule(settings(schedule="step", **decays))
    np.testing.assert_allclose(rates(schedule, [19, 20, 30]), [0.1, 0.01, 0.001], rtol=1e-6)


def test_warm_up_starts_where_it_is_told_to():
    schedule = make_schedule(settings(warmup_steps=10, warmup_start=0.02))
    np.testing.assert_allclose(rates(schedule, [0, 5, 10]), [0.02, 0.06, 0.1], rtol=1e-6)


def test_constant_schedule():
    assert rates(make_schedule(settings(learning_rate=0.25)), [0, 1, 1000]) == [0.25] * 3


def test_sgd_scales_with_the_batch_and_adamw_with_its_root():
    assert scaled_learning_rate(0.002, 128, 32, "sgd") == pytest.approx(0.008)
    assert scaled_learning_rate(0.002, 128, 32, "adamw") == pytest.approx(0.004)
    assert scaled_learning_rate(0.002, 8, 32, "sgd") == pytest.approx(0.0005)
    assert scaled_learning_rate(0.002, 8, 32, "adamw") == pytest.approx(0.001)
    assert scaled_learning_rate(0.002, 32, 32, "adamw") == 0.002


def test_epochs_of_the_config_become_steps():
    config = support.tiny_config(
        overrides={
            "epochs": 10.0,
            "batch_size": 8,
            "eval.every_epochs": 2.0,
            "optimizer.schedule": "step",
            "optimizer.learning_rate": 0.1,
            "optimizer.reference_batch_size": 16,
            "optimizer.warmup_epochs": 1.0,
            "optimizer.decay_epochs": (4.0, 8.0),
            "optimizer.decay_factors": (0.5, 0.1),
            "optimizer.backbone_factor": 0.2,
        }
    )
    plan = make_plan(config, num_images=40)  # 5 steps an epoch
    assert (plan.steps, plan.stop, plan.evaluate_every) == (50, 50, 10)
    found = make_optimizer_settings(config, plan, num_images=40)
    assert (found.warmup_steps, found.decay_steps) == (5, (20, 40))
    assert (found.decay_factors, found.backbone_factor) == ((0.5, 0.1), 0.2)
    assert found.learning_rate == pytest.approx(0.05)
    assert make_plan(support.changed(config, max_steps=7), 40).stop == 7
    assert make_plan(support.changed(config, max_steps=70), 40).stop == 50
    assert make_plan(support.changed(config, epochs=0.01), 40).steps == 1


def settings_of(num_images=80, **overrides) -> tuple[OptimizerSettings, list[str]]:
    """The settings of a config at 10 steps an epoch, and what was warned of."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    config = support.tiny_config(overrides={"optimizer.schedule": "step"} | dotted)
    plan = make_plan(config, num_images)
    with support.warnings_of_run() as warned:
        return make_optimizer_settings(config, plan, num_images), warned


@pytest.mark.parametrize("epochs", [4.0, 50.0, 150.0, 300.0])
def test_shares_of_the_run_stretch_with_it(epochs):
    found, warned = settings_of(
        epochs=epochs,
        optimizer__warmup_share=0.1,
        optimizer__decay_epochs=(),
        optimizer__decay_shares=(0.6, 0.8),
    )
    assert (found.warmup_steps, found.steps) == (epochs, 10 * epochs)
    assert found.decay_steps == (6 * epochs, 8 * epochs)
    assert not warned


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"epochs": 50.0}, ["ends before 2 of 2 decays", "decay_epochs=(90.0, 120.0)"]),
        ({"epochs": 100.0}, ["ends before 1 of 2 decays"]),
        (
            {"epochs": 4.0, "optimizer__warmup_epochs": 5.0},
            ["run of 40 steps (config.epochs=4)", "inside the warm-up of 50 steps", "2 of 2"],
        ),
        (
            {"epochs": 4.0, "optimizer__warmup_epochs": 5.0, "optimizer__schedule": "cosine"},
            ["inside the warm-up of 50 steps (config.optimizer.warmup_epochs=5)"],
        ),
        (
            {"epochs": 150.0, "optimizer__warmup_epochs": 100.0},
            ["1 of 2 decays", "come before the end of the warm-up"],
        ),
        (
            {"epochs": 150.0, "optimizer__warmup_epochs": 5.0, "max_steps": 30},
            ["config.max_steps=30 stops inside the warm-up of 50 steps", "all 1500 steps"],
        ),
    ],
)
def test_a_run_that_is_too_short_for_its_schedule_says_so_in_one_line(overrides, parts):
    (line,) = settings_of(**overrides)[1]
    assert all(part in line for part in parts), line
    if "max_steps" not in overrides:
        assert "config.optimizer.warmup_share and decay_shares" in line


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_a_run_that_is_long_enough_warns_of_nothing(schedule):
    warned = settings_of(epochs=150.0, optimizer__warmup_epochs=5.0, optimizer__schedule=schedule)[
        1
    ]
    assert not warned


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            {"epochs": 3.0},
            "validation comes at the end alone, at step 30: config.eval.every_epochs=5",
        ),
        (
            {"epochs": 20.0, "eval.patience": 4},
            "config.eval.patience=4 stops nothing: the run has 4",
        ),
        ({"epochs": 20.0, "eval.patience": 3}, None),
        ({"epochs": 5.0}, None),
    ],
)
def test_evaluations_that_a_short_run_does_not_come_to_are_said(overrides, part):
    with support.warnings_of_run() as warned:
        make_plan(support.tiny_config(overrides=overrides), 80)
    assert len(warned) == (part is not None) and all(part in line for line in warned)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_biases_norms_and_frozen_layers(name):
    decaying = settings(name=name, learning_rate=0.5, weight_decay=0.1)
    optimizer = make_optimizer(decaying, frozen=(("backbone", "conv1_1"),))
    updates = updates_of(optimizer, no_gradients())
    np.testing.assert_allclose(updates["backbone"]["conv1_2"]["conv"]["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["kernel"], 0.05, rtol=1e-6)
    assert not updates["backbone"]["conv1_1"]["conv"]["kernel"].any()
    assert not updates["head"]["bias"].any()
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["head"]["norm"]))


@pytest.mark.parametrize(("clip_norm", "expected"), [(10.0, 1.0), (0.0, 2.0), (40.0, 2.0)])
def test_the_gradient_is_clipped_by_its_global_norm(clip_norm, expected):
    gradients = no_gradients()
    gradients["head"]["kernel"] += 6.0  # norm 12
    gradients["head"]["bias"] += 8.0  # norm 16, together 20
    updates = updates_of(make_optimizer(settings(clip_norm=clip_norm)), gradients)
    assert float(optax.tree.norm(updates)) == pytest.approx(expected, rel=1e-5)
    ratio = updates["head"]["kernel"] / updates["head"]["bias"]
    np.testing.assert_allclose(ratio, 6 / 8, rtol=1e-5)


def test_weight_decay_is_not_clipped_away():
    optimizer = make_optimizer(settings(clip_norm=1e-3, weight_decay=1.0))
    updates = updates_of(optimizer, jax.tree.map(lambda x: 1e6 * np.ones_like(x), PARAMS))
    np.testing.assert_allclose(updates["head"]["kernel"], 0.1, atol=1e-3)


def test_momentum_adds_up():
    gradients = jax.tree.map(np.ones_like, PARAMS)
    updates = updates_of(make_optimizer(settings(momentum=0.5)), gradients, steps=3)
    np.testing.assert_allclose(updates["head"]["bias"], -0.1 * (1 + 0.5 + 0.25), rtol=1e-6)


def test_adamw_moves_by_the_learning_rate_whatever_the_gradient():
    gradients = jax.tree.map(lambda x: 1e-3 * np.ones_like(x), PARAMS)
    updates = updates_of(make_optimizer(settings(name="adamw", learning_rate=0.25)), gradients)
    np.testing.assert_allclose(updates["head"]["bias"], -0.25, rtol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_backbone_moves_by_its_factor_of_the_others_step(name):
    gradients = jax.tree.map(np.ones_like, PARAMS)
    decaying = settings(name=name, learning_rate=0.5, weight_decay=0.1, momentum=0.9)
    whole, slower = (
        updates_of(make_optimizer(settings), gradients, steps=3)
        for settings in (decaying, dataclasses.replace(decaying, backbone_factor=0.1))
    )
    expected = jax.tree.map(lambda x: 0.1 * x, whole["backbone"])
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6),
                 slower["backbone"], expected)  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, slower["head"], whole["head"])


def test_the_backbone_factor_leaves_the_shape_of_the_state_alone():
    states = [make_optimizer(settings(backbone_factor=f)).init(PARAMS) for f in (1.0, 0.1)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
