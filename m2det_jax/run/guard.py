"""What stands between a run and the world: the lock on its folder, signals, a full disk.

The lock is on the folder itself and belongs to the kernel, so that nothing is left behind: it is
free the moment its owner is gone, however it went.
"""

import errno
import fcntl
import logging
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import threading
import time

import jax

from m2det_jax.errors import InputError
from m2det_jax.run import devices

log = logging.getLogger("m2det_jax")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds. timeout(1), srun and other wrappers pass on a signal that has come with the group's too.
_ONE_REQUEST = 0.25
# Some network file systems lock files opened for writing only, others lock nothing.
_NO_FOLDER_LOCKS = {errno.EBADF, errno.EINVAL, errno.EISDIR}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow beyond the allowed file size",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an input or output error",
    errno.ESTALE: "the server of the folder no longer knows it (stale file handle)",
}


class WorkdirLock:
    """The right to write into a workdir; usable in a `with` statement.

    An existing folder is locked at once. One that does not exist yet is made and locked by
    `create`, so that a run whose config is refused leaves no folder behind.

    Args:
      workdir: folder of the run.
      enabled: False: does nothing (all processes but the first).

    Raises:
      ValueError: another process has the lock; the message names it where the kernel tells.
    """

    def __init__(self, workdir: pathlib.Path, *, enabled: bool = True):
        if workdir.exists() and not workdir.is_dir():
            raise InputError(f"{workdir}: there is a file of that name; give another --workdir")
        self.workdir, self.enabled = workdir, enabled
        self._folder: int | None = None
        self._file: int | None = None
        if enabled and workdir.is_dir():
            self._lock()

    def create(self) -> None:
        """Makes the folder if it is missing, and locks it."""
        if self.enabled and self._folder is None:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._lock()

    def _lock(self) -> None:
        self._folder = os.open(self.workdir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._flock(self._folder)
        except OSError as error:
            if error.errno not in _NO_FOLDER_LOCKS:
                raise
            path = self.workdir / ".lock"
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._flock(self._file)

    def _flock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _lock_owner(handle)
            self.close()
            raise InputError(
                f"{self.workdir} is in use by {owner}; wait for it, end it, or give another "
                "--workdir"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("%s: this file system has no locks (%s); see to it yourself that no "
                        "second run writes there", self.workdir, error.strerror)  # fmt: skip

    def check(self) -> None:
        """Raises FileNotFoundError if the folder is no longer what was locked."""
        if self._folder is None:
            return
        try:
            same = os.path.samestat(os.stat(self.workdir), os.fstat(self._folder))
        except FileNotFoundError:
            same = False
        if not same:
            raise FileNotFoundError(f"{self.workdir} was removed or replaced during the run")

    def close(self) -> None:
        """Frees the lock; may be called twice."""
        for handle in (self._file, self._folder):
            if handle is not None:
                os.close(handle)
        self._file = self._folder = None

    def __enter__(self) -> "WorkdirLock":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _lock_owner(handle: int) -> str:
    """Names the process that holds the lock on an open file, as /proc/locks has it."""
    inode = os.fstat(handle).st_ino
    try:
        table = pathlib.Path("/proc/locks").read_text()
    except OSError:
        table = ""
    # "1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF"; pid 0 is one of another container.
    found = re.search(rf"FLOCK +\S+ +WRITE +([1-9]\d*) +\S+:{inode} ", table)
    return f"process {found[1]} on {socket.gethostname()}" if found else "another run"


class Stopped(Exception):
    """A signal ended the run after its state was saved.

    Attributes:
      step: the last optimiser step done, and saved; 0: none.
      status: exit status of the process, 128 + the number of the signal.
    """

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        done = f"step {step} is saved; the same command goes on from there"
        super().__init__(f"{name}: {done if step else 'left before the first step'}")
        self.step, self.status = step, 128 + number


class StopSignals:
    """Turns the first SIGTERM, SIGINT or SIGHUP into a request, and leaves at once on the second.

    A thread hears them, so that the second is obeyed even while the main thread is compiling or
    waits for a device. Handlers exist inside the `with` only, and only in the main thread; without
    them `number` stays None. Under nohup, SIGHUP stays ignored.

    Attributes:
      number: of the signal that asked to stop; None: go on.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked: jax.Array | None = None
        self._before: dict = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        wanted = [n for n in _SIGNALS if not (nohup and n == signal.SIGHUP)]
        self._before = {number: signal.signal(number, _no_more) for number in wanted}
        self._before_wakeup = signal.set_wakeup_fd(self._write)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def agreed(self) -> int | None:
        """Returns the signal to stop for after this step, the same in all processes.

        Of several processes it is the one known a step ago: an answer of now would wait for the
        step that the devices have just begun.
        """
        if jax.process_count() == 1:
            return self.number
        asked, self._asked = self._asked, devices.start_maximum(self.number or 0)
        return None if asked is None else int(asked) or None

    def _listen(self) -> None:
        since = 0.0
        while number := os.read(self._read, 1)[0]:
            if number not in _SIGNALS:
                continue
            if self.number is not None:
                if time.monotonic() - since > _ONE_REQUEST:
                    leave_at_once(number)
                continue
            self.number, since = number, time.monotonic()
            log.warning("%s: finishing the step and saving; once more to leave at once without",
                        signal.Signals(number).name)  # fmt: skip

    def __exit__(self, *exception) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._before_wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)
        self._before = {}


def _no_more(number, frame) -> None:
    """Only keeps Python's own handler from ending the process; the thread does the work."""


def leave_at_once(number: int) -> None:
    """Ends the data workers and this process, saving nothing."""
    for child in multiprocessing.active_children():
        child.kill()
    log.warning("%s again: left without saving", signal.Signals(number).name)
    os._exit(128 + number)


def disk_trouble(error: BaseException) -> str | None:
    """Says in a few words what a disk refused, or None where the error is of another kind.

    Orbax reports the errors of its threads as ValueError, with the number in the text.
    """
    number = getattr(error, "errno", None)
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        number = int(found[1])
    return str(error).splitlines()[0] if number == errno.ENOENT else _DISK.get(number)
