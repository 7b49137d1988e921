"""The lock is the kernel's, a first signal asks and a second leaves, a full disk has a name."""

import errno
import fcntl
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from m2det_jax import runtime
from m2det_jax.run import guard
from m2det_jax.run.guard import Stopped, StopSignals, WorkdirLock, disk_trouble

OWNER = """
import pathlib, sys
from m2det_jax.run.guard import WorkdirLock
with WorkdirLock(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def warnings_of_run(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("m2det_jax"), "propagate", True)
    caplog.set_level(logging.WARNING, "m2det_jax")
    return caplog


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_goes(tmp_path):
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as owner:
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=rf"is in use by process {owner.pid} on .*--workdir"):
            WorkdirLock(tmp_path)
        owner.kill()
        owner.wait()
        with WorkdirLock(tmp_path):
            assert list(tmp_path.iterdir()) == []  # nothing to be left behind


def test_closing_frees_it_and_a_folder_is_made_only_on_demand(tmp_path):
    folder = tmp_path / "a" / "run"
    first, second = WorkdirLock(folder), WorkdirLock(folder)
    assert not folder.exists()
    first.create()
    with pytest.raises(ValueError, match="is in use by"):
        second.create()
    first.close()
    first.close()
    second.create()
    second.close()


def test_other_processes_of_a_run_need_no_lock(tmp_path):
    with WorkdirLock(tmp_path), WorkdirLock(tmp_path, enabled=False) as other:
        other.create()
        other.check()


def fail_flock(monkeypatch, number, folders_only):
    real = fcntl.flock

    def flock(handle, operation):
        if stat.S_ISDIR(os.fstat(handle).st_mode) or not folders_only:
            raise OSError(number, os.strerror(number))
        real(handle, operation)

    monkeypatch.setattr(guard.fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL])
def test_where_folders_cannot_be_locked_a_file_is(number, tmp_path, monkeypatch):
    fail_flock(monkeypatch, number, folders_only=True)  # as NFS does
    with WorkdirLock(tmp_path) as lock:
        lock.check()
        with pytest.raises(ValueError, match="is in use by"):
            WorkdirLock(tmp_path)
    with WorkdirLock(tmp_path):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, warnings_of_run):
    fail_flock(monkeypatch, errno.ENOLCK, folders_only=False)
    with WorkdirLock(tmp_path):
        assert "has no locks" in warnings_of_run.text


def test_a_folder_removed_or_replaced_is_noticed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with WorkdirLock(folder) as lock:
        lock.check()
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match=r"run was removed or replaced"):
            lock.check()
        folder.mkdir()
        with pytest.raises(FileNotFoundError, match=r"run was removed or replaced"):
            lock.check()
        shutil.rmtree(folder)


def wait_for_number(signals):
    end = time.monotonic() + 10
    while signals.number is None and time.monotonic() < end:
        time.sleep(0.005)
    return signals.number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_leaves(number, monkeypatch, warnings_of_run):
    left = []
    monkeypatch.setattr(guard, "leave_at_once", left.append)
    if (before := signal.getsignal(number)) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored by whoever started the tests, as nohup does")
    with StopSignals() as signals:
        assert signals.agreed() is None
        os.kill(os.getpid(), number)
        assert wait_for_number(signals) == number == signals.agreed()
        assert f"{number.name}: finishing the step and saving" in warnings_of_run.text
        # timeout(1) sends it to the process and, at once, to its group: that is one request.
        os.kill(os.getpid(), number)
        time.sleep(0.3)
        assert left == []
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 10
        while not left and time.monotonic() < end:
            time.sleep(0.005)
        assert left == [signal.SIGTERM]
    assert signal.getsignal(number) == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert signals.number is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_no_handler_is_set():
    seen = []

    def run():
        with StopSignals() as signals:
            seen.extend([signals.agreed(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None, signal.SIG_DFL]


def test_leaving_at_once_ends_the_workers_first(monkeypatch):
    done = []

    class Worker:
        def kill(self):
            done.append("killed")

    monkeypatch.setattr(guard.multiprocessing, "active_children", lambda: [Worker(), Worker()])
    monkeypatch.setattr(guard.os, "_exit", done.append)
    guard.leave_at_once(signal.SIGINT)
    assert done == ["killed", "killed", 130]


@pytest.mark.parametrize(
    ("number", "step", "status", "said"),
    [(signal.SIGTERM, 7, 143, "step 7 is saved"), (signal.SIGINT, 0, 130, "before the first step")],
)
def test_a_stopped_run_has_the_status_of_its_signal(number, step, status, said, capsys):
    def verb():
        raise Stopped(number, step)

    with pytest.raises(SystemExit) as ended:
        runtime.one_line_errors(verb)
    assert ended.value.code == status
    written = capsys.readouterr().err
    assert written.startswith(f"{number.name}: ") and said in written


# As tensorstore says it, inside of what Orbax raises.
FULL = (
    "RESOURCE_EXHAUSTED: Error writing \"x\" [os_error_code='28'] [source locations='open.cc:61']"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "quota"),
        (OSError(errno.EFBIG, "File too large"), "file size"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.ESTALE, "Stale file handle"), "no longer knows"),
        (ValueError(FULL), "the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file", "run/x"), "run/x"),
        (ValueError("config.batch_size=3"), None),
        (OSError("cannot read image a.jpg"), None),
        (PermissionError(errno.EACCES, "Permission denied"), None),
    ],
)
def test_what_a_disk_refuses_has_a_name(error, said):
    found = disk_trouble(error)
    assert found is None if said is None else said in found


class Gone:
    """A terminal that was closed."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    def flush(self):
        pass


def test_a_log_that_nobody_can_read_ends_no_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone())
    handler = runtime._BesideTheBar()
    handler.emit(logging.LogRecord("m2det_jax", logging.INFO, "x.py", 1, "step 1", (), None))
    with pytest.raises(SystemExit) as ended:
        runtime.one_line_errors(lambda: (_ for _ in ()).throw(Stopped(signal.SIGHUP, 3)))
    assert ended.value.code == 129


def test_a_failed_save_is_told_once(tmp_path):
    """The disk is a limit on the file size, of a process of its own as it cannot be lifted."""
    program = (
        "import resource, signal, sys\n"
        "from m2det_jax import runtime\n"
        "from m2det_jax.run import checkpoint\n"
        "import numpy as np, orbax.checkpoint as ocp\n"
        "def verb():\n"
        "    tree = {str(i): np.ones((100, 100), np.float32) for i in range(20)}\n"
        "    with checkpoint.open_manager(sys.argv[1]) as manager:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "        manager.save(1, args=ocp.args.Composite(model=ocp.args.StandardSave(tree)))\n"
        "        try:\n"
        "            manager.wait_until_finished()\n"
        "        except (OSError, ValueError) as error:\n"
        "            raise OSError(guard.disk_trouble(error)) from error\n"
        "from m2det_jax.run import guard\n"
        "runtime.start()\n"
        "runtime.one_line_errors(verb)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if "devices:" not in line]
    assert lines == ["error: a file would grow beyond the allowed file size"]
