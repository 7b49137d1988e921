"""The road from the command line to the gradient: no function more than these.

A hop leads from one function of the package to the next, the last one into `model.apply`. A
compiled step has no Python functions when it runs; it is the program of those that jax traced for
it. So the road is what is open where the loop calls the compiled step, and from there what is open
where the traced step calls `model.apply`.
"""

import pathlib
import traceback
import types

import jax
import pytest
import support

from m2det_jax import main, ops, runtime, train
from m2det_jax.build import build_detector
from m2det_jax.model import M2Det, variable_shapes
from m2det_jax.run.devices import data_mesh
from m2det_jax.run.state import create_train_state
from m2det_jax.training.validation import Validation

PACKAGE = pathlib.Path(ops.__file__).parent.parent


class Here(Exception):
    """Raised where a road ends."""


def stop(*args, **kwargs):
    raise Here


def functions_of(error: BaseException) -> list[str]:
    """Names of the functions of the package that an error came through, the outermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f.name for f in frames if pathlib.Path(f.filename).is_relative_to(PACKAGE)]


@pytest.fixture
def run_main(drawn_files, tmp_path, monkeypatch):
    """Calls `main` as the command line does, until it comes to `Here`; returns what was open."""
    monkeypatch.setenv("M2DET_TRACEBACK", "1")
    monkeypatch.setattr(runtime, "start", lambda *args: None)
    monkeypatch.setattr(Validation, "compile", lambda self: None)
    command_line = types.SimpleNamespace(
        CONFIG=types.SimpleNamespace(value=support.short_config(drawn_files))
    )
    monkeypatch.setattr(main, "command_line", command_line)
    monkeypatch.setattr(main, "_WORKDIR", types.SimpleNamespace(value=tmp_path / "run"))
    monkeypatch.setattr(main, "_ALLOW_CONFIG_CHANGE", types.SimpleNamespace(value=False))

    def run() -> list[str]:
        with pytest.raises(Here) as caught:
            main.main([])
        return functions_of(caught.value)

    return run


def test_four_hops_lead_to_the_model(run_main, monkeypatch):
    monkeypatch.setattr(M2Det, "apply", stop)
    compiling = run_main()
    # The tests have 8 devices, each at its own images. One device is in the test below.
    assert compiling == ["main", "train", "compile_steps", "train_step", "on_device", "loss_fn"]
    monkeypatch.setattr(train, "compile_steps", lambda *_: {(64, 96): stop})
    running = run_main()
    assert running == ["main", "train"]
    road = [*running, *compiling[compiling.index("train_step") :], "apply"]
    road.remove("on_device")
    assert len(road) - 1 == 4


@pytest.mark.parametrize(
    ("parts", "count", "between"),
    [
        (1, 1, []),
        (1, 2, ["on_device"]),
        # The wrapper, and inside of it the body of its loop: one hop more.
        (2, 1, ["accumulated", "add_part"]),
        (2, 2, ["on_device", "accumulated", "add_part"]),
    ],
)
def test_accumulation_is_one_wrapper_and_that_of_the_devices_another(
    parts, count, between, monkeypatch
):
    config = support.tiny_config(overrides={"accumulation": parts})
    detector = build_detector(config, ("cat", "dog"))
    replicated, _ = data_mesh(jax.devices()[:count])
    mesh = replicated.mesh if count > 1 else None
    step, optimizer = support.make_step(config, detector, mesh=mesh)
    shapes = variable_shapes(detector.model, detector.resize.image_size)
    state = jax.eval_shape(lambda v: create_train_state(v, optimizer), shapes)
    monkeypatch.setattr(M2Det, "apply", stop)
    with pytest.raises(Here) as caught:
        jax.eval_shape(step, state, support.random_batch(0, num_classes=2))
    assert functions_of(caught.value) == ["train_step", *between, "loss_fn"]
