"""What one sees of a run: means over an interval, rates without the pauses, a stop on NaN."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax.run.history import History, read_history
from m2det_jax.run.progress import NonFiniteLoss, Progress, log
from m2det_jax.training.step import METRICS, IntervalMetrics


def metrics(value: float = 1.0, **others) -> dict:
    return {name: jnp.float32(value) for name in METRICS} | {
        name: jnp.float32(other) for name, other in others.items()
    }


@pytest.fixture
def progress(tmp_path):
    with History(tmp_path) as history:
        yield Progress(
            history,
            IntervalMetrics.empty(),
            {"nonfinite_steps": 0, "replaced_images": 0},
            start_step=0,
            steps=5,
            batch_size=10,
            every_steps=2,
            image_paths=[f"{i}.jpg" for i in range(11)],
        )


def test_a_record_per_interval_and_one_at_the_end(progress, tmp_path):
    for step, loss in enumerate([1.0, 3.0, 5.0, 6.0, 8.0], 1):
        progress.after_step(step, metrics(loss), {"image_id": np.arange(2)})
    records = read_history(tmp_path)
    assert [(r["step"], r["loss"]) for r in records] == [(2, 2.0), (4, 5.5), (5, 8.0)]


def test_an_interval_goes_on_after_a_restart(progress, tmp_path):
    progress.after_step(1, metrics(1.0), {"image_id": np.arange(2)})
    with History(tmp_path, 1) as history:
        again = Progress(
            history,
            progress.interval,
            progress.totals,
            start_step=1,
            steps=5,
            batch_size=10,
            every_steps=2,
            image_paths=progress.image_paths,
        )
        again.after_step(2, metrics(3.0), {"image_id": np.arange(2)})
    assert [r["loss"] for r in read_history(tmp_path)] == [2.0]


def test_pauses_do_not_count_and_waiting_does(progress, tmp_path):
    with progress.waiting():
        time.sleep(0.2)
    assert progress.pause(lambda x, y: time.sleep(0.6) or x + y, 1, y=2) == 3
    progress.after_step(1, metrics(), {"image_id": np.arange(2)})
    progress.after_step(2, metrics(), {"image_id": np.arange(2)})
    (record,) = read_history(tmp_path)
    seconds = 2 * 10 / record["images_per_second"]
    assert seconds >= 0.2
    assert record["data_wait_share"] == pytest.approx(0.2 / seconds, rel=0.3)


@pytest.mark.parametrize(("wait", "said"), [(0.3, 1), (0.0, 0)])
def test_much_waiting_is_told_once_and_not_as_reading_begins(progress, monkeypatch, wait, said):
    told = []
    monkeypatch.setattr(log, "warning", lambda text, *values: told.append(text % values))
    progress.slow_data, progress.steps = "raise --config.data.num_workers=7", 8
    for step in range(1, 9):
        progress.waited += wait
        progress.started -= 1.0  # a step of a second
        progress.after_step(step, metrics(), {"image_id": np.arange(2)})
        assert len(told) == (said if step >= 4 else 0)
    if said:
        assert told[0].startswith("training waits for data, ")
        assert told[0].endswith("% of the last steps' time; raise --config.data.num_workers=7")


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_told_one_step_later(name, value, progress):
    progress.after_step(1, metrics(), {"image_id": np.array([7])})
    progress.after_step(2, metrics(**{name: value}), {"image_id": np.array([8, 9])})
    with pytest.raises(NonFiniteLoss, match=f"{value} at step 2") as caught:
        progress.after_step(3, metrics(), {"image_id": np.array([10])})
    assert (caught.value.step, caught.value.image_ids.tolist()) == (2, [8, 9])


def test_the_last_step_is_checked_on_demand(progress):
    progress.after_step(1, metrics(), {"image_id": np.array([7])})
    progress.check()
    progress.after_step(2, metrics(np.nan), {"image_id": np.array([8])})
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 2"):
        progress.check()


def test_some_steps_that_are_not_finite_are_let_pass_and_counted(
    progress, tmp_path, warnings_of_run
):
    progress.max_nonfinite = 2
    progress.after_step(1, metrics(1.0), {"image_id": np.array([7])})
    progress.after_step(2, metrics(np.nan), {"image_id": np.array([8, 9])})
    progress.after_step(3, metrics(3.0, grad_norm=np.inf), {"image_id": np.array([3])})
    progress.after_step(4, metrics(5.0), {"image_id": np.array([10])})
    assert progress.totals["nonfinite_steps"] == 2
    assert "the loss is nan at step 2; its update is left out, the 1. of at most 2. Images: " in (
        warnings_of_run.text
    )
    assert "8.jpg, 9.jpg" in warnings_of_run.text
    assert "the norm of the gradient is inf at step 3" in warnings_of_run.text
    # The means of an interval are those of its finite steps.
    assert [r["loss"] for r in read_history(tmp_path)] == [1.0, 5.0]
    assert read_history(tmp_path)[-1]["nonfinite_steps"] == 2
    progress.after_step(5, metrics(np.inf), {"image_id": np.array([4])})
    with pytest.raises(NonFiniteLoss, match="the loss is inf at step 5"):
        progress.check()
    assert progress.totals["nonfinite_steps"] == 2


def test_the_limit_counts_through_all_stops_of_a_run(progress):
    progress.max_nonfinite = 3
    progress.totals["nonfinite_steps"] = 3  # as a checkpoint has it
    progress.after_step(1, metrics(np.nan), {"image_id": np.array([7])})
    with pytest.raises(NonFiniteLoss, match="at step 1"):
        progress.check()


def test_replaced_images_are_counted_and_named(progress, tmp_path, warnings_of_run):
    progress.after_step(1, metrics(), {"image_id": np.arange(3), "replaced": np.array([-1, 5, -1])})
    progress.after_step(2, metrics(), {"image_id": np.arange(3), "replaced": np.array([6, -1, 5])})
    assert progress.totals["replaced_images"] == 3
    assert "step 1: cannot read image 5.jpg, another one in its place; 1 times so far" in (
        warnings_of_run.text
    )
    assert "step 2: cannot read image 6.jpg" in warnings_of_run.text
    assert read_history(tmp_path)[-1]["replaced_images"] == 3
