"""The warm-up of BatchNorm's running averages: what they keep, and what evaluations see."""

import jax
import numpy as np
import pytest
import support

from m2det_jax.build import step_settings
from m2det_jax.detector.objective import eval_losses

MOMENTUM = 0.9
STEPS = 8


def course(warm: bool):
    """The step, and the states before and after each of some steps, in host memory."""
    small = support.small_step(1, optimizer__norm_warmup=True) if warm else support.small_step(1)
    assert small.config.model.norm_momentum == MOMENTUM
    state, states = small.start(), [small.initial]
    for seed in range(STEPS):
        state, _ = small.run(state, [support.random_batch(seed)])
        states.append(jax.device_get(state))
    return small, states


@pytest.fixture(scope="module")
def courses():
    return {warm: course(warm) for warm in (False, True)}


def test_a_step_keeps_a_share_that_rises_and_trains_the_same_weights(courses):
    cold, warm = courses[False][1], courses[True][1]
    expected = warm[0].batch_stats
    for n in range(STEPS):
        keep = (1 + n) / (10 + n)

        def follow(average, old, new, keep=keep):
            batch = (new - MOMENTUM * old) / (1 - MOMENTUM)
            return keep * average + (1 - keep) * batch

        stats = cold[n].batch_stats, cold[n + 1].batch_stats
        expected = jax.tree.map(follow, expected, *stats)
        for a, e in zip(
            support.leaves(warm[n + 1].batch_stats), support.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
        for a, e in zip(
            support.leaves(warm[n + 1].params), support.leaves(cold[n + 1].params), strict=True
        ):
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(cold[-1]) == jax.tree.structure(warm[-1])


def test_variances_stay_positive_and_late_steps_keep_the_momentum(courses):
    small, states = courses[True]
    for state in states:
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.batch_stats):
            assert path[-1].key != "var" or (leaf > 0).all()
    late = jax.tree.map(np.copy, states[-1]).replace(step=np.int32(10_000))
    batch = support.random_batch(0)
    after = [
        jax.device_get(other.run(jax.device_put(late, other.state_sharding), [batch])[0])
        for other in (small, courses[False][0])
    ]
    for a, b in zip(*(support.leaves(state.batch_stats) for state in after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_early_evaluation_sees_what_training_saw(courses):
    losses = {}
    for warm, (small, states) in courses.items():
        settings = step_settings(small.config)

        @jax.jit
        def evaluated(variables, batch, detector=small.detector, settings=settings):
            outputs = detector.model.apply(
                variables, detector.normalize(batch["image"]), train=False
            )
            return eval_losses(detector, settings, outputs, batch)

        batch = support.random_batch(STEPS - 1) | {"image_id": np.arange(8)}
        state = states[-1]
        raw = {"params": state.params, "batch_stats": state.batch_stats}
        found = [evaluated(variables, batch)["loss"] for variables in (raw, state.eval_variables)]
        losses[warm] = np.array(found)
    assert (losses[True] < losses[False]).all(), losses
