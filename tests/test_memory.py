"""What a step costs is read and told, and the end of a device's memory ends in advice."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

from m2det_jax import runtime, train
from m2det_jax.run import cost, memory
from m2det_jax.training import prepare, validation
from m2det_jax.training.errors import explained
from m2det_jax.training.step import INPUTS

GIB = 2**30
SETTINGS = memory.MemorySettings(
    image_size=(512, 512),
    batch_size=32,
    accumulation=1,
    remat=False,
    dtype="float32",
    sharding="replicated",
    num_devices=1,
)
COST = cost.StepCost(
    flops=9 * 10**12,
    compiler_flops=8 * 10**12,
    arguments=3 * GIB,
    outputs=2 * GIB,
    aliased=2 * GIB,
    temporaries=80 * GIB,
    code=0,
)


def settings(**changes) -> memory.MemorySettings:
    return memory.MemorySettings(**(vars(SETTINGS) | changes))


def exhausted() -> jax.errors.JaxRuntimeError:
    return jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.\nmore lines"
    )


# Advice.


@pytest.mark.parametrize(
    ("limit", "value", "need"), [(71, 2, "43.0"), (40, 4, "23.0"), (15, 8, "13.0"), (1, 32, "5.50")]
)
def test_advice_names_the_first_value_that_fits(limit, value, need):
    text = memory.train_advice(SETTINGS, COST, limit * GIB)
    assert "512 x 512, batch 32 on 1 device, needs 83.0 GiB per device" in text
    assert f"a device has {limit:.3g}" in text
    assert "--config.model.remat=True (now False" in text
    # The activations of a part or of a smaller batch are in proportion to its images.
    assert f"--config.accumulation={value} (now 1, would need about {need} GiB" in text
    assert f"--config.batch_size={32 // value} (now 32, would need about {need} GiB" in text
    assert "sharding" not in text  # nothing to share with


def test_advice_is_of_what_is_left_to_change():
    remedies = memory.train_remedies(settings(remat=True, accumulation=4, num_devices=8), COST, 9)
    assert [r.partition(" ")[0] for r in remedies] == ["--config.sharding=fsdp"]
    remedies = memory.train_remedies(
        settings(num_devices=4, accumulation=2, sharding="fsdp"), None, None
    )
    assert [r.partition(" (")[0] for r in remedies] == [
        "--config.model.remat=True", "--config.accumulation=4", "--config.batch_size=16",
    ]  # fmt: skip
    assert "about" not in " ".join(remedies)  # not compiled: nothing to estimate from
    least = settings(remat=True, batch_size=1)
    assert "data.image_size" in memory.train_remedies(least, COST, GIB)[0]


def test_bfloat16_is_for_accelerators(monkeypatch):
    assert "bfloat16" not in memory.train_advice(SETTINGS, COST, GIB)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "dtype=bfloat16 (now float32, would need about 43.0 GiB)" in memory.train_advice(
        SETTINGS, COST, GIB
    )
    assert "bfloat16" not in memory.train_advice(settings(dtype="bfloat16"), COST, GIB)


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "advice"),
    [(8, 1, "--key=4 (now 8)"), (24, 8, "--key=8 (now 24)"), (16, 8, "--key=8 (now 16)"),
     (8, 8, "more devices"), (10, 1, "--key=5 (now 10)")],
)  # fmt: skip
def test_smaller_evaluation_batches(batch_size, num_devices, advice):
    text = memory.batch_advice("the evaluation", "--key", batch_size, num_devices)
    assert text.startswith("the evaluation does not fit") and advice in text


def test_a_state_that_does_not_fit_is_sized():
    state = {"w": np.zeros((2**20,), np.float32)}
    assert "4.00 MiB" in (text := memory.state_advice(state, SETTINGS)) and "fsdp" not in text
    assert "--config.sharding=fsdp" in memory.state_advice(state, settings(num_devices=2))


# Devices.


def test_memory_of_the_least_device_counts(monkeypatch):
    def device(limit):
        stats = {"bytes_limit": limit} if limit else None
        return types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)

    monkeypatch.setattr(jax, "local_devices", lambda: [device(70), device(60)])
    assert memory.available() == 60
    monkeypatch.setattr(jax, "local_devices", lambda: [device(70), device(None)])
    assert memory.available() is None


def test_memory_of_the_host_is_what_the_container_may_use(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nSwapTotal:    1024 kB\n"}
    monkeypatch.setattr(memory, "_read", lambda path: files.get(path, ""))
    whole = memory.host_memory()
    files.clear()
    assert whole - memory.host_memory() == 2**20 < memory.host_memory()
    for path, text, expected in [
        ("memory.max", "max\n", whole - 2**20),
        ("memory.max", "5000\n", 5000),
        ("memory/memory.limit_in_bytes", "4000\n", 4000),
    ]:
        files[f"/sys/fs/cgroup/{path}"] = text
        assert memory.host_memory() == expected
    assert memory.available() == 4000 // jax.local_device_count()


def test_what_is_no_lack_of_memory_passes():
    with pytest.raises(jax.errors.JaxRuntimeError, match="^INTERNAL"), memory.explained(str):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
    with pytest.raises(ValueError), memory.explained(str):
        raise ValueError("RESOURCE_EXHAUSTED")  # Orbax's, of a full disk


# The step.


def scaled_step(num_traces: list):
    def step(state, batch):
        num_traces.append(batch["image"].shape[1:3])
        rows = batch["image"].astype(jnp.float32).sum((1, 3)) @ state["w"]
        return {"w": state["w"] + rows.sum()}, {"loss": rows.sum()}

    return jax.jit(step, donate_argnums=0)


def batch_of(height, width):
    """A batch of host memory; the step of these tests looks at the images alone."""
    others = {name: np.zeros(2, np.float32) for name in INPUTS}
    return others | {"image": np.ones((2, height, width, 3), np.uint8)}


def run_of(*sizes, step=None):
    step = step or scaled_step([])
    return types.SimpleNamespace(train_steps=dict.fromkeys(sizes, step))


@pytest.fixture
def config():
    return support.tiny_config(overrides={"batch_size": 2})


def test_a_step_is_compiled_once_a_size_and_reported_before_it_runs(
    config, log_of_run, monkeypatch
):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    traces, costs = [], {}
    run, state = run_of((6, 8), (4, 8), step=scaled_step(traces)), {"w": jnp.ones((8, 5))}
    programs = prepare.compile_steps(config, run, state, batch_of(4, 8), costs)
    assert traces == [(6, 8), (4, 8)] == list(programs) == list(costs)  # the largest first
    state, metrics = programs[4, 8](before := state, batch_of(4, 8))
    assert before["w"].is_deleted()
    assert metrics["loss"] == 2 * 8 * 5 * 12
    _, metrics = programs[6, 8](state, batch_of(6, 8))
    assert metrics["loss"] == 961 * 2 * 8 * 5 * 18 and len(traces) == 2
    reports = [r.getMessage() for r in log_of_run.records if "memory" in r.getMessage()]
    assert ["6 x 8, batch 2" in reports[0], "4 x 8, batch 2" in reports[1]] == [True, True]
    assert "160 FLOP per step over 1 device" in reports[1]  # [2, 8] times [8, 5]
    assert f"state and batch {160 + 2 * 4 * 8 * 3} B" in reports[1]
    # The loss, and pointers to both results.
    assert "results 180 B (160 B of them in the memory of the old state)" in reports[1]
    assert "% of the " in reports[1]


def test_a_step_that_does_not_fit_is_not_run(config, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(memory, "available", lambda: 300)
    state = {"w": jnp.ones((8, 5))}
    with pytest.raises(memory.OutOfMemory, match=r"4 x 8, batch 2 .*a device has 300 B") as caught:
        prepare.compile_steps(config, run_of((4, 8)), state, batch_of(4, 8), {})
    assert "--config.batch_size=1 (now 2" in str(caught.value)
    assert not state["w"].is_deleted()


def test_memory_that_ends_in_a_step_is_explained(config, tmp_path, monkeypatch, log_of_run):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(memory, "available", lambda: None)

    @jax.jit
    def huge(state, batch):  # what a device says when it has no more, really said
        return jnp.ones((2**44,)) * state["w"][0, 0], batch["image"].sum()

    state, batch = {"w": jnp.ones((8, 5))}, batch_of(4, 8)
    with pytest.raises(memory.OutOfMemory) as caught, explained(config, tmp_path) as costs:
        programs = prepare.compile_steps(config, run_of((4, 8), step=huge), state, batch, costs)
        programs[4, 8](state, batch)
    message = str(caught.value)
    assert "4 x 8, batch 2 on 1 device, needs 64.0 TiB per device. To use less" in message
    assert "(jax: RESOURCE_EXHAUSTED" in message and "\n" not in message
    assert "no checkpoint is saved in" in message
    assert "the device does not report its memory" in log_of_run.text


def test_advice_is_about_the_largest_step(config, tmp_path):
    with pytest.raises(memory.OutOfMemory) as caught, explained(config, tmp_path) as costs:
        costs[4, 8] = dataclasses.replace(COST, temporaries=GIB)
        costs[6, 8] = COST
        costs[2, 8] = dataclasses.replace(COST, temporaries=0)
        raise exhausted()
    assert "6 x 8, batch 2 on 8 devices, needs 83.0 GiB per device" in str(caught.value)


def test_memory_that_ends_in_compilation_is_explained(config, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    def lower():
        raise exhausted()

    traced = types.SimpleNamespace(lower=lower)
    step = types.SimpleNamespace(trace=lambda state, batch: traced)
    expected = pytest.raises(memory.OutOfMemory, match="4 x 8.* is too big.*accumulation=2")
    with expected:
        prepare.compile_steps(config, run_of((4, 8), step=step), {}, batch_of(4, 8), {})


# Whole runs.


def test_a_run_that_does_not_fit_says_so_before_its_first_step(
    drawn_files, tmp_path, monkeypatch, log_of_run
):
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    config = support.short_config(drawn_files)
    with pytest.raises(SystemExit) as ended, runtime.one_line_errors():
        train.train(config, tmp_path / "run")
    message = ended.value.code
    assert message.startswith("error: out of memory: the train step for pictures of 64 x 96")
    assert "--config.model.remat=True" in message and "--config.sharding=fsdp" in message
    assert "no checkpoint is saved in" in message and "--allow_config_change" not in message
    assert "the 1.00 MiB available" in log_of_run.text


def test_an_evaluation_that_does_not_fit_names_its_batch_and_the_checkpoint(
    drawn_files, tmp_path, monkeypatch
):
    def evaluate(*args, **kwargs):
        raise exhausted()

    monkeypatch.setattr(validation, "evaluate", evaluate)
    config = support.short_config(drawn_files, checkpoint__every_steps=2, eval__batch_size=16)
    with pytest.raises(memory.OutOfMemory) as caught:
        train.train(config, tmp_path / "run")
    message = str(caught.value)
    assert "the evaluation does not fit" in message
    assert "--config.eval.batch_size=8 (now 16)" in message
    assert "the last good checkpoint is step 3" in message
    assert "--allow_config_change" in message


def test_one_line_for_memory_of_any_kind():
    for error, text in [
        (exhausted(), "Out of memory while trying"),
        (MemoryError("Unable to allocate 9 GiB"), "Unable to allocate"),
        (MemoryError(), "out of memory"),
    ]:
        with pytest.raises(SystemExit, match=f"error: .*{text}"), runtime.one_line_errors():
            raise error
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), runtime.one_line_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1.00 KiB"), (512, "512 B"), (1536, "1.50 KiB"), (71.2 * GIB, "71.2 GiB"),
     (999 * GIB, "999 GiB"), (10 * GIB, "10.0 GiB")],
)  # fmt: skip
def test_bytes_are_readable(count, text):
    assert cost.readable_bytes(count) == text


def test_operations_are_readable():
    assert cost.readable_flops(24.363e9) == "24.4 GFLOP"
    assert cost.readable_flops(2.96e15) == "2.96 PFLOP"
