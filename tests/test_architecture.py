"""Imports point one way, and importing a part pulls in no more than it says."""

import ast
import importlib
import inspect
import pathlib
import re
import statistics
import subprocess
import sys

import pytest

import m2det_jax
from m2det_jax import ops
from m2det_jax.__main__ import VERBS as TABLE

PACKAGE = pathlib.Path(ops.__file__).parent.parent
VERBS = {
    "main", "evaluate", "report", "predict", "check", "convert", "convert_dataset", "demo",
    "doctor", "replay", "export", "serve", "benchmark",
}  # fmt: skip
# What else may stand at the root; `experiment` is where experiments of users find load_experiment.
# `__main__` is the command m2det, which names the verbs.
ROOT_MODULES = {
    "__init__",
    "__main__",
    "runtime",
    "fitting",
    "train",
    "build",
    "trained",
    "errors",
    "experiment",
}
# From the bottom up. A room, which is a folder or a file at the root, imports from floors below it.
FLOORS = (
    {"errors"},
    {"ops", "data", "drawing", "pages"},
    {"model", "config", "metrics"},
    {"run", "experiment"},
    {"weights", "detector", "runtime"},
    {"build"},  # here the config becomes plain values and objects
    {"trained"},
    {"datasets"},
    {"training", "inference"},
    {"report"},  # written by training too
    {"train"},
    {"fitting"},
    VERBS - {"demo", "report"},
    {"demo"},
    {"__main__"},
)
# The same inside data/; its own modules are the lowest, and its __init__ hands on all of them.
DATA_FLOORS = ({""}, {"augment", "synthetic", "formats"}, {"feeding"}, {"__init__"})
# Other packages that a room may see; those that are not listed may see any.
ALLOWED = {
    "__main__": set(),
    "errors": set(),
    "doctor": {"packaging", "jax"},
    "ops": {"jax", "numpy", "jaxtyping"},
    "model": {"jax", "numpy", "jaxtyping", "flax"},
    "data": {"numpy", "PIL", "grain", "absl", "yaml"},
    "metrics": {"hotcoco", "numpy", "pycocotools"},
    "detector": {"jax", "numpy", "tqdm", "jaxtyping"},
    "weights": {"numpy", "jax", "flax", "orbax", "safetensors", "torch"},
    "pages": {"numpy", "PIL"},
    "drawing": {"numpy", "PIL"},
    "serve": {"jax", "numpy", "PIL", "h11", "prometheus_client", "starlette", "uvicorn"},
}
# Beside config/ only these know a ConfigDict: each makes a Config of it in its first line, or (fit)
# one for train.
DOORS = {"train.py", "check/run.py", "fitting.py"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in SOURCES}


def imports_of(path: pathlib.Path) -> set[str]:
    """Full dotted names of all that a source file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path: pathlib.Path) -> set[str]:
    """Modules of ours that a file imports: "data.index", "data" for names of its __init__."""
    found = set()
    for name in imports_of(path):
        top, _, name = name.partition(".")
        if top != "m2det_jax" or name in ("", "__version__"):
            continue
        known = name in NAMES or f"{name}.__init__" in NAMES
        found.add(name if known else name.rpartition(".")[0])
    return found


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def floor_of(room: str, floors=FLOORS) -> int:
    (floor,) = [number for number, rooms in enumerate(floors) if room in rooms]
    return floor


def data_room(module: str) -> str:
    parts = module.split(".")
    folder = (PACKAGE / "data" / parts[1]).is_dir() if len(parts) > 1 else False
    return parts[1] if folder else "__init__" if parts[1:] in ([], ["__init__"]) else ""


def test_every_room_stands_on_a_floor():
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    assert rooms == set().union(*FLOORS)
    assert len(rooms) == sum(map(len, FLOORS))


def test_the_map_for_newcomers_has_the_same_order():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    text = text[text.index("```\nm2det_jax/") : text.index("\nexperiments/")]
    rooms = re.findall(
        r"(?<= )([a-z_]+)(?:/|\.py)(?= )", "\n".join(re.findall("\n  [a-z_].*", text))
    )
    floors = [floor_of(room) for room in rooms]
    assert floors == sorted(floors, reverse=True) and len(floors) == sum(map(len, FLOORS))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    if room == "__init__":
        assert not own_imports(path)  # what it offers is imported when asked for
        for name, module in m2det_jax._MODULES.items():
            assert module.removeprefix("m2det_jax.") in NAMES and getattr(m2det_jax, name)
        return
    for name in own_imports(path):
        other = name.partition(".")[0]
        if other != room:
            assert floor_of(other) < floor_of(room), f"{path}: {name}"
        elif room == "data":
            here = data_room(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
            there = data_room(name)
            assert here == there or floor_of(there, DATA_FLOORS) < floor_of(here, DATA_FLOORS), (
                f"{path}: {name}"
            )


def test_an_arrow_up_would_be_found(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from m2det_jax.training import plan\nfrom m2det_jax import ops, data\n")
    assert own_imports(path) == {"training.plan", "ops", "data"}
    assert floor_of("training") > floor_of("run") > floor_of("data") > floor_of("errors")


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_packages_that_it_may(room):
    files = [path for path in SOURCES if room_of(path) == room]
    assert files
    for path in files:
        others = {name.partition(".")[0] for name in imports_of(path)} - {"m2det_jax"}
        assert others <= ALLOWED[room] | set(sys.stdlib_module_names), path


def test_a_verb_is_one_file_or_one_folder_that_runs():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    folders = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert not files & {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert files == ROOT_MODULES | (VERBS - folders)
    assert folders <= VERBS
    for verb in VERBS:
        path = PACKAGE / verb / "__main__.py" if verb in folders else PACKAGE / f"{verb}.py"
        assert 'if __name__ == "__main__":' in path.read_text(), verb


def test_no_folder_is_a_corridor():
    for folder in {path.parent for path in SOURCES}:
        assert len(list(folder.glob("*.py"))) <= 15, folder


def test_only_config_and_the_doors_know_a_configdict():
    knowing = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if room_of(path) != "config"
        and "ml_collections" in {name.partition(".")[0] for name in imports_of(path)}
    }
    assert knowing == DOORS


def test_below_build_nothing_takes_a_config():
    for path in SOURCES:
        room = room_of(path)
        if room in ("__init__", "config", "experiment") or floor_of(room) >= floor_of("build"):
            continue
        assert "config" not in {name.partition(".")[0] for name in own_imports(path)}, path


def test_no_tensorflow_and_no_wildcards():
    for path in SOURCES:
        for name in imports_of(path):
            assert name.partition(".")[0] != "tensorflow", f"{path}: {name}"
            if name.partition(".")[0] == "torch":
                assert path == PACKAGE / "weights" / "files.py"  # inside a function, see below
            assert not name.endswith(".*"), f"{path}: {name}"
            # clu's writers would import it.
            assert not name.startswith(("clu.metric_writers", "clu.periodic_actions")), path


def loaded_by(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", program], text=True).split())


HEAVY = {"flax", "grain", "orbax", "PIL", "tensorflow", "optax", "clu", "ml_collections"}


def test_the_package_is_light():
    assert not loaded_by("import m2det_jax") & (HEAVY | {"jax"})


def test_ops_are_light():
    loaded = loaded_by("from m2det_jax.ops import iou, nms")
    assert "jax" in loaded and not loaded & HEAVY


def test_the_verbs_load_no_tensorflow():
    loaded = loaded_by("import m2det_jax.demo, m2det_jax.main, m2det_jax.convert.weights")
    assert {"flax", "grain", "orbax"} <= loaded
    assert not loaded & {"tensorflow", "torch", "matplotlib"}


def test_the_command_names_every_verb():
    modules = {name.replace("-", "_"): verb.module for name, verb in TABLE.items()}
    assert modules.pop("train") == "main"
    assert modules == {name: name for name in VERBS - {"main"}}
    assert all(callable(importlib.import_module(f"m2det_jax.{name}").cli) for name in VERBS)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], []])
def test_the_command_is_light(arguments):
    loaded = loaded_by(
        "import contextlib, io; from m2det_jax.__main__ import cli\n"
        f"with contextlib.redirect_stdout(io.StringIO()): cli({arguments})"
    )
    assert "m2det_jax" in loaded and not loaded & (HEAVY | {"jax", "numpy", "absl", "packaging"})


def test_the_doctor_asks_jax_in_another_process_only():
    loaded = loaded_by("import m2det_jax.doctor.__main__, m2det_jax.doctor.findings")
    assert not loaded & (HEAVY | {"jax", "numpy", "absl"})
    for path in (PACKAGE / "doctor").glob("*.py"):
        asks = "jax" in {name.partition(".")[0] for name in imports_of(path)}
        assert asks == (path.name == "query.py"), path


@pytest.mark.parametrize("verb", ["main", "convert.__main__", "check.__main__"])
def test_the_command_line_answers_before_anything_heavy_is_loaded(verb):
    loaded = loaded_by(f"import m2det_jax.{verb}")
    assert not loaded & {"jax", "flax", "grain", "orbax"}


def public_names():
    return [(name, getattr(ops, name)) for name in ops.__all__]


@pytest.mark.parametrize(("name", "value"), public_names())
def test_every_public_name_of_ops_has_a_docstring_of_its_own(name, value):
    text = inspect.getdoc(value)
    assert text and len(text) > 30, name
    assert not text.startswith(f"{name}("), f"{name}: only the signature"  # as NamedTuples get


def test_every_module_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_an_ignored_type_error_has_its_code_and_a_reason():
    for path in SOURCES:
        for line in path.read_text().splitlines():
            if "type: ignore" in line:
                assert re.search(r"# type: ignore\[[a-z, -]+\]  # \w+", line), f"{path}: {line}"


def test_files_and_functions_are_short():
    files = [len(path.read_text().splitlines()) for path in SOURCES]
    functions = {
        f"{path}: {node.name}": node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert statistics.median(files) <= 150
    assert statistics.median(functions.values()) <= 15
    assert not {name: lines for name, lines in functions.items() if lines > 80}
