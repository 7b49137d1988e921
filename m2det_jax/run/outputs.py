"""Output files: written whole, and never over a file of the user's.

A verb makes one `Outputs` for its folder, claims the names of its files before it reads its first
input, and writes them through it. A file is replaced only if an earlier run of the same verb wrote
it and nobody has changed it since; a list in the folder (MANIFEST) tells. Names are paths within
the folder, with /.
"""

import collections
import contextlib
import functools
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
_FEW_LINES = 1000  # of the list, which are not worth a shorter one

Path = str | os.PathLike


class _Note(NamedTuple):
    """What a file was when it was written; streamed: one of many such notes, as it grew."""

    size: int
    mtime_ns: int
    crc32: int
    streamed: bool


class Outputs:
    """The files that a verb writes into a folder.

    Args:
      folder: where; it need not exist.
      verb: only what the same verb wrote is ever replaced.
    """

    def __init__(self, folder: Path, verb: str) -> None:
        self.folder, self._verb = pathlib.Path(folder), verb
        self._manifest = self.folder / MANIFEST
        self._lock = threading.Lock()
        # Of each name the latest; a file is as one of the last two says, however a run ended.
        latest = functools.partial(collections.deque, maxlen=8)
        self._notes: dict[str, collections.deque[_Note]] = collections.defaultdict(latest)
        self._ends_line = True
        self._read_notes()

    def claim(
        self, names: Iterable[str], inputs: Iterable[Path] = (), appended: Iterable[str] = ()
    ) -> None:
        """Says which files will be written; may be called again when more is known.

        Args:
          inputs: files that are read, none of which may be written to, whatever its name is.
          appended: files that only get longer, which `record` noted when they were made. Those
            of an earlier run may be there, changed or not.

        Raises:
          ValueError: two names are one file on some file systems, a name stands for an input, or
            for a file that this verb did not write or that was changed since.
        """
        appended = set(appended)
        names = [*names, *sorted(appended)]
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise InputError(f"{self.folder}: a file, no folder; write to another folder")
        _refuse_same_names(self.folder, names)
        existing = [name for name in (MANIFEST, *names) if os.path.lexists(self.folder / name)]
        if existing:
            self._refuse_inputs(existing, inputs)
        for name in existing:
            if name != MANIFEST and not (name in appended and self._notes.get(name)):
                self._refuse_foreign(name)

    def noted(self, name: str) -> bool:
        """Whether an earlier run of the verb wrote a file of that name, changed since or not."""
        return bool(self._notes.get(name))

    def wrote(self, name: str) -> bool:
        """Whether an earlier run of the verb wrote the file, and it is as it was then."""
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
        # A run that was killed may have left a part of the last piece that it noted.
        before, last = notes[-2:] if len(notes) > 1 else (notes[0], notes[0])
        torn = [before] if last.streamed and 0 <= before.size < found.st_size < last.size else []
        return any(_crc(path, note.size) == note.crc32 for note in same_size + torn)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[pathlib.Path]:
        """Yields a path to write to; the file gets its name at the end, if nothing is raised.

        Raises:
          ValueError: there is a file now that may not be replaced.
        """
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Short, as the name itself may be as long as the file system allows.
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        partial = target.with_name(f"{_PARTIAL}-{digest}")
        partial.unlink(missing_ok=True)  # of a run that was killed
        try:
            yield partial
            self._note(name, _note_of(partial))
            if os.path.lexists(target):
                self._refuse_foreign(name)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file, text as UTF-8. Raises ValueError as `replacing`."""
        with self.replacing(name) as partial:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[Callable[[str], None]]:
        """Yields a function that adds a piece of text, such as lines, to a file of that name.

        The file is there from the first piece on and ends with a whole one, unless the process is
        killed; it begins anew where an earlier run left one. Raises ValueError as `replacing`.
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
                    while piece:  # a disk that becomes full takes a part of it
                        piece = piece[file.write(piece) :]
                except BaseException:
                    file.truncate(before)
                    raise

            try:
                yield append
            finally:
                self.record(name)

    def remove(self, name: str) -> None:
        """Removes a file of an earlier run, if there is one. Raises ValueError as `replacing`."""
        if os.path.lexists(self.folder / name):
            self._refuse_foreign(name)
            (self.folder / name).unlink()

    def record(self, *names: str) -> None:
        """Notes files, as they are now, as written by this verb."""
        for name in names:
            self._note(name, _note_of(self.folder / name))

    def _refuse_foreign(self, name: str) -> None:
        if not self.wrote(name):
            raise InputError(
                f"{self.folder / name}: there is such a file already, which no m2det-{self._verb} "
                "wrote or which was changed since; write to another folder, or move it away"
            )

    def _refuse_inputs(self, existing: list[str], inputs: Iterable[Path]) -> None:
        """Raises ValueError where an existing target is an input, by whatever way it is reached."""
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
                continue  # a run was killed as it wrote the line; no file is ours by it
            if verb == self._verb:
                self._notes[name].append(_Note(*note))
        if len(lines) > _FEW_LINES + 4 * len(needed):
            self._rewrite([line for latest in needed.values() for line in latest])

    def _rewrite(self, lines: list[str]) -> None:
        """Shortens the list of what was written to what can matter; it is never half written."""
        beside = self.folder / f"{_PARTIAL}-list"
        with contextlib.suppress(OSError):  # a folder that may only be read
            beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            beside.replace(self._manifest)
            self._ends_line = True

    def _note(self, name: str, note: _Note) -> None:
        """Adds a note before the file is there: a run may be killed at any time."""
        line = json.dumps({"verb": self._verb, "name": name, **note._asdict()})
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with self._lock:
            with open(os.open(self._manifest, flags, 0o666), "wb", buffering=0) as file:
                file.write(f"{'' if self._ends_line else chr(10)}{line}\n".encode())
            self._ends_line = True
            self._notes[name].append(note)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which gets the name `path` only if nothing fails on the way.

    Raises:
      ValueError: `path` exists and is not an empty folder.
    """
    path = pathlib.Path(os.path.abspath(path))
    _refuse_full_folder(path)
    partial = path.with_name(f"{_PARTIAL}-{os.getpid()}-{path.name}"[:200])
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed and had this pid
    partial.mkdir(parents=True)
    try:
        yield partial
        _refuse_full_folder(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_checkpoints(folder: Path, workdir: Path) -> None:
    """Raises InputError for a folder among the checkpoints of a run: those come and go."""
    checkpoints = os.path.realpath(os.path.join(workdir, "checkpoints"))
    if os.path.commonpath([os.path.realpath(folder), checkpoints]) == checkpoints:
        raise InputError(
            f"{os.fspath(folder)}: a run removes its checkpoints there when newer ones come; write "
            "to another folder"
        )


def refuse_existing(path: Path) -> None:
    """Raises ValueError if there is anything of that name, be it a link that leads nowhere."""
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
                f"{folder}: {other} and {name} are to be written, which are one file on some file "
                "systems; rename what they are named after"
            )


def _identities(path: Path) -> list[tuple[int, int]]:
    """Returns device and inode of a file and, where it is a link, of what it leads to."""
    found = []
    for look in (os.lstat, os.stat):
        with contextlib.suppress(OSError, ValueError):
            status = look(path)
            found.append((status.st_dev, status.st_ino))
    return found


def _note_of(path: pathlib.Path) -> _Note:
    found = os.stat(path)
    # The bytes of hard links are not ours, and may be many: -1 is the CRC of nothing.
    crc = _crc(path, found.st_size) if found.st_nlink == 1 else -1
    return _Note(found.st_size, found.st_mtime_ns, crc, False)


def _crc(path: pathlib.Path, size: int) -> int:
    """Returns the CRC-32 of the first bytes of a file."""
    crc = 0
    with open(path, "rb") as file:
        while size > 0 and (block := file.read(min(_BLOCK, size))):
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc
