"""Trackers of experiments, W&B, MLflow and trackio: they get the scalars that the history gets.

Each tracker has a process of its own, which alone imports its package. What a package prints, its
threads, its signal handlers and what it does at exit stay out of the process that trains, and no
step waits for a network. A tracker that fails is switched off with one line in the log.

    workdir/trackers/NAME.json   id of the tracker's run, and the last step that was sent

A resumed run continues the same run of the tracker, and a step that was sent is not sent again.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from m2det_jax.errors import InputError

log = logging.getLogger("m2det_jax")

PROJECT = "m2det_jax"  # where the tracker's environment variable names no other
MOST_WAITING = 1000  # records that wait for a slow tracker, before it is switched off
CLOSE_SECONDS = 30.0  # that the end of a run waits for all trackers together


def refuse_missing(names: Iterable[str]) -> None:
    """Raises InputError if the package of a tracker is not installed; to be called before training.

    Args:
        names: the trackers, which have the names of their packages.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # W&B leaves a folder "wandb", which is no package
            raise InputError(
                f"config.log.trackers names {name!r}, which is not installed; install it with: "
                f"pip install 'm2det_jax[{name}]'"
            )


class Trackers:
    """The trackers of a run; to be used in a `with` statement, which starts and ends them.

    Args:
        names: of "wandb", "mlflow" and "trackio"; (): every method does nothing.
        workdir: folder of the run; its name becomes the name of the tracker's run.
        config: the keys of the config with their values, flat, as JSON values.
        start_step: step of the checkpoint that is resumed; 0 starts a new run of the tracker.
    """

    def __init__(
        self,
        names: Iterable[str],
        workdir: str | os.PathLike,
        config: Mapping[str, Any],
        start_step: int = 0,
    ) -> None:
        folder = pathlib.Path(workdir).absolute()
        start = {"workdir": str(folder), "config": dict(config), "step": int(start_step)}
        self._clients = [_Client(name, start) for name in names]

    def __enter__(self) -> "Trackers":
        for client in self._clients:
            client.start()
        return self

    def write(self, step: int, scalars: Mapping[str, int | float]) -> None:
        """Hands finite scalars of a step over; never waits, and never raises an error."""
        for client in self._clients:
            client.send({"step": step, "scalars": dict(scalars)})

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        """Ends the runs of the trackers, as failed if an error is under way."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for client in self._clients:
            client.send({"ended": "well" if kind is None else "failed"})
        for client in self._clients:
            client.join(deadline)


class _Failed(Exception):
    """A tracker does not work; the text says why."""


class _Client:
    """The process of one tracker, and the thread that talks to it."""

    def __init__(self, name: str, start: dict[str, Any]) -> None:
        self._name, self._off = name, False
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue(MOST_WAITING)
        self._messages.put(start)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        if self._off:
            return
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            self._switch_off(f"it does not keep up, {MOST_WAITING} records wait for it")

    def join(self, deadline: float) -> None:
        """Waits for the end of the process, which is killed at the deadline (time.monotonic)."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._switch_off(f"it does not end within {CLOSE_SECONDS:g} seconds")

    def _work(self) -> None:
        try:
            with _start_process(self._name) as process:  # waits for its end
                self._process = process
                if self._off:  # meanwhile
                    self._kill()
                try:
                    self._talk(process)
                except (_Failed, OSError, ValueError) as error:
                    self._switch_off(str(error))
        except OSError as error:
            self._switch_off(str(error))

    def _talk(self, process: subprocess.Popen[str]) -> None:
        message: dict[str, Any] = {}
        while "ended" not in message:
            message = self._messages.get()
            if said := self._ask(process, message):
                log.info("%s: %s", self._name, said)

    def _ask(self, process: subprocess.Popen[str], message: dict[str, Any]) -> str:
        """Sends a message, and returns what the tracker has to say about it; "": nothing."""
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):  # its end is told below
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise _Failed(f"its process ended with status {process.wait()}")
        found = json.loads(answer)
        if "error" in found:
            raise _Failed(found["error"])
        return found["said"]

    def _switch_off(self, reason: str) -> None:
        with self._lock:
            if self._off:
                return
            self._off = True
        log.warning(
            "tracker %s is switched off: %s; the run goes on without it", self._name, reason
        )
        self._kill()

    def _kill(self) -> None:
        """Ends the process and those that it started."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _start_process(name: str) -> "subprocess.Popen[str]":
    root = str(pathlib.Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "m2det_jax.run.trackers", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,  # Ctrl-C in the terminal is not for it
    )


# What follows runs in the process of a tracker.


class _Service(Protocol):
    """A run of a tracker.

    Args:
        name: for people.
        run: id of the run.
        folder: for files.
        config: flat.
        new: the run does not exist yet.
    """

    def __init__(self, name: str, run: str, folder: str, config: dict, new: bool) -> None: ...

    def said(self) -> str:
        """Returns where to find the run."""

    def write(self, step: int, scalars: dict[str, int | float]) -> None:
        """Stores the scalars of a step."""

    def close(self, well: bool) -> None:
        """Ends the run."""


class _Wandb:
    def __init__(self, name: str, run: str, folder: str, config: dict, new: bool) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or name,
            id=run,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or folder,
            config=config,
            settings=wandb.Settings(console="off"),
        )
        # A step of its own: W&B's counter refuses the evaluation of a step after a resume.
        self._run.define_metric("*", step_metric="step")

    def said(self) -> str:
        if self._run.url:
            return self._run.url
        return f"offline; `wandb sync {pathlib.Path(self._run.dir).parent}` uploads it"

    def write(self, step: int, scalars: dict[str, int | float]) -> None:
        self._run.log({"step": step, **scalars})

    def close(self, well: bool) -> None:
        self._run.finish(exit_code=0 if well else 1)


class _Mlflow:
    _TAG = "m2det_jax.run"

    def __init__(self, name: str, run: str, folder: str, config: dict, new: bool) -> None:
        import mlflow
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        own = f"sqlite:///{folder}/mlflow.db"
        self._place = "the server" if uri else f"`mlflow ui --backend-store-uri {own}`"
        self._client = client = mlflow.MlflowClient(uri or own)
        experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = client.get_experiment_by_name(experiment_name)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            place = None if uri else pathlib.Path(folder, "mlartifacts").as_uri()
            experiment_id = client.create_experiment(experiment_name, artifact_location=place)
        found = [] if new else client.search_runs([experiment_id], f"tags.`{self._TAG}` = '{run}'")
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return
        created = client.create_run(experiment_id, run_name=name, tags={self._TAG: run})
        self._id = created.info.run_id
        params = [Param(key, str(value)[:500]) for key, value in config.items()]
        for first in range(0, len(params), 100):  # as many as one request may have
            client.log_batch(self._id, params=params[first : first + 100])

    def said(self) -> str:
        return f"run {self._id}; {self._place} shows it"

    def write(self, step: int, scalars: dict[str, int | float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, well: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if well else "FAILED")


class _Trackio:
    def __init__(self, name: str, run: str, folder: str, config: dict, new: bool) -> None:
        import trackio

        self._project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        self._name = f"{name}-{run}"  # the name is what trackio knows a run by
        self._run = trackio.init(
            project=self._project, name=self._name, config=config, resume="allow", embed=False
        )

    def said(self) -> str:
        return f"run {self._name}; `trackio show --project {self._project}` opens it"

    def write(self, step: int, scalars: dict[str, int | float]) -> None:
        self._run.log(scalars, step=step)

    def close(self, well: bool) -> None:
        self._run.finish()


_SERVICES: dict[str, type[_Service]] = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


class _Session:
    """A run of a tracker that knows what was sent, also before the run was resumed."""

    def __init__(self, name: str, start: dict[str, Any]) -> None:
        workdir = pathlib.Path(start["workdir"])
        self._path = workdir / "trackers" / f"{name}.json"
        before = self._read()
        # "id", and the last "training" and "validation" step
        self._notes: dict[str, Any] = {"id": uuid.uuid4().hex[:12]}
        if resumed := bool(before and start["step"]):
            self._notes |= before or {}
        self._path.parent.mkdir(exist_ok=True)
        self.service = _SERVICES[name](
            workdir.name,
            self._notes["id"],
            str(self._path.parent),
            start["config"],
            not resumed,
        )
        self._store()

    def write(self, step: int, scalars: dict[str, int | float]) -> None:
        kind = "validation" if any(name.startswith("val_") for name in scalars) else "training"
        if step > self._notes.get(kind, -math.inf):
            self.service.write(step, scalars)
            self._notes[kind] = step
            self._store()

    def _read(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        with contextlib.suppress(ValueError):
            found = json.loads(self._path.read_text())
            if isinstance(found, dict) and "id" in found:
                return found
        raise InputError(f"{self._path}: not written by this program; move it away")

    def _store(self) -> None:
        beside = self._path.with_name(f".{self._path.name}.partial")
        beside.write_text(json.dumps(self._notes) + "\n")
        beside.replace(self._path)


def serve(name: str) -> None:
    """Answers the messages of a run: a start, records, and the end. Each answer is one JSON line.

    Args:
        name: the tracker.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the run saves its state first, and then says so
    messages, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # no question to the user
    os.dup2(nothing, 1)
    session: _Session | None = None
    for line in messages:
        message, said = json.loads(line), ""
        try:
            if session is None:
                session = _Session(name, message)
                said = session.service.said()
            elif "ended" in message:
                session.service.close(message["ended"] == "well")
            else:
                session.write(message["step"], message["scalars"])
        except (Exception, SystemExit) as error:  # whatever a package raises
            text = " ".join(str(error).split())[:300]
            answer = {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}
        else:
            answer = {"said": said}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer or "ended" in message:
            return
    if session is not None:  # the run was killed
        session.service.close(False)


if __name__ == "__main__":
    serve(sys.argv[1])
