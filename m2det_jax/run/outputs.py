"""Output files: never half written, and never written over a file of the user.

A command creates one `Outputs` for its folder. It claims the names of its files before it reads the
first input, and writes them through this object. A file is replaced only if an earlier run of the
same command wrote it and nobody has changed it since. A list in the folder (MANIFEST) records this.
Names are paths inside the folder, with "/".
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from m2det_jax.data.file_names import same_file_key
from m2det_jax.errors import InputError

MANIFEST = ".m2det-written.jsonl"
_PARTIAL = ".m2det-partial"
_BLOCK = 2**20  # bytes
_FEW_LINES = 1000  # a list of fewer lines is not shortened

Path = str | os.PathLike


class _Note(NamedTuple):
    """State of a file when it was written. A streamed file has one note for each piece."""

    size: int
    mtime_ns: int
    crc32: int
    streamed: bool


class Outputs:
    """The files that a command writes into a folder.

    Args:
        folder: the folder; it need not exist.
        verb: name of the command, such as "predict". Only files that it wrote are replaced.
    """

    def __init__(self, folder: Path, verb: str) -> None:
        self.folder, self._verb = pathlib.Path(folder), verb
        self._manifest = self.folder / MANIFEST
        self._lock = threading.Lock()
        # The latest notes of each name. However a run ended, a file matches one of its last two.
        self._notes: dict[str, collections.deque[_Note]] = collections.defaultdict(
            lambda: collections.deque(maxlen=8)
        )
        self._ends_line = True
        self._read_notes()

    def claim(
        self, names: Iterable[str], inputs: Iterable[Path] = (), appended: Iterable[str] = ()
    ) -> None:
        """Checks that files may be written; can be called again when more names are known.

        Args:
            names: the files to write.
            inputs: files that are read; none of them may be written to, whatever its name is.
            appended: files that only grow, and that `record` noted when they were created. They may
                exist from an earlier run, changed or not.

        Raises:
            InputError: if two names are the same file on some file systems, a name is an input, or
                a file exists that this command did not write or that was changed since.
        """
        appended = set(appended)
        names = [*names, *sorted(appended)]
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise InputError(f"{self.folder}: is a file, not a folder; write to another folder")
        _refuse_same_names(self.folder, names)
        existing = [name for name in (MANIFEST, *names) if os.path.lexists(self.folder / name)]
        if existing:
            self._refuse_inputs(existing, inputs)
        for name in existing:
            if name != MANIFEST and not (name in appended and self._notes.get(name)):
                self._refuse_foreign(name)

    def noted(self, name: str) -> bool:
        """Returns whether an earlier run of the command wrote a file of that name."""
        return bool(self._notes.get(name))

    def wrote(self, name: str) -> bool:
        """Returns whether an earlier run of the command wrote the file, unchanged since."""
        path = self.folder / name
        try:
            found = os.lstat(path)
        except OSError:
            return False
        notes = list(self._notes.get(name, ()))
        if not stat.S_ISREG(found.st_mode) or not notes:
            return False
        same_size = [note for note in notes if note.size == found.st_size]
        if any(note.mtime_ns == found.st_mtime_ns for note in same_size):
            return True
        # A run that was killed may have written only a part of the last piece that it noted.
        before, last = notes[-2:] if len(notes) > 1 else (notes[0], notes[0])
        torn = [before] if last.streamed and 0 <= before.size < found.st_size < last.size else []
        return any(_crc(path, note.size) == note.crc32 for note in same_size + torn)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[pathlib.Path]:
        """Yields a path to write to; if nothing is raised, the file then gets its name.

        Raises:
            InputError: if a file of that name exists that may not be replaced.
        """
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # A short name, because `name` may already have the largest length that is allowed.
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        partial = target.with_name(f"{_PARTIAL}-{digest}")
        partial.unlink(missing_ok=True)  # left by a run that was killed
        try:
            yield partial
            self._note(name, _note_of(partial))
            if os.path.lexists(target):
                self._refuse_foreign(name)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file; text is written as UTF-8.

        Raises:
            InputError: if a file of that name exists that may not be replaced.
        """
        with self.replacing(name) as partial:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[Callable[[str], None]]:
        """Yields a function that appends a piece of text, such as a few lines, to a file.

        The file of an earlier run is removed first. The file always ends with a complete piece,
        unless the process is killed.

        Raises:
            InputError: if a file of that name exists that may not be replaced.
        """
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self.remove(name)
        size, crc = 0, 0
        self._note(name, _Note(size, 0, crc, True))
        with open(target, "xb", buffering=0) as file:

            def append(text: str) -> None:
                nonlocal size, crc
                piece, before = text.encode(), size
                size, crc = size + len(piece), zlib.crc32(piece, crc)
                self._note(name, _Note(size, 0, crc, True))
                try:
                    while piece:  # a disk that becomes full may take only a part of it
                        piece = piece[file.write(piece) :]
                except BaseException:
                    file.truncate(before)
                    raise

            try:
                yield append
            finally:
                self.record(name)

    def remove(self, *names: str) -> None:
        """Removes files of an earlier run, those that are there.

        Raises:
            InputError: if a file of such a name exists that may not be replaced.
        """
        for name in names:
            if os.path.lexists(self.folder / name):
                self._refuse_foreign(name)
                (self.folder / name).unlink()

    def record(self, *names: str) -> None:
        """Notes that this command wrote files, in their present state."""
        for name in names:
            self._note(name, _note_of(self.folder / name))

    def _refuse_foreign(self, name: str) -> None:
        if not self.wrote(name):
            raise InputError(
                f"{self.folder / name}: exists already; m2det-{self._verb} did not write it, or it "
                "was changed since; write to another folder, or move it away"
            )

    def _refuse_inputs(self, existing: list[str], inputs: Iterable[Path]) -> None:
        """Raises InputError if an existing target is an input, also through links."""
        read = {identity: path for path in inputs for identity in _identities(path)}
        for name in existing:
            for identity in _identities(self.folder / name):
                if identity in read:
                    raise InputError(
                        f"{self.folder / name}: it is one of the files to read "
                        f"({os.fspath(read[identity])}) and would be overwritten; write to "
                        "another folder"
                    )

    def _read_notes(self) -> None:
        try:
            found = os.lstat(self._manifest)
        except OSError:  # none there, or no folder, which `claim` says
            return
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{self._manifest}: not a plain file; move it away")
        text = self._manifest.read_text(encoding="utf-8", errors="replace")
        self._ends_line = not text or text.endswith("\n")
        lines = text.splitlines()
        needed: dict[tuple[str, str], collections.deque[str]] = {}
        for line in lines:
            try:
                entry = json.loads(line)
                verb, name, *note = (entry[key] for key in ("verb", "name", *_Note._fields))
                needed.setdefault((verb, name), collections.deque(maxlen=2)).append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a run was killed while it wrote the line; the line proves nothing
            if verb == self._verb:
                self._notes[name].append(_Note(*note))
        if len(lines) > _FEW_LINES + 4 * len(needed):
            self._rewrite([line for latest in needed.values() for line in latest])

    def _rewrite(self, lines: list[str]) -> None:
        """Replaces the list by the lines that can still matter; it is never half written."""
        beside = self.folder / f"{_PARTIAL}-list"
        with contextlib.suppress(OSError):  # the folder may be read-only
            beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            beside.replace(self._manifest)
            self._ends_line = True

    def _note(self, name: str, note: _Note) -> None:
        """Adds a note before the file exists, because a run may be killed at any time."""
        line = json.dumps({"verb": self._verb, "name": name, **note._asdict()})
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with self._lock:
            with open(os.open(self._manifest, flags, 0o666), "wb", buffering=0) as file:
                file.write(f"{'' if self._ends_line else chr(10)}{line}\n".encode())
            self._ends_line = True
            self._notes[name].append(note)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[pathlib.Path]:
    """Yields a folder to fill; it gets the name `path` only if nothing is raised.

    Raises:
        InputError: if `path` exists and is not an empty folder.
    """
    path = pathlib.Path(os.path.abspath(path))
    _refuse_full_folder(path)
    partial = path.with_name(f"{_PARTIAL}-{os.getpid()}-{path.name}"[:200])
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run with the same process id
    partial.mkdir(parents=True)
    try:
        yield partial
        _refuse_full_folder(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_checkpoints(folder: Path, workdir: Path) -> None:
    """Raises InputError if a folder is inside the checkpoints of a run, which get deleted."""
    checkpoints = os.path.realpath(os.path.join(workdir, "checkpoints"))
    if os.path.commonpath([os.path.realpath(folder), checkpoints]) == checkpoints:
        raise InputError(
            f"{os.fspath(folder)}: training deletes old checkpoints there; write to another folder"
        )


def refuse_existing(path: Path) -> None:
    """Raises InputError if the name is taken, also by a broken link."""
    if os.path.lexists(path):
        raise InputError(f"{os.fspath(path)}: exists already; give a new name, or move it away")


def _refuse_full_folder(path: pathlib.Path) -> None:
    if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
        refuse_existing(path)


def _refuse_same_names(folder: pathlib.Path, names: list[str]) -> None:
    seen: dict[str, str] = {same_file_key(MANIFEST): MANIFEST}
    for name in names:
        other = seen.setdefault(same_file_key(name), name)
        if other is not name:
            raise InputError(
                f"{folder}: {other} and {name} are the same file on some file systems, and both "
                "would be written; rename the inputs that they are named after"
            )


def _identities(path: Path) -> list[tuple[int, int]]:
    """Returns device and inode of a file and, if it is a link, of its target."""
    found = []
    for look in (os.lstat, os.stat):
        with contextlib.suppress(OSError, ValueError):
            status = look(path)
            found.append((status.st_dev, status.st_ino))
    return found


def _note_of(path: pathlib.Path) -> _Note:
    found = os.stat(path)
    # A hard link may share a large file of the user, so it is not read: no CRC equals -1.
    crc = _crc(path, found.st_size) if found.st_nlink == 1 else -1
    return _Note(found.st_size, found.st_mtime_ns, crc, False)


def _crc(path: pathlib.Path, size: int) -> int:
    """Returns the CRC-32 of the first bytes of a file."""
    crc = 0
    with open(path, "rb") as file:
        while size > 0 and (block := file.read(min(_BLOCK, size))):
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc
