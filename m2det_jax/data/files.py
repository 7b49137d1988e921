"""Annotation files: opened, read as text of a bounded size; paths and numbers in them; writing.

Only plain files are read: opening a pipe would wait for somebody to write to it.
"""

import contextlib
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m2det_jax.data.errors import Findings

SMALL = 16 * 2**20  # bytes: lists, and annotations of a single image
LONGEST_LINE = 2**20  # characters
LARGE = 4 * 2**30  # bytes: annotations of a whole data set
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_plain(path: str | os.PathLike[str]) -> int:
    """Opens a regular file for reading and returns its descriptor, without ever waiting.

    Raises:
        OSError: if it cannot be opened, or is a directory, a device or a pipe.
    """
    descriptor = os.open(path, _FLAGS)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "it is a directory", os.fspath(path))
    raise OSError(0, "it is no regular file", os.fspath(path))


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is never seen half written, not even after a power failure.

    Raises:
        OSError: if the disk is full, or the folder gone; the file that was there is left.
    """
    beside = path.with_name(f"{path.name}.tmp")
    # Names of files need not be text in any encoding.
    with open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_bytes(path: Path, findings: Findings, *, limit: int = LARGE) -> bytes | None:
    """Returns the content of a file, or None after a finding."""
    descriptor = _open(path, findings, limit)
    if descriptor is None:
        return None
    with open(descriptor, "rb") as file:
        try:
            return file.read(os.fstat(descriptor).st_size)
        except OSError as error:
            _note(path, error, findings)
            return None


def read_text(path: Path, findings: Findings, *, limit: int = LARGE) -> str | None:
    """Returns the content of a UTF-8 file without its byte order mark, or None after a finding."""
    content = read_bytes(path, findings, limit=limit)
    if content is None:
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        value = f"byte {error.object[error.start]:#04x} at offset {error.start}"
        findings.add(
            path, 0, "not UTF-8 text", "save the file as UTF-8", kind="not-text", value=value
        )
        return None


@contextlib.contextmanager
def open_lines(path: Path, findings: Findings, *, limit: int = LARGE) -> Iterator[Iterator[str]]:
    """Opens a UTF-8 file and gives its lines, with their ends, without holding it whole.

    A line of more than LONGEST_LINE characters comes in pieces. Where the file cannot be opened
    there are no lines, and where it cannot be read on the block ends; each is a finding.
    """
    descriptor = _open(path, findings, limit)
    if descriptor is None:
        yield iter(())
        return
    with open(descriptor, encoding="utf-8-sig", newline="") as file:
        try:
            yield iter(functools.partial(file.readline, LONGEST_LINE), "")
        except OSError as error:
            _note(path, error, findings)
        except UnicodeDecodeError:
            read_text(path, findings, limit=limit)  # says where


def _open(path: Path, findings: Findings, limit: int) -> int | None:
    """Opens a file of at most `limit` bytes; None after a finding."""
    try:
        descriptor = open_plain(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        _note(path, error, findings)
        return None
    size = os.fstat(descriptor).st_size
    if size <= limit:
        return descriptor
    os.close(descriptor)
    what = f"the file has {size} bytes, at most {limit} are read"
    findings.add(path, 0, what, "split it", kind="not-text")
    return None


def _note(path: Path, error: Exception, findings: Findings) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    findings.add(path, 0, "cannot read the file", "check the path", kind="no-file", value=reason)


def resolve_path(folder: str, text: str) -> str:
    """Returns the absolute path of a file that is named from a folder.

    Backslashes are taken for slashes where only then a file is there.
    """
    path = os.path.join(folder, text)
    if "\\" in text and not os.path.exists(path):
        slashed = os.path.join(folder, text.replace("\\", "/"))
        path = slashed if os.path.exists(slashed) else path
    return os.path.normpath(path)


def parse_number(text: str) -> float | None:
    """Returns the number that a text is, or None.

    float() takes 1_000 for a thousand, which in a table of coordinates is a slip: None.
    """
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def shortest(value: float | np.floating) -> str:
    """Returns the shortest decimal text that reads back as the same number of its type."""
    return str(int(value)) if value == int(value) else str(value)
