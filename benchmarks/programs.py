"""Compiled programs as text: their computations, loops, and the kernels that each would start."""

import dataclasses
import re
from collections.abc import Iterator

# Of the text of a compiled program, what computes nothing: no kernel of a GPU stands for it.
NO_KERNEL = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "opt-barrier".split()
)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A `while` of a program.

    Attributes:
        name: where it comes from in the source, as XLA keeps it.
        body, condition: kernels of one round.
    """

    name: str
    body: int
    condition: int


def computations(hlo: str) -> dict[str, list[str]]:
    """Returns the instructions, a line each, of every computation in the text of a program."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in hlo.splitlines():
        if made := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = made[1]
            found[name] = []
        elif name and " = " in line:
            found[name].append(line.strip().removeprefix("ROOT "))
    return found


def opcode(instruction: str) -> str:
    """Returns what an instruction does, such as "fusion" or "while"."""
    made = re.match(r"\S+ = (?:\(.*?\)|\S+) ([\w\-]+)\(", re.sub(r"/\*.*?\*/", "", instruction))
    return made[1] if made else ""


def kernels(instructions: list[str]) -> int:
    """Counts the instructions that compute, each fusion as one."""
    return sum(opcode(line) not in NO_KERNEL for line in instructions)


def loops(hlo: str) -> Iterator[Loop]:
    """Yields the loops of a program; the kernels of a loop inside a loop count where it is."""
    found = computations(hlo)
    for instructions in found.values():
        for line in instructions:
            if opcode(line) != "while":
                continue
            parts = {
                key: re.search(rf"{key}=%?([\w.\-]+)", line)[1] for key in ("condition", "body")
            }
            name = re.search(r'op_name="([^"]*)"', line)
            counts = {key: kernels(found[part]) for key, part in parts.items()}
            yield Loop(name[1] if name else "", **counts)
