"""Several processes: the real command, two on this machine with two virtual devices each."""

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
from jax._src import clusters, distributed

from m2det_jax import runtime
from m2det_jax.run import devices
from m2det_jax.run.checkpoint import open_manager
from m2det_jax.run.history import read_history
from m2det_jax.trained import restore

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
    page = (workdir / "report.html").read_text(
        encoding="utf-8"
    )  # of the start that came to the end
    assert f"<dd>step {STEPS}</dd>" in page
    assert "report: " not in starts[0][1][0] and "report: " in starts[1][1][0]
    assert "report: " not in starts[1][1][1]
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


SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[07-09],other1",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.fixture
def joined(monkeypatch):
    """What jax would connect with, instead of connecting: a list of keyword arguments."""
    found = []
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "JAX_LOCAL_DEVICE")):
            monkeypatch.delenv(name)

    def initialize(coordinator, count, process, local, method, timeout, *args, **kwargs):
        if method != "deactivate":
            coordinator, count, process, local = (
                clusters.ClusterEnv.auto_detect_unset_distributed_params(
                    coordinator, count, process, local, method, timeout
                )
            )
        if coordinator is None:
            raise ValueError("coordinator_address should be defined.")
        found.append((coordinator, count, process, local))

    # Only what would wait for other processes; detection is jax's own.
    monkeypatch.setattr(distributed.global_state, "initialize", initialize)
    monkeypatch.setattr(distributed.xla_bridge, "backends_are_initialized", lambda: False)
    return found


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, (f"node07:{4711 % 4096 + 61440}", 3, 2, [0])),
        (OPEN_MPI, (f"10.96.0.1:{1314521088 // 4096 % 4096 + 61440}", 3, 1, [1])),
    ],
)
def test_auto_asks_the_environment_of_the_cluster(environment, expected, joined, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    devices.join_cluster("auto")
    assert joined == [expected]


def test_a_given_coordinator_is_not_mixed_with_the_cluster(joined, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    devices.join_cluster("host0:1234", 2, 1)
    assert joined == [("host0:1234", 2, 1, None)]  # all devices of the host


def test_auto_without_a_cluster_is_refused(joined):
    with pytest.raises(ValueError, match=r"cannot join .*'auto'.*HOST:PORT"):
        devices.join_cluster("auto")
    for count, process in ((0, 0), (2, 2), (2, -1)):
        with pytest.raises(ValueError, match=f"num_processes={count}, process_id={process}"):
            devices.join_cluster("host0:1234", count, process)
    assert joined == []


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_that_do_not_know_of_each_other_are_refused(name, joined, monkeypatch):
    monkeypatch.setenv(name, "8")
    with pytest.raises(ValueError, match=f"one of 8 processes.*{name}=8.*coordinator=auto"):
        devices.join_cluster("")
    with pytest.raises(ValueError, match=r"one of 8 processes.*--ntasks=1.*docs/clusters\.md"):
        runtime.start()  # evaluate, predict, check, convert
    monkeypatch.setenv(name, "1")
    devices.join_cluster("")
    assert joined == []


# Every process runs it: what devices.py does for several of them.
PROGRAM = """
import sys
import jax, numpy as np
from m2det_jax import runtime
from m2det_jax.run import devices

def verb():
    port, index = int(sys.argv[1]), int(sys.argv[2])
    devices.join_cluster(f"localhost:{port}", 2, index)
    assert (jax.process_index(), jax.device_count()) == (index, 4)
    replicated, by_batch = devices.data_mesh()
    assert int(devices.start_maximum(index * 15)) == 15
    tree = {"odd": np.arange(3.0), "even": np.arange(8192.0).reshape(1024, 8)}
    split = devices.state_sharding(tree, replicated, "fsdp")
    placed = devices.place(tree, split)
    assert placed["even"].addressable_shards[0].data.shape == (256, 8)
    for name, found in devices.fetch(placed).items():
        assert np.array_equal(found, tree[name]), name
    batch = devices.put_batch({"x": np.full((2, 1), index)}, by_batch)
    assert devices.fetch(batch)["x"].ravel().tolist() == [0, 0, 1, 1]
    devices.refuse_unlike("the weather", "fine")
    print("agreed", flush=True)
    if sys.argv[3] == "unlike":
        devices.refuse_unlike("the config", f"seed {index}")
    if index == 1:
        raise OSError("no more disk")
    devices.fetch(batch)  # never comes back
    jax.block_until_ready(devices.start_maximum(0))

with runtime.one_line_errors():
    verb()
"""


@pytest.mark.parametrize("what", ["unlike", "alone"])
def test_processes_end_with_what_they_know(what, tmp_path):
    port = free_port()
    workdir = tmp_path / "cluster"
    processes = [
        start(tmp_path, f"cluster_{i}", 2, ["-c", PROGRAM, port, i, what]) for i in range(2)
    ]
    begin = time.monotonic()
    statuses = ends(processes, workdir)
    texts = [output(workdir, i) for i in range(2)]
    assert all("agreed" in text for text in texts), texts
    if what == "unlike":
        assert statuses == [1, 1], texts
        for text in texts:
            assert "error: the config of process 1 differs from that of process 0" in text
    else:
        assert statuses[1] == 1 and "error: no more disk" in texts[1]
        assert statuses[0] != 0
    assert time.monotonic() - begin < 200


# One process late: before it looks at the checkpoints, or while it lists them.
RECORD = """
import sys, time
import jax, jax.numpy as jnp
port, index, late, workdir = sys.argv[1:]
index = int(index)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
from m2det_jax.run import checkpoint, devices
from m2det_jax.run.state import TrainState

where, _ = devices.data_mesh()
with checkpoint.open_manager(workdir, keep_latest=1) as manager:
    for step in (1, 2, 3):
        tree = devices.place({"a": jnp.ones(3)}, where)
        state = TrainState(jnp.int32(step), tree, tree, tree, tree, tree)
        state = devices.place(state, where)
        checkpoint.save(manager, state, tree, {"progress": {}})
        if late == "record" and index == 1:
            time.sleep(1.5)
        if late == "reload" and index == 1:
            reload = type(manager).reload
            type(manager).reload = lambda self: (time.sleep(1.5), reload(self))[1]
        checkpoint.record_evaluation(manager, step, {"AP": 1.0 / step})
        if late == "reload" and index == 1:
            type(manager).reload = reload
        checkpoint.drop_old(manager, 1)
        devices.wait_for_all(f"step {step}")
    print("kept", sorted(manager.all_steps()), manager.best_step(), flush=True)
"""


@pytest.mark.parametrize("late", ["record", "reload"])
def test_a_process_that_is_late_with_an_evaluation_blocks_nobody(late, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", RECORD, port]
    processes = [
        subprocess.Popen([*command, str(i), late, str(tmp_path)], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(2)
    ]  # fmt: skip
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for out, error in ended:
        assert "kept [1, 3] 1" in out, error[-3000:]
