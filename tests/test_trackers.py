"""Trackers get the history once, whatever becomes of them; the run does not notice.

The packages themselves are not installed by `make test`: stand-ins fail in their places. `make
test-trackers` installs them, and the last tests use them without a network.
"""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import support

from m2det_jax.config import resolve
from m2det_jax.config.keys import TRACKERS
from m2det_jax.run import trackers
from m2det_jax.run.history import History, read_history
from m2det_jax.run.trackers import Trackers
from m2det_jax.train import train
from m2det_jax.training.resume import Start, open_progress
from m2det_jax.training.step import IntervalMetrics

# As much of W&B as the adapter uses; each call is noted in calls.jsonl beside the module.
STAND_IN = """
import json, os, pathlib, signal, sys, time
print("welcome")  # on stdout, which belongs to the document of --json
signal.signal(signal.SIGTERM, signal.SIG_DFL)

def note(**call):
    with open(pathlib.Path(__file__).with_name("calls.jsonl"), "a") as file:
        file.write(json.dumps(call) + "\\n")
    if call["call"] == os.environ.get("FAIL"):
        {action}

def Settings(**settings):
    return settings

class Run:
    url = "https://tracker.example/run"

    def define_metric(self, name, step_metric):
        note(call="define", name=name, step=step_metric)

    def log(self, scalars):
        note(call="log", **scalars)

    def finish(self, exit_code):
        note(call="finish", status=exit_code)

def init(**arguments):
    note(call="init", **arguments)
    return Run()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a stand-in for W&B on the path; returns a function that makes a call of it fail."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))

    def put(fail: str = "", action: str = "raise ValueError('no\\nnetwork')"):
        (folder / "wandb.py").write_text(STAND_IN.replace("{action}", action))
        monkeypatch.setenv("FAIL", fail)
        return folder / "calls.jsonl"

    return put


def calls(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(workdir, steps, start_step=0, names=("wandb",), **kwargs) -> None:
    """Writes a history with a loss at each step, and an AP at every third."""
    with (
        Trackers(names, workdir, {"seed": 3, "data.mean": (1.0, 2.0)}, start_step) as found,
        History(workdir, start_step, trackers=found, **kwargs) as history,
    ):
        for step in steps:
            history.write(step, {"loss": 10.0 / step, "bad": float("nan")})
            if step % 3 == 0:
                history.write(step, {"val_AP": step / 10})


def test_a_tracker_gets_what_the_history_gets(tmp_path, stand_in, log_of_run, capfd):
    path = stand_in()
    record(tmp_path / "mine", [1, 2, 3])
    first, second, *logs, last = calls(path)
    assert (first["call"], first["name"], first["resume"]) == ("init", "mine", "allow")
    assert first["config"] == {"seed": 3, "data.mean": [1.0, 2.0]}
    assert first["settings"]["console"] == "off"
    assert second == {"call": "define", "name": "*", "step": "step"}
    assert logs == [
        {"call": "log", "step": 1, "loss": 10.0},
        {"call": "log", "step": 2, "loss": 5.0},
        {"call": "log", "step": 3, "loss": 10 / 3},
        {"call": "log", "step": 3, "val_AP": 0.3},
    ]
    assert last == {"call": "finish", "status": 0}
    assert "wandb: https://tracker.example/run" in log_of_run.text
    assert "switched off" not in log_of_run.text
    assert capfd.readouterr().out == ""


def test_a_resumed_run_goes_on_and_sends_nothing_twice(tmp_path, stand_in):
    path = stand_in()
    record(tmp_path, [1, 2, 3, 4])
    record(tmp_path, [3, 4, 5], start_step=2)  # killed after step 4, saved at step 2
    found = calls(path)
    ids = [call["id"] for call in found if call["call"] == "init"]
    assert len(ids) == 2 and len(set(ids)) == 1
    sent = [(c["step"], "loss" in c) for c in found if c["call"] == "log"]
    assert sent == [(1, True), (2, True), (3, True), (3, False), (4, True), (5, True)]
    record(tmp_path, [1])  # a run that starts over is another one
    ids += [call["id"] for call in calls(path)[-4:] if call["call"] == "init"]
    assert len(set(ids)) == 2
    assert calls(path)[-2]["step"] == 1


def test_an_error_of_the_run_is_told(tmp_path, stand_in):
    path = stand_in()
    with pytest.raises(KeyError), Trackers(("wandb",), tmp_path, {}):
        raise KeyError
    assert calls(path)[-1] == {"call": "finish", "status": 1}


def switched_off(log) -> str:
    """Returns why a tracker was switched off; there is one such line."""
    lines = [r.getMessage() for r in log.records if "switched off" in r.getMessage()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("tracker wandb is") and "\n" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("fail", ["init", "log", "finish"])
@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("raise ValueError('no\\nnetwork')", "ValueError: no network"),
        ("sys.exit('gave up')", "SystemExit: gave up"),
        ("os._exit(3)", "its process ended with status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its process ended with status -9"),
    ],
)
def test_a_tracker_that_fails_is_switched_off(
    fail, action, reason, tmp_path, stand_in, warnings_of_run
):
    stand_in(fail, action)
    record(tmp_path, [1, 2, 3])
    assert f": {reason}; the run goes on" in switched_off(warnings_of_run)
    assert [r["step"] for r in read_history(tmp_path)] == [1, 2, 3, 3]


@pytest.mark.parametrize("fail", ["init", "log", "finish"])
def test_a_tracker_that_hangs_delays_nothing_but_the_end(
    fail, tmp_path, stand_in, warnings_of_run, monkeypatch
):
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 2.0)
    path = stand_in(fail, "note(call='pid', pid=os.getpid()); time.sleep(600)")
    begin = time.monotonic()
    with Trackers(("wandb",), tmp_path, {}) as found:
        for step in range(1, 200):
            found.write(step, {"loss": 1.0})
        assert time.monotonic() - begin < 1
    assert time.monotonic() - begin < 10
    assert "does not end within 2 seconds" in switched_off(warnings_of_run)
    process = next(call["pid"] for call in calls(path) if call["call"] == "pid")
    until(lambda: has_ended(process))


def until(condition) -> None:
    """Waits for a condition, 20 seconds at most."""
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come true")


def has_ended(process: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_a_tracker_that_does_not_keep_up_is_switched_off(
    tmp_path, stand_in, warnings_of_run, monkeypatch
):
    monkeypatch.setattr(trackers, "MOST_WAITING", 20)
    stand_in("init", "time.sleep(600)")
    record(tmp_path, range(1, 31))
    assert "20 records wait for it" in switched_off(warnings_of_run)
    assert len(read_history(tmp_path)) == 40


def test_a_file_of_the_user_stays(tmp_path, stand_in, warnings_of_run):
    stand_in()
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "wandb.json").write_text("mine")
    record(tmp_path, [1])
    assert "wandb.json: not written by this program" in switched_off(warnings_of_run)
    assert (tmp_path / "trackers" / "wandb.json").read_text() == "mine"


def test_signals_to_all_processes_do_not_end_a_tracker_before_the_run(tmp_path, stand_in):
    """SLURM sends SIGTERM to every process of a job."""
    path = stand_in()
    text = (path.parent / "wandb.py").read_text()
    text = text.replace("signal.signal(signal.SIGTERM, signal.SIG_DFL)", "")
    (path.parent / "wandb.py").write_text(text + "\nnote(call='pid', pid=os.getpid())\n")
    with Trackers(("wandb",), tmp_path, {}) as found:
        until(lambda: path.exists() and len(calls(path)) == 3)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(calls(path)[0]["pid"], number)
        found.write(1, {"loss": 1.0})
    assert [call["call"] for call in calls(path)[-2:]] == ["log", "finish"]


def test_a_run_that_is_killed_leaves_no_process_and_ends_as_failed(tmp_path, stand_in):
    path = stand_in()
    program = (
        "import os, signal, sys, time\n"
        "from m2det_jax.run.trackers import Trackers\n"
        "with Trackers(('wandb',), sys.argv[1], {}) as found:\n"
        "    found.write(1, {'loss': 1.0})\n"
        "    while not os.path.exists(sys.argv[2]) or 'loss' not in open(sys.argv[2]).read():\n"
        "        time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(path)], check=False)
    until(lambda: calls(path)[-1]["call"] == "finish")
    assert calls(path)[-1] == {"call": "finish", "status": 1}


def test_a_missing_package_is_an_error_before_training(tmp_path, drawn_files, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as W&B leaves it: no package
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in TRACKERS:
        if importlib.util.find_spec(name) and importlib.util.find_spec(name).origin:
            continue
        config = support.short_config(drawn_files, log__trackers=(name,))
        with pytest.raises(ValueError, match=rf"pip install 'm2det_jax\[{name}\]'"):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [("wandbb",), ("wandb", "wandb"), (3,)])
def test_unknown_trackers_are_refused(value, drawn_files):
    with pytest.raises(ValueError, match=r"config\.log\.trackers="):
        resolve(support.short_config(drawn_files, log__trackers=value))


def test_without_trackers_nothing_is_started_or_written(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    record(tmp_path, [1, 2], names=())
    assert not (tmp_path / "trackers").exists()


def test_a_run_reports_to_its_tracker_and_goes_on_after_a_resume(tmp_path, tiny_run, stand_in):
    path = stand_in()
    config = support.changed(tiny_run.config, log__trackers=("wandb",))
    for step in (0, 2):
        start = Start(step, False, False, IntervalMetrics.empty(), {"nonfinite_steps": 0})
        with open_progress(config, tiny_run.run, start, tmp_path / "run") as progress:
            progress.history.write(step + 1, {"loss": 1.0})
    begun, _, *_, again, _, last, _ = calls(path)
    assert begun["config"]["batch_size"] == 8 and begun["name"] == "run"
    assert begun["id"] == again["id"] and last["step"] == 3


# The packages themselves, without a network.
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "http_proxy": "http://127.0.0.1:9",  # where nothing answers
    "https_proxy": "http://127.0.0.1:9",
}
OF_THE_USER = (
    "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT", "TRACKIO_SERVER_URL",
    "TRACKIO_SPACE_ID", "WANDB_DIR", "WANDB_NAME", "WANDB_PROJECT",
)  # fmt: skip


@pytest.mark.parametrize("name", TRACKERS)
def test_the_package_itself_stores_every_step_once(
    name, tmp_path, monkeypatch, warnings_of_run, capfd
):
    required = os.environ.get("M2DET_REQUIRE_TRACKERS")
    if not required and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; `make test-trackers` has it")
    for variable, value in (OFFLINE | {"TRACKIO_DIR": str(tmp_path / "trackio")}).items():
        monkeypatch.setenv(variable, value)
    for variable in OF_THE_USER:
        monkeypatch.delenv(variable, raising=False)
    workdir = tmp_path / "mine"
    record(workdir, [1, 2, 3, 4], names=(name,))
    record(workdir, [3, 4, 5, 6], start_step=2, names=(name,))  # saved at 2, killed after 4
    assert not warnings_of_run.records and capfd.readouterr().out == ""
    program = [sys.executable, "-W", "ignore", "tests/trackers_stored.py", name, str(workdir)]
    root = pathlib.Path(__file__).parent.parent
    stored = json.loads(subprocess.check_output(program, cwd=root).splitlines()[-1])
    assert stored["runs"] == 1
    assert str(stored["config"]["seed"]) == "3" and "data.mean" in stored["config"]
    assert stored["points"] == {
        "loss": [[step, 10.0 / step] for step in range(1, 7)],
        "val_AP": [[3, 0.3], [6, 0.6]],
    }
