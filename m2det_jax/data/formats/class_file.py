"""Class files, CSV files with the rows `class_name,id`: ids 0..C-1, no header row."""

import csv
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from m2det_jax.data.errors import Findings
from m2det_jax.data.formats.csv_boxes import read_records

_CLASS_FORM = "a row is class_name,id, with ids 0, 1, 2, ... and no header"


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads a class file; returns the names in the order of their ids.

    Raises:
        DataError: if a row is malformed; names all of them.
    """
    findings = Findings()
    names = list_classes(Path(path), findings)
    findings.raise_if_any()
    return names


def write_classes(class_names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Writes a class file, ids in the order of the names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows((name, i) for i, name in enumerate(class_names))


def list_classes(path: Path, findings: Findings) -> tuple[str, ...]:
    """Reads a class file; returns the names by id, and with findings all that could be read."""
    lines: dict[str, int] = {}
    names: dict[int, str] = {}
    before = len(findings)
    for line, fields in read_records(path, findings):
        problem = _class_problem(fields, lines, names, is_first=not lines)
        if problem:
            what, value, remedy = problem
            kind = "header-row" if what == "a header row" else "bad-class"
            findings.add(path, line, what, remedy, kind=kind, value=value)
        if len(fields) == 2:
            lines.setdefault(fields[0], line)
        if not problem:
            names[int(fields[1])] = fields[0]
    if not lines and len(findings) == before:
        findings.add(path, 0, "no classes", _CLASS_FORM, kind="no-rows")
    if len(findings) == before and max(names) != len(names) - 1:
        gap = next(i for i in itertools.count() if i not in names)
        findings.add(
            path,
            0,
            "ids have a gap",
            f"number the {len(names)} classes 0 to {len(names) - 1}",
            kind="bad-class",
            value=f"{gap} is missing, {max(names)} is the largest",
        )
    if len(findings) > before:
        return tuple(lines)
    return tuple(names[i] for i in range(len(names)))


def _class_problem(
    fields: list[str], lines: dict[str, int], names: dict[int, str], *, is_first: bool
) -> tuple[str, str, str] | None:
    """Returns (what, value, remedy) of a row of the class file, or None for a sound row."""
    text = ",".join(fields)
    if len(fields) != 2:
        return f"{len(fields)} column(s) where 2 are expected", text[:100], _CLASS_FORM
    name, number = fields
    if not number.strip().isdecimal() or not number.isascii() or len(number) > 9:
        if is_first and number.strip().replace("_", "").isalpha():
            return "a header row", text, f"remove it: {_CLASS_FORM}"
        return "id is not a whole number from 0", number, _CLASS_FORM
    if not name.strip():
        return "the class name is empty", text, _CLASS_FORM
    if name != name.strip():
        return "blanks around the class name", repr(name), "remove them"
    if name in lines:
        return f"class name repeats line {lines[name]}", name, "names must differ"
    if int(number) in names:
        return f"id {number} is taken by {names[int(number)]}", name, "ids must differ"
    return None
