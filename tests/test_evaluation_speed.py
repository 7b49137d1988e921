"""Time of the stages of an evaluation: what is counted, and that nothing else changes."""

import json
import math

import jax
import numpy as np
import pytest

from m2det_jax.build import step_settings
from m2det_jax.data import read_csv
from m2det_jax.detector import evaluation
from m2det_jax.detector.evaluation import Stages, format_speed, make_eval_step, make_staged_step
from m2det_jax.detector.reading import Reading
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.inference.evaluation import evaluate_restored
from m2det_jax.run import devices
from m2det_jax.trained import restore


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = {"time": 0.0}
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: now["time"])
    return now


def test_the_first_batch_is_not_timed(clock):
    stages = Stages().of(num_images=10, batch_size=4)
    for load, network, nms in ((50, 60, 70), (1, 4, 2), (0.5, 2, 1)):
        for stage, seconds in (("load", load), ("network", network), ("nms", nms)):
            clock["time"] += seconds
            stages.mark(stage, np.zeros(1))
    assert stages.speed() == pytest.approx(
        {"images": 6, "images_per_second": 6 / 10.5, "load_ms": 250, "network_ms": 1000,
         "nms_ms": 500}
    )  # fmt: skip
    assert format_speed(stages.speed()) == (
        "speed: 0.6 images/s; ms an image: load 250.0, network 1000.0, NMS 500.0 "
        "(6 images after the first batch)"
    )


def test_one_batch_alone_is_not_measured(clock):
    stages = Stages().of(num_images=4, batch_size=4)
    for stage in ("load", "network", "nms"):
        stages.mark(stage, None)
    assert stages.speed()["images"] == 0 and math.isnan(stages.speed()["network_ms"])
    assert "one batch only" in format_speed(stages.speed())


def test_two_programs_detect_what_one_does(whole, drawn_files):
    restored = restore(whole[0])
    index = read_csv(drawn_files.val, restored.class_names)
    settings, (replicated, by_batch) = step_settings(restored.config), devices.data_mesh()
    variables = jax.device_put(restored.variables, replicated)
    marks = []

    def detected(step):
        found = evaluation.detect(
            step, variables, index, restored.detector, Reading(8), sharding=by_batch
        )
        return [(one, jax.device_get(terms)) for images, terms in found for one in images]

    one = detected(jax.jit(make_eval_step(restored.detector, settings)))
    two = detected(make_staged_step(restored.detector, settings, lambda *m: marks.append(m[0])))
    assert marks == ["load", "network", "nms"] * 2
    assert sum(len(a.scores) for a, _ in one) > 20
    for (a, terms), (b, others) in zip(one, two, strict=True):
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert terms.keys() == others.keys()
        for name, value in terms.items():
            np.testing.assert_allclose(others[name], value, rtol=1e-6)


@pytest.mark.parametrize("views", [[], ["eval.test_flip=True"]], ids=["one view", "two views"])
def test_evaluate_prints_and_records_the_speed(whole, tmp_path, capsys, views):
    target = tmp_path / "figures.json"
    evaluate_checkpoint(whole[0], output=str(target), overrides=views)
    speed = json.loads(target.read_text())["speed"]
    assert speed["images"] == 4  # of 12, after a batch of 8
    parts = sum(speed[f"{stage}_ms"] for stage in ("load", "network", "nms"))
    assert all(value > 0 for value in speed.values())
    assert 1000 / speed["images_per_second"] == pytest.approx(parts)
    assert f"load {speed['load_ms']:.1f}, network" in capsys.readouterr().out


@pytest.mark.parametrize("views", [[], ["eval.test_flip=True"]], ids=["one view", "two views"])
def test_without_stages_nothing_is_waited_for_and_the_figures_are_the_same(
    whole, drawn_files, monkeypatch, views
):
    restored = restore(whole[0], overrides=views)
    index = read_csv(drawn_files.val, restored.class_names)
    timed, _ = evaluate_restored(restored, index, 8, "batch_size", Stages())
    monkeypatch.setattr(Stages, "mark", None)  # cannot be called
    plain, _ = evaluate_restored(restored, index, 8, "batch_size")
    assert plain["AP"] == timed["AP"] and plain["per_class"] == timed["per_class"]
