"""Findings: everything wrong in the user's data, found in one pass and reported together."""

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from m2det_jax.errors import InputError

MAX_PRINTED = 50
MAX_KEPT = 10_000  # findings of one kind; others are only counted

EFFECTS = {
    "refuse": "training does not start",
    "clip": "the box is cut to the image",
    "drop": "the box is left out",
    "note": "nothing is changed",
}

KINDS = {
    "no-file": "a file or folder is missing or cannot be read",
    "not-text": "a file is not text of the format (encoding, syntax, size)",
    "header-row": "a CSV file has a header row where none belongs, or lacks one",
    "no-rows": "a file or a split has no annotations at all",
    "bad-row": "an entry is incomplete or has values of the wrong type",
    "bad-class": "the list of classes is malformed",
    "unknown-class": "an object has a class that is not in the list",
    "bad-id": "an identifier is repeated, or refers to nothing",
    "no-image": "an image file is missing",
    "bad-image": "an image file cannot be read",
    "size-differs": "the annotation gives another image size than the file has",
    "no-label": "an image has no label file and is taken for one without objects",
    "polygon": "a line holds a polygon, of which the box around it is taken",
    "contradiction": "entries contradict each other",
    "not-finite": "a coordinate is NaN or infinite",
    "swapped": "the corners of a box are swapped, or its sides negative",
    "zero-area": "a box has no width or no height",
    "outside": "a box leaves its image",
    "rounding": "boxes leave their image by no more than the rounding of the format",
    "duplicate": "a box is there twice",
}


class DataError(InputError):
    """An error of data that do not follow their format; the text names every place.

    It takes one string only: errors of worker processes are pickled, and an exception with another
    signature arrives as an unrelated TypeError.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: a key of KINDS.
        file: the file with the entry, mostly an annotation file.
        line: counted from 1; 0: the file as a whole, or `item` says where.
        item: the place in a file whose lines say nothing, such as "annotations[17]"; else "".
        what, value, remedy: what is wrong, the value as it is written, what to do.
        effect: a key of EFFECTS, what training does about it.
        image: path of the image that it is about; "": none or unknown.
    """

    kind: str
    file: str
    line: int
    item: str
    what: str
    value: str
    remedy: str
    effect: str
    image: str = ""

    @property
    def text(self) -> str:
        """The finding in one line: `file:line: what (value); remedy`."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        place += f": {self.item}" if self.item else ""
        value = f" ({self.value})" if self.value else ""
        text = f"{place}: {self.what}{value}; {self.remedy}"
        # A quoted field may hold line ends and control characters; a finding is one line of text.
        return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


class Findings:
    """The findings about some files, collected so that one run shows all of them.

    Attributes:
        counts: number of findings of each (kind, effect), also of those that are not kept.
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._found: list[Finding] = []
        self._file_order: dict[str, int] = {}

    def __len__(self) -> int:
        return self.counts.total()

    def __iter__(self) -> Iterator[Finding]:
        """Yields findings in the order of files and lines; at most MAX_KEPT of a kind."""
        return iter(sorted(self._found, key=lambda f: (self._file_order[f.file], f.line)))

    def add(
        self,
        file: Path | str,
        line: int,
        what: str,
        remedy: str,
        *,
        kind: str,
        value: str = "",
        effect: str = "refuse",
        item: str = "",
        image: str = "",
    ) -> None:
        """Notes one finding; see `Finding`."""
        name = str(file)
        self._file_order.setdefault(name, len(self._file_order))
        self.counts[kind, effect] += 1
        if sum(self.counts[kind, e] for e in EFFECTS) <= MAX_KEPT:
            value = value if len(value) <= 200 else value[:197] + "..."
            self._found.append(Finding(kind, name, line, item, what, value, remedy, effect, image))

    def extend(self, other: "Findings") -> None:
        """Takes over all findings of another collection, and its counts."""
        for finding in other:
            self._file_order.setdefault(finding.file, len(self._file_order))
            self._found.append(finding)
        self.counts.update(other.counts)

    def count(self, effect: str) -> int:
        """Returns the number of findings with that effect."""
        return sum(n for (_, found), n in self.counts.items() if found == effect)

    def raise_if_any(self) -> None:
        """Ends in an error if there are findings for which training is refused.

        Raises:
            DataError: if there are; one line a finding, in the order of files and lines, at most
                MAX_PRINTED of them, and the number of the others.
        """
        total = self.count("refuse")
        if not total:
            return
        lines = [finding.text for finding in self if finding.effect == "refuse"][:MAX_PRINTED]
        if total > MAX_PRINTED:
            lines.append(f"... and {total - MAX_PRINTED} more")
        count = "1 problem" if total == 1 else f"{total} problems"
        raise DataError(f"{count} in the data:\n" + "\n".join(lines))
