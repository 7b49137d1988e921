"""Lock on the workdir of a run, so that no second process writes into it.

The lock is on the folder itself and belongs to the kernel, so that nothing is left behind: it is
free the moment its owner is gone, however it went.
"""

import errno
import fcntl
import logging
import os
import pathlib
import re
import socket

from m2det_jax.errors import InputError

log = logging.getLogger("m2det_jax")

# Some network file systems lock files opened for writing only, others lock nothing.
_NO_FOLDER_LOCKS = {errno.EBADF, errno.EINVAL, errno.EISDIR}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class WorkdirLock:
    """The right to write into a workdir; usable in a `with` statement.

    An existing folder is locked at once. One that does not exist yet is made and locked by
    `create`, so that a run whose config is refused leaves no folder behind.

    Args:
        workdir: folder of the run.
        enabled: False: does nothing (all processes but the first).

    Raises:
        InputError: another process has the lock; the message names it where the kernel tells.
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

    def __exit__(self, *exception: object) -> None:
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
