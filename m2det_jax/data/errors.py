"""Errors in the user's data: found in one pass and reported together."""

from pathlib import Path

MAX_PRINTED = 50


class DataError(ValueError):
    """The data on disk is not what its format demands; the text names every place.

    Takes one string only: errors cross process borders by pickling, and an exception with another
    signature arrives there as an unrelated TypeError.
    """


class Findings:
    """Collects what is wrong with some files, so that one run shows all of it."""

    def __init__(self) -> None:
        self._found: list[tuple[str, int, str]] = []
        self._file_order: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, file: Path | str, line: int, what: str, remedy: str) -> None:
        """Notes one finding; `line` counts from 1, or is 0 for the file as a whole."""
        name = str(file)
        self._file_order.setdefault(name, len(self._file_order))
        # A quoted field may hold a line end, and a finding is one line.
        text = f"{what}; {remedy}".replace("\r", "\\r").replace("\n", "\\n")
        self._found.append((name, line, text))

    def raise_if_any(self) -> None:
        """Raises DataError if there are findings, in the order of files and lines.

        Its text has one line `file:line: what (value); remedy` a finding, at most MAX_PRINTED of
        them, and says how many more there are.
        """
        if not self._found:
            return
        found = sorted(self._found, key=lambda entry: (self._file_order[entry[0]], entry[1]))
        lines = [
            f"{file}:{line}: {text}" if line else f"{file}: {text}"
            for file, line, text in found[:MAX_PRINTED]
        ]
        if len(found) > MAX_PRINTED:
            lines.append(f"... and {len(found) - MAX_PRINTED} more")
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise DataError(f"{count} in the data:\n" + "\n".join(lines))
