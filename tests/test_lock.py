"""The lock on a workdir is the kernel's: it is free the moment its owner is gone."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys

import pytest

from m2det_jax.run import lock
from m2det_jax.run.lock import WorkdirLock

OWNER = """
import pathlib, sys
from m2det_jax.run.lock import WorkdirLock
with WorkdirLock(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


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

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL])
def test_where_folders_cannot_be_locked_a_file_is(number, tmp_path, monkeypatch):
    fail_flock(monkeypatch, number, folders_only=True)  # as NFS does
    with WorkdirLock(tmp_path) as held:
        held.check()
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
    with WorkdirLock(folder) as held:
        held.check()
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match=r"run was removed or replaced"):
            held.check()
        folder.mkdir()
        with pytest.raises(FileNotFoundError, match=r"run was removed or replaced"):
            held.check()
        shutil.rmtree(folder)
