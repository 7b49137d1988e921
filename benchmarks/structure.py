"""Structure of the package in one or more commits: files, folders, imports, lengths.

    python -m benchmarks.structure [COMMIT ...] [--rooms]

Without a commit the working tree is counted. A room is a folder, or a file at the root of the
package. An arrow from one room to another means that a module of the first imports a module of the
second; re-exports of an `__init__` from its own folder do not count. The floor of a room is one
above the highest room that it imports; rooms that import each other in a circle have one floor.
"""

import argparse
import ast
import collections
import dataclasses
import functools
import io
import pathlib
import statistics
import subprocess
import tarfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "m2det_jax"
SHORT = 90  # lines; a module with one importer and fewer may belong inside it

Sources = dict[str, str]  # source text by dotted module name; a folder stands for its __init__


@dataclasses.dataclass(frozen=True)
class Structure:
    """Counts of a package.

    Attributes:
        files: number of Python files in each folder; "" is the root.
        arrows: the rooms that each room imports.
        floors: the floor of each room, from 0.
        file_lines, function_lines: number of lines of each module, and of each function or method.
        one_importer: modules that exactly one other module imports.
    """

    files: dict[str, int]
    arrows: dict[str, set[str]]
    floors: dict[str, int]
    file_lines: dict[str, int]
    function_lines: dict[str, int]
    one_importer: list[str]

    @property
    def circles(self) -> list[tuple[str, str]]:
        """Arrows between rooms of the same floor: each is part of a circle."""
        return [
            (a, b) for a, bs in self.arrows.items() for b in bs if self.floors[a] == self.floors[b]
        ]


def read_sources(
    commit: str = "", repository: pathlib.Path = REPOSITORY
) -> tuple[Sources, set[str]]:
    """Returns the sources of the package, and the names of its modules that are folders.

    Args:
        commit: a commit; "": the working tree.
        repository: folder of the repository.
    """
    if commit:
        command = ["git", "-C", str(repository), "archive", commit, PACKAGE]
        with tarfile.open(fileobj=io.BytesIO(subprocess.check_output(command))) as archive:
            texts = {
                member.name: archive.extractfile(member).read().decode()
                for member in archive.getmembers()
                if member.name.endswith(".py")
            }
    else:
        texts = {
            path.relative_to(repository).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted((repository / PACKAGE).rglob("*.py"))
        }
    names = {path: path.removesuffix(".py").replace("/", ".") for path in texts}
    sources = {names[path].removesuffix(".__init__"): text for path, text in texts.items()}
    return sources, {n.removesuffix(".__init__") for n in names.values() if n.endswith(".__init__")}


def imported(source: str, modules: Sources) -> set[str]:
    """Returns the modules of the package that a source text imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
    return found & modules.keys()


def room_of(module: str, folders: set[str]) -> str:
    """Returns the folder of a module, "data/formats", or the module itself at the root."""
    parts = module.split(".")[1:]
    if module not in folders and len(parts) > 1:
        parts = parts[:-1]
    return "/".join(parts)


def measure(sources: Sources, folders: set[str]) -> Structure:
    """Counts files, arrows, floors and lines of a package."""
    importers = collections.defaultdict(set)
    arrows: dict[str, set[str]] = {room_of(module, folders): set() for module in sources}
    for module, source in sources.items():
        for other in imported(source, sources) - {module}:
            importers[other].add(module)
            here, there = room_of(module, folders), room_of(other, folders)
            handed_on = module in folders and other.startswith(f"{module}.")
            if here != there and not handed_on:
                arrows[here].add(there)
    files = collections.Counter(
        "/".join((module if module in folders else module.rpartition(".")[0]).split(".")[1:])
        for module in sources
    )
    return Structure(
        files=dict(files),
        arrows=arrows,
        floors=floors_of(arrows),
        file_lines={module: len(text.splitlines()) for module, text in sources.items()},
        function_lines={
            f"{module}.{node.name}": node.end_lineno - node.lineno + 1
            for module, text in sources.items()
            for node in ast.walk(ast.parse(text))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        },
        one_importer=[name for name, others in importers.items() if len(others) == 1],
    )


def floors_of(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Returns the floor of each room: 0, or one above the highest room that it imports."""

    @functools.cache
    def reached(room: str) -> frozenset[str]:
        seen, ahead = set(), [room]
        while ahead:
            new = arrows[ahead.pop()] - seen
            seen |= new
            ahead += new
        return frozenset(seen)

    @functools.cache
    def floor(room: str) -> int:
        circle = {room} | {other for other in reached(room) if room in reached(other)}
        below = set().union(*(arrows[one] for one in circle)) - circle
        return 1 + max(map(floor, below), default=-1)

    return {room: floor(room) for room in arrows}


def figures(structure: Structure) -> dict[str, str]:
    """Returns the text of each row of the table."""
    lines, functions = structure.file_lines, structure.function_lines
    largest = max((f for f in structure.files if f), key=structure.files.get)
    longest, longest_function = max(lines, key=lines.get), max(functions, key=functions.get)
    short = [name for name in structure.one_importer if lines[name] < SHORT]
    return {
        "files": f"{len(lines)}",
        "files at the root": f"{structure.files['']}",
        "folders": f"{len(structure.files) - 1}",
        "files of the largest folder": f"{structure.files[largest]} {largest}",
        "rooms / floors": f"{len(structure.arrows)} / {1 + max(structure.floors.values())}",
        "arrows between rooms": f"{sum(map(len, structure.arrows.values()))}",
        "of these in circles": f"{len(structure.circles)}",
        "median file": f"{statistics.median(lines.values()):g}",
        "longest file": f"{lines[longest]} {longest.partition('.')[2]}",
        "median function": f"{statistics.median(functions.values()):g}",
        "longest function": f"{functions[longest_function]} {longest_function.rpartition('.')[2]}",
        "modules with one importer": f"{len(structure.one_importer)}",
        f"of these under {SHORT} lines": f"{len(short)}",
    }


def rooms(structure: Structure) -> str:
    """Returns a line for each room, highest floor first: its floor, files and arrows."""
    lines = []
    for room in sorted(structure.arrows, key=lambda room: (-structure.floors[room], room)):
        files = f"{structure.files.get(room, 1) if room else 1:3} files"
        below = " ".join(sorted(other or PACKAGE for other in structure.arrows[room]))
        lines.append(f"{structure.floors[room]:2}  {room or PACKAGE:16} {files}  -> {below}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="default: the working tree")
    parser.add_argument("--rooms", action="store_true", help="list every room and its arrows too")
    options = parser.parse_args(argv)
    structures = {
        name or "working tree": measure(*read_sources(name)) for name in options.commits or [""]
    }
    columns = [figures(structure) for structure in structures.values()]
    print(f"{'':28}" + "".join(f"{name[:26]:28}" for name in structures))
    for row in columns[0]:
        print(f"{row:28}" + "".join(f"{column[row]:28}" for column in columns))
    if options.rooms:
        for name, structure in structures.items():
            print(f"\n{name}: floor, room, what it imports\n{rooms(structure)}")


if __name__ == "__main__":
    main()
