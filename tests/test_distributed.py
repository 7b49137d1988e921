"""Several processes: the real command, two of them on this machine, two virtual CPU devices each."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import support

from m2det_jax.checkpoint import open_manager, restore
from m2det_jax.history import read_history

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Small and quick to compile; a BatchNorm is left in the pyramid, so that statistics are global.
MODEL = support.SMALL
STEPS = 18
RUN = MODEL | {
    "epochs": 6.0,  # 3 steps each
    "eval.every_epochs": 3.0,
    "eval.max_detections": 20,
    "log.every_steps": 1,
    "anchors.sizes": (),
}
WALL_CLOCK = {"images_per_second", "data_wait_share"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(folder, name: str, devices: int, arguments) -> subprocess.Popen:
    """Starts python with arguments; its output goes to folder/NAME.log."""
    environment = os.environ | {
        # Optimising the compiled code takes longer than running it.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(REPOSITORY),
    }
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def train(files, workdir, name, devices, *flags) -> subprocess.Popen:
    data = {f"data.{key}_csv": file for key, file in files._asdict().items()}
    keys = [f"--config.{key}={value}" for key, value in (RUN | data).items()]
    command = ["-m", "m2det_jax.main", "--config", "vgg512", "--workdir", workdir, *keys, *flags]
    return start(workdir.parent, name, devices, command)


def train_two(files, workdir, *flags) -> list[subprocess.Popen]:
    port = free_port()
    return [
        train(
            files, workdir, f"{workdir.name}_{i}", 2,
            f"--config.distributed.coordinator=localhost:{port}",
            "--config.distributed.num_processes=2", f"--config.distributed.process_id={i}", *flags,
        )
        for i in range(2)
    ]  # fmt: skip


def output(workdir, process: int) -> str:
    return (workdir.parent / f"{workdir.name}_{process}.log").read_text()


def ends(processes, workdir, limit: float = 240.0) -> list[int]:
    """Waits for all processes; returns their exit statuses."""
    deadline = time.monotonic() + limit
    try:
        return [process.wait(max(1.0, deadline - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail("\n".join(output(workdir, i)[-3000:] for i in range(len(processes))))
    finally:
        for process in processes:
            process.kill()


def wait_for_step(processes, workdir, step: int, limit: float = 240.0) -> None:
    """Waits until the history has a step; fails where a process ends before."""
    deadline = time.monotonic() + limit
    while not any(record["step"] >= step for record in read_history(workdir)):
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            for process in processes:
                process.kill()
            pytest.fail("\n".join(output(workdir, i)[-3000:] for i in range(len(processes))))
        time.sleep(0.02)


def steps_saved(workdir) -> list[int]:
    with open_manager(workdir, read_only=True) as manager:
        return sorted(manager.all_steps())


@pytest.fixture(scope="module")
def alone(drawn_files, tmp_path_factory):
    """Workdir of a run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "alone"
    process = train(drawn_files, workdir, "alone_0", 4)
    assert ends([process], workdir) == [0], output(workdir, 0)[-3000:]
    return workdir


@pytest.fixture(scope="module")
def together(drawn_files, tmp_path_factory):
    """A run of two processes, ended by SIGTERM to the second, and started again.

    (workdir, exit statuses and outputs of both starts, pids of the processes 0).
    """
    workdir = tmp_path_factory.mktemp("together") / "together"
    starts = []
    for stopping in (True, False):
        processes = train_two(drawn_files, workdir)
        if stopping:
            wait_for_step(processes, workdir, 3)
            processes[1].send_signal(signal.SIGTERM)
        statuses = ends(processes, workdir)
        starts.append((statuses, [output(workdir, i) for i in range(2)], processes[0].pid))
    return workdir, starts


def test_sigterm_to_one_process_stops_both_at_the_same_saved_step(together):
    _, [(statuses, outputs, _), _] = together
    assert statuses == [128 + signal.SIGTERM] * 2, outputs[0][-3000:] + outputs[1][-3000:]
    steps = {re.findall(r"SIGTERM: step (\d+) is saved", text)[0] for text in outputs}
    assert len(steps) == 1 and 3 <= int(steps.pop()) < STEPS


def test_the_same_command_goes_on_from_there(together):
    workdir, [(_, stopped, _), (statuses, outputs, _)] = together
    assert statuses == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    step = re.findall(r"SIGTERM: step (\d+) is saved", stopped[0])[0]
    assert f"resuming from step {step} of" in outputs[0]
    assert steps_saved(workdir)[-1] == STEPS


def test_two_processes_train_and_evaluate_like_one(alone, together):
    workdir, _ = together
    expected, found = read_history(alone), read_history(workdir)
    assert [set(record) for record in found] == [set(record) for record in expected]
    assert sum("val_AP" in record for record in found) == 2
    for one, two in zip(expected, found, strict=True):
        for name in one.keys() - WALL_CLOCK:
            # Two processes add up in another order. That is 1e-7 in a sum, and the network
            # multiplies it: the norm of its gradient first.
            tolerance = {"grad_norm": 5e-2, "num_positives": 0}.get(name, 1e-3)
            np.testing.assert_allclose(
                two[name], one[name], rtol=tolerance, atol=2e-3, err_msg=f"{one['step']} {name}"
            )


def test_two_processes_end_with_the_weights_of_one(alone, together):
    expected, found = restore(alone).variables, restore(together[0]).variables
    largest = 0.0
    for one, two in zip(support.leaves(expected), support.leaves(found), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-2, atol=1e-3)
        largest = max(largest, float(np.abs(one).max()))
    assert largest > 0.1


def test_only_the_first_process_writes(together):
    workdir, starts = together
    writers = [path.name.split(".")[-1] for path in (workdir / "tensorboard").glob("events*")]
    assert sorted(writers) == sorted(str(pid) for _, _, pid in starts)
    trained = [r["step"] for r in read_history(workdir) if "loss" in r]
    assert trained == list(range(1, STEPS + 1))
    assert (workdir / "train_samples.png").exists()
    for _, (first, second), _ in starts:
        assert "parameters:" in first and "parameters:" not in second


def test_every_process_that_is_left_ends_when_one_dies(drawn_files, tmp_path):
    workdir = tmp_path / "died"
    processes = train_two(drawn_files, workdir, "--config.epochs=100000.0",
                          "--config.distributed.heartbeat_seconds=10")  # fmt: skip
    wait_for_step(processes, workdir, 2)
    killed = time.monotonic()
    processes[1].kill()
    status = ends(processes, workdir)[0]
    text = output(workdir, 0)
    # Ours where a computation fails, jax's own where its heartbeat is the first to tell.
    assert status in (1, -signal.SIGABRT), text[-3000:]
    assert "most likely another one has ended" in text or "another task died" in text, text[-3000:]
    assert time.monotonic() - killed < 60
