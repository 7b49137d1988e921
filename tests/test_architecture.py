"""Imports point one way, and importing a part pulls in no more than it says."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

from m2det_jax import ops

PACKAGE = pathlib.Path(ops.__file__).parent.parent
VERBS = {
    "experiment_checks",
    "main", "train", "prepare", "train_step", "train_state", "optimizer", "detect", "evaluate",
    "predict", "demo", "checkpoint", "command_line", "config", "config_checks", "experiment",
    "datasets", "watch", "runtime", "anchor_layout", "convert", "conversion", "official_config",
    "backbone_weights", "check", "inspection", "inspect_anchors", "inspect_contents",
    "inspect_report", "inspect_pictures", "fine_tune", "guard", "damage", "resume",
    "stored_config", "devices", "splits", "convert_dataset", "multiscale",
    "compiled_step", "plan", "trained", "validation", "data_paths", "data_record",
    "outputs", "predict_inputs", "predict_outputs", "evaluation_data", "readers",
}  # fmt: skip
ALLOWED = {
    "ops": {"jax", "numpy", "jaxtyping"},
    "model": {"jax", "numpy", "jaxtyping", "flax"},
    "data": {"numpy", "PIL", "grain", "absl", "yaml"},
    "weights": {"numpy", "jax", "flax", "safetensors", "torch"},
    "report": {"numpy", "PIL"},
}
BELOW = {"weights": ("m2det_jax.model",)}  # what else of ours a layer may see
SOURCES = sorted(PACKAGE.rglob("*.py"))


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


def within(layer: str) -> list[pathlib.Path]:
    return sorted((PACKAGE / layer).rglob("*.py"))


def test_the_sources_are_found():
    assert {"main", "evaluate", "predict"} <= {path.stem for path in SOURCES}
    assert all(len(within(layer)) > 4 for layer in ALLOWED)
    assert "m2det_jax.trained.restore" in imports_of(PACKAGE / "evaluate.py")


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_it_may(layer):
    for path in within(layer):
        for name in imports_of(path):
            top = name.partition(".")[0]
            if top == "m2det_jax":
                below = (f"m2det_jax.{layer}", "m2det_jax.errors", *BELOW.get(layer, ()))
                assert name.startswith(below), f"{path}: {name}"
            else:
                assert top in ALLOWED[layer] | set(sys.stdlib_module_names), f"{path}: {name}"


def test_nothing_below_the_verbs_imports_one():
    helpers = [PACKAGE / f"{name}.py" for name in ("metrics", "draw", "history")]
    for path in helpers + [path for layer in ALLOWED for path in within(layer)]:
        for name in imports_of(path):
            parts = name.split(".")
            assert not (parts[0] == "m2det_jax" and parts[1] in VERBS), f"{path}: {name}"
            assert parts[0] != "ml_collections", f"{path}: {name}"


def test_only_verbs_see_a_config():
    seen = {path.stem for path in SOURCES if "ml_collections" in " ".join(imports_of(path))}
    assert seen <= VERBS


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
    loaded = loaded_by("import m2det_jax.demo, m2det_jax.main, m2det_jax.conversion")
    assert {"flax", "grain", "orbax"} <= loaded
    assert not loaded & {"tensorflow", "torch", "matplotlib"}


@pytest.mark.parametrize("verb", ["main", "convert"])
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
        assert len(path.read_text().splitlines()) <= 300, f"{path} is long"
