"""Faults for benchmarks.fault_storm: a running training command, moments, and faults. Linux only.

The command runs in its own session. The id of the session identifies all processes that it leaves.
"""

import contextlib
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from m2det_jax.run.checksums import finished_steps, step_folder

PATIENCE = 300  # seconds; a command that takes longer for anything counts as hanging
ENDING = 15  # seconds for the other processes to end after the first one was killed


class Training:
    """A running training command: its process, its log, and all processes of its session."""

    def __init__(self, command: list[str], environment: dict[str, str], log: pathlib.Path) -> None:
        self.log = log
        log.touch()
        # Through a pipe, so that a limit on the command's files does not affect the log.
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        self._reader = threading.Thread(target=self._copy, daemon=True)
        self._reader.start()

    def _copy(self) -> None:
        with self.log.open("wb", buffering=0) as file, self.process.stdout as pipe:
            while block := pipe.read1():
                file.write(block)

    @property
    def text(self) -> str:
        """All output so far."""
        return self.log.read_text(errors="replace")

    def wait_until(self, happened: Callable[[], object]) -> bool:
        """Waits until `happened` returns a true value; returns False if the command ends before.

        Raises:
            TimeoutError: if neither happens within PATIENCE seconds.
        """
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if happened():
                return True
            if self.process.poll() is not None:
                return bool(happened())
            time.sleep(0.002)
        self.kill_all()
        raise TimeoutError(f"nothing happened for {PATIENCE} s:\n{self.text[-2000:]}")

    def resumed_from(self) -> int | None:
        """Returns the step from which it resumed, 0 for a new run; None if not known yet."""
        if found := re.search(r"resuming from step (\d+)", self.text):
            return int(found[1])
        return 0 if "augmented training pictures" in self.text else None

    def steps_seen(self) -> int:
        """Returns the last step in the log."""
        return max([0, *map(int, re.findall(r"step (\d+)/\d+  loss", self.text))])

    def members(self) -> list[int]:
        """Returns the process ids of its session that are alive."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has ended in the meantime
                continue
            if int(session) == self.process.pid and state not in "ZX":
                found.append(int(path.parent.name))
        return found

    def workers(self) -> list[int]:
        """Returns the process ids of its data loader."""

        def is_worker(pid: int) -> bool:
            try:
                return b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                return False

        return [pid for pid in self.members() if pid != self.process.pid and is_worker(pid)]

    def end(self) -> tuple[int, list[int]]:
        """Waits for the end; returns (exit status, ids of the processes that did not end)."""
        self.wait_until(lambda: self.process.poll() is not None)
        end = time.monotonic() + ENDING
        while (left := self.members()) and time.monotonic() < end:
            time.sleep(0.01)
        self.kill_all()
        self._reader.join(ENDING)
        return self.process.wait(), left

    def kill_all(self) -> None:
        """Kills all processes of its session."""
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)


MOMENTS = ("starting", "compiling", "stepping", "saving", "evaluating")


def wait_for(moment: str, training: Training, workdir: pathlib.Path, draw: random.Random) -> bool:
    """Waits for a moment, and then a random time; returns False if the command ends before.

    Args:
        moment: one of MOMENTS.
        training: the running command.
        workdir: its workdir.
        draw: source of random numbers.
    """
    wanted = draw.randint(1, 3)

    def evaluates() -> bool:
        # The step is saved, or is being saved, and not yet evaluated.
        folders = [f for step in (6, 12) for f in (workdir / "checkpoints").glob(f"{step}*")]
        return any(not (folder / "metrics" / "metrics").is_file() for folder in folders)

    def happens() -> bool:
        if moment == "saving":
            return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))
        if moment == "compiling":
            return training.resumed_from() is not None
        if moment == "stepping":
            return len(re.findall(r"step \d+/\d+  loss", training.text)) >= wanted
        return "devices:" in training.text if moment == "starting" else evaluates()

    came = training.wait_until(happens)
    longest = {"starting": 2.0, "compiling": 3.0, "stepping": 0.5, "saving": 0.15}.get(moment, 0.6)
    time.sleep(draw.uniform(0, longest))
    return came and training.process.poll() is None


SIGNALS = ("kill", "SIGTERM", "SIGINT", "twice", "worker")
DISK = ("disk full", "file size")
DAMAGE = ("truncated", "flipped", "deleted", "emptied")
IMAGE = "val image"
KINDS = (*SIGNALS, *DISK, IMAGE, *DAMAGE)


def strike(kind: str, training: Training, workdir: pathlib.Path, draw: random.Random) -> bool:
    """Injects a fault into a running command; returns False if the command ended before.

    Args:
        kind: one of KINDS.
        training: the running command.
        workdir: its workdir.
        draw: source of random numbers.
    """
    process = training.process
    if kind == "worker":
        came = training.wait_until(training.workers)
        for pid in training.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
        return came
    if kind == "disk full":
        fill(workdir.parent, leaving=draw.choice([0, 0, draw.randrange(1 << 21)]))
    elif kind == "file size":
        largest = draw.choice([0, draw.randrange(1 << 16)])
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, hard))
    elif kind == IMAGE:
        cut_image(draw.choice(sorted((workdir.parents[1] / "data" / "val").glob("*.jpg"))))
    elif kind in ("SIGTERM", "SIGINT", "twice"):
        # To the whole process group, like a terminal and most clusters.
        number = signal.SIGINT if kind == "SIGINT" else signal.SIGTERM
        os.killpg(process.pid, number)
        if kind == "twice":
            time.sleep(0.5)
            if process.poll() is None:
                os.killpg(process.pid, number)
    else:
        # With a single checkpoint, nothing would be left to resume from.
        if kind in DAMAGE and not training.wait_until(lambda: len(finished_steps(workdir)) > 1):
            return False
        process.kill()
        process.wait()
        if kind in DAMAGE:
            damage_latest(kind, workdir, draw)
    return True


def cut_image(path: pathlib.Path) -> None:
    """Truncates an image file and keeps a copy of the complete file in the same folder."""
    shutil.copy2(path, path.with_suffix(".whole"))
    beside = path.with_suffix(".cut")
    beside.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    beside.replace(path)


def mend_images(folder: pathlib.Path) -> None:
    """Restores the files below a folder that `cut_image` has truncated."""
    for whole in folder.rglob("*.whole"):
        whole.replace(whole.with_suffix(".jpg"))


def fill(folder: pathlib.Path, leaving: int) -> None:
    """Fills the disk of a folder with a file "filler"; `leaving` bytes stay free."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (room := shutil.disk_usage(folder).free - leaving) > 0:
            file.write(bytes(min(room, 1 << 20)))


def damage_latest(kind: str, workdir: pathlib.Path, draw: random.Random) -> None:
    """Damages a file of the newest checkpoint that is needed to restore it.

    Args:
        kind: one of DAMAGE.
        workdir: folder of the run.
        draw: source of random numbers.
    """
    folder = step_folder(workdir / "checkpoints", finished_steps(workdir)[-1])
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    marks = ("commit_success.txt", "_CHECKPOINT_METADATA", "checksums.json")
    path = draw.choice([p for p in files if p.name not in marks])
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "flipped":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif kind == "deleted":
        path.unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()


def expected_end(kind: str, status: int, text: str) -> str | None:
    """Checks how a command ended after a fault.

    Args:
        kind: kind of the fault.
        status: exit status; negative: minus the number of the signal.
        text: all output of the command.

    Returns:
        What is wrong, or None.
    """
    # A worker process that must not write files cannot create shared memory either. Python 3.11
    # then unregisters a name that was never registered, and its resource tracker prints this.
    if kind == "file size":
        tracker = r"Traceback .*\n  File .*resource_tracker.py.*\n.*\nKeyError: '/psm_\w+'\n"
        text = re.sub(tracker, "", text)
    if "Traceback" in text:
        return "a traceback"
    if status == 0 and kind not in ("kill", *DAMAGE):
        return None if re.search(r"step 12  validation", text) else "status 0 before its end"
    statuses = {"SIGTERM": (143, -15), "SIGINT": (130,), "twice": (143, -15)}
    said = {
        IMAGE: "cannot read image",
        "worker": "a data worker was ended by signal 9",
        "disk full": "error: the disk is full; ",
        "file size": "error: a file would grow beyond the allowed file size; ",
    }
    if kind in said:
        clear = said[kind] in text and "the same command" in text
        return None if status == 1 and clear else f"status {status}, or no clear message"
    allowed = statuses.get(kind, (-9,))
    return None if status in allowed else f"status {status}, not {allowed}"
