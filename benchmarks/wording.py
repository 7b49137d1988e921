"""Wording of two commits: docstrings and messages that differ, as before/after pairs.

    python -m benchmarks.wording BEFORE [AFTER] [--pairs 20] [--seed 0]

BEFORE and AFTER are commits; without AFTER the working tree is read. A message is any other string
of three words or more; {...} stands for a value that the program inserts. Texts that differ only
in their line breaks count as equal. The seed chooses the pairs that are printed.
"""

import argparse
import ast
import collections
import difflib
import random
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.structure import Sources, read_sources

SIMILAR = 0.3  # two messages of a function are a pair if they are at least this similar, 0..1


class Pair(NamedTuple):
    """A text before and after, and the place of the text after."""

    place: str
    before: str
    after: str


class Texts(NamedTuple):
    """Texts of a class, function or module."""

    docstring: str
    messages: list[str]


def collect(source: str) -> dict[str, Texts]:
    """Returns the texts of a module by qualified name; the name of the module itself is ""."""
    found: dict[str, Texts] = {}

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                enter(child, f"{name}.{child.name}".lstrip("."))
            elif (text := _text(child)) is not None:
                if text.count(" ") >= 2 and text != found[name].docstring:
                    found[name].messages.append(text)
            else:
                visit(child, name)

    def enter(node: ast.ClassDef | ast.FunctionDef | ast.Module, name: str) -> None:
        docstring = ast.get_docstring(node, clean=False) or ""
        found[name] = Texts(_one_line(docstring), [])
        visit(node, name)

    enter(ast.parse(source), "")
    return found


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        parts = [x.value if isinstance(x, ast.Constant) else "{...}" for x in node.values]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = [node.value]
    else:
        return None
    return _one_line("".join(parts))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def compare(before: Sources, after: Sources) -> list[Pair]:
    """Returns the texts that differ, in the order of the sources after.

    A function is compared with the one of the same name in the same module. If there is none, it is
    compared with the function of that name which has left another module, if there is only one.

    Args:
        before, after: source text by dotted module name.
    """
    old, new = _by_place(before), _by_place(after)
    gone = collections.defaultdict(list)
    for place in old.keys() - new.keys():
        gone[place[1] or place[0].rpartition(".")[2]].append(place)
    pairs = []
    for (module, name), texts in new.items():
        place = (module, name)
        if place not in old:
            candidates = gone[name or module.rpartition(".")[2]]
            if len(candidates) != 1:
                continue
            place = candidates[0]
        where = f"{module}.{name}".rstrip(".")
        if texts.docstring and old[place].docstring:
            pairs.append(Pair(f"{where}, docstring", old[place].docstring, texts.docstring))
        pairs += [
            Pair(f"{where}, message", *both) for both in match(old[place].messages, texts.messages)
        ]
    return [pair for pair in pairs if pair.before != pair.after]


def _by_place(sources: Sources) -> dict[tuple[str, str], Texts]:
    return {
        (module, name): texts
        for module, source in sources.items()
        for name, texts in collect(source).items()
    }


def match(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, str]]:
    """Returns pairs (before, after) of messages; equal messages are left out.

    If as many messages have gone as have come, they are paired in order, else by similarity.
    """
    old = list((collections.Counter(before) - collections.Counter(after)).elements())
    new = list((collections.Counter(after) - collections.Counter(before)).elements())
    if len(old) == len(new):
        return list(zip(old, new, strict=True))
    ratios = {
        (i, j): difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
        for i, a in enumerate(old)
        for j, b in enumerate(new)
    }
    chosen: dict[int, int] = {}  # position in old by position in new
    for (i, j), ratio in sorted(ratios.items(), key=lambda item: -item[1]):
        if ratio >= SIMILAR and j not in chosen and i not in chosen.values():
            chosen[j] = i
    return [(old[chosen[j]], new[j]) for j in sorted(chosen)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", default="", help="a commit; default: working tree")
    parser.add_argument("--pairs", type=int, default=20, help="number of pairs (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the pairs (default 0)")
    args = parser.parse_args(argv)
    pairs = compare(read_sources(args.before)[0], read_sources(args.after)[0])
    count = min(args.pairs, len(pairs))
    for number in sorted(random.Random(args.seed).sample(range(len(pairs)), count)):
        place, before, after = pairs[number]
        print(f"{place}\n  before: {before}\n  after:  {after}\n")
    print(f"{count} of {len(pairs)} texts that differ, seed {args.seed}")


if __name__ == "__main__":
    main()
