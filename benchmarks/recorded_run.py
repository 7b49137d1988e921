"""Recorder of one run of a verb: calls on the way to the gradient, readers of configs, one box.

    PYTHONPATH=TREE python -P benchmarks/recorded_run.py OUT.json [--box] [--stop] VERB ARGUMENTS

`python -m m2det_jax.VERB ARGUMENTS` is run in this process, by the package that lies in TREE, and
OUT.json gets what `benchmarks.roads` counts. A script without other modules of this repository:
in its process they are those of TREE. --box also follows the box of COORDINATES to
the loss; --stop ends the run at its first training step.
"""

import array
import collections
import functools
import importlib.util
import itertools
import json
import pathlib
import runpy
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import jax
import jax.extend
import ml_collections
import numpy as np

# x1, y1, x2, y2 in pixels; exact in float32, and unlikely anywhere else.
COORDINATES = (13.15625, 17.28125, 41.71875, 53.40625)
ALL, NONE = frozenset(range(4)), frozenset()
DEPTH = 6  # of values inside values that are searched
MANY = 10_000  # items of a container, and numbers of an array on a device, that are searched

PACKAGE = pathlib.Path(importlib.util.find_spec("m2det_jax").origin).parent
JAX = pathlib.Path(jax.__file__).parent
READERS = (
    "__getattr__ __getitem__ __contains__ __iter__ __len__ __eq__ get get_ref get_oneway_ref "
    "get_type items iteritems keys iterkeys values itervalues to_dict to_json "
    "to_json_best_effort to_yaml copy_and_resolve_references eq_as_configdict"
).split()


class Enough(BaseException):
    """Ends the run: what is asked for is recorded."""


@functools.cache
def file_of(code: CodeType) -> str:
    """Returns the file of a function, relative to the package; "" outside of it."""
    path = pathlib.Path(code.co_filename)
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else ""


def open_calls() -> list[dict[str, Any]]:
    """Returns the calls of the package that are open, from `main` of main.py to the innermost.

    `traced` is true for those that jax has called, directly or not: a function that is traced.
    """
    frames, frame = [], sys._getframe(1)
    while frame:
        frames.append(frame)
        frame = frame.f_back
    calls, traced = [], False
    for frame in reversed(frames):
        code = frame.f_code
        if file := file_of(code):
            calls.append(
                {
                    "file": file,
                    "line": frame.f_lineno,
                    "name": code.co_qualname,
                    "traced": traced,
                }
            )
        elif pathlib.Path(code.co_filename).is_relative_to(JAX):
            traced = bool(calls)
    start = (i for i, call in enumerate(calls) if (call["file"], call["name"]) == MAIN)
    return calls[next(start, 0) :]


MAIN = ("main.py", "main")


def record_config_readers(readers: dict[str, set[str]]) -> None:
    """Notes from now on which files of the package read from a ConfigDict, and by what."""

    def recording(name: str, method: Callable) -> Callable:
        @functools.wraps(method)
        def read(*args, **kwargs):
            frame = sys._getframe(1)
            while frame and frame.f_globals.get("__name__", "").startswith("ml_collections"):
                frame = frame.f_back
            if frame and (file := file_of(frame.f_code)):
                readers.setdefault(file, set()).add(frame.f_code.co_qualname)
            return method(*args, **kwargs)

        return read

    for name in READERS:
        if method := vars(ml_collections.ConfigDict).get(name):
            setattr(ml_collections.ConfigDict, name, recording(name, method))


class BoxRoad:
    """Follows one box through the calls of the package, by `sys.setprofile`.

    A function holds the box if its arguments, variables and result together have all of
    COORDINATES; while the train step is traced, if they have an array that jax computes from the
    boxes of the batch. That ends when the function that has called the model returns the loss. A
    function is on the road if it holds the box and hands it on: by its result, to a function on the
    road that it calls, to the compiled step, or to an object that it makes, if a method of that is
    on the road.

    Attributes:
        holds, road: {file: {function: its first line}}.
    """

    def __init__(self) -> None:
        self.holds: dict[str, dict[str, int]] = {}
        self.road: dict[str, dict[str, int]] = {}
        self._open = threading.local()  # .calls: [frame, whether it has handed on the box] each
        self._computed: dict[int, jax.core.Tracer] = {}  # from the boxes, by identity
        self._made: dict[int, tuple[Any, list[CodeType]]] = {}  # objects with the box, and by whom
        self._step: FrameType | None = None  # the function that jax traces
        self._callers: list[FrameType] = []  # of the model, in training
        self._over = False  # the loss is there

    def start(self) -> None:
        """Records from now on, in this thread and in new ones."""
        bind = jax.extend.core.Primitive.bind

        @functools.wraps(bind)
        def following(primitive, *args, **params):
            results = bind(primitive, *args, **params)
            if self._computed and any(map(self._depends, args)):
                for result in results if isinstance(results, (list, tuple)) else [results]:
                    self._computed[id(result)] = result
            return results

        jax.extend.core.Primitive.bind = following
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def stop(self) -> None:
        """Records no more."""
        threading.setprofile(None)
        sys.setprofile(None)

    def model_is_called(self) -> None:
        """Says that the model is called in training, by the functions that are open."""
        self._callers = [call[0] for call in self._calls()]

    def step_is_called(self, arguments: Any) -> None:
        """Says that the compiled step is called; the road ends there, if it has the box."""
        self._leave_open(self._found_in(arguments) == ALL)
        self.stop()

    def _calls(self) -> list[list]:
        if not hasattr(self._open, "calls"):
            self._open.calls = []
        return self._open.calls

    def _profile(self, frame: FrameType, event: str, result: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not file_of(code) or code.co_name == "<module>":
            return
        calls = self._calls()
        if event == "call":
            calls.append([frame, False])
            if self._step is None:
                self._find_boxes(frame)
            return
        while calls and calls[-1][0] is not frame:  # it was open before the recording
            calls.pop()
        handed_on = calls.pop()[1] if calls else False
        if self._leave(frame, result, handed_on) and calls:
            calls[-1][1] = True
        if frame in self._callers and not self._over and self._has_loss(result):
            self._leave_open(handed_on=True, last=self._step)
            self._over = True
            self._computed.clear()
            jax.config.update("jax_disable_jit", False)

    def _leave(self, frame: FrameType, result: Any, handed_on: bool) -> bool:
        """Notes a call as it ends, and returns whether it is on the road."""
        values = dict(frame.f_locals)
        if self._found_in([values, result]) != ALL:
            return False
        _note(self.holds, frame.f_code)
        own = values.get("self")
        if not handed_on and (result is own or self._found_in(result) != ALL):
            if frame.f_code.co_name == "__init__":
                self._made[id(own)] = own, [frame.f_code, *self._callers_with_box()]
            return False
        _note(self.road, frame.f_code)
        for code in self._made.pop(id(own), (own, []))[1]:
            _note(self.road, code)
        return True

    def _callers_with_box(self) -> Iterator[CodeType]:
        """Yields the open functions that hold the box, from the innermost to the first without."""
        for frame, _ in reversed(self._calls()):
            if self._found_in(dict(frame.f_locals)) != ALL:
                return
            yield frame.f_code

    def _leave_open(self, handed_on: bool, last: FrameType | None = None) -> None:
        """Notes the open calls, innermost first, as if they ended now."""
        for call in reversed(self._calls()):
            handed_on = self._leave(call[0], None, handed_on or call[1])
            if call[0] is last:
                return

    def _find_boxes(self, frame: FrameType) -> None:
        """Looks for the traced boxes of a batch that is given beside a training state."""
        values = list(frame.f_locals.values())
        if not any(hasattr(value, "opt_state") for value in values):
            return
        for value in values:
            boxes = value.get("boxes") if isinstance(value, dict) else None
            if isinstance(boxes, jax.core.Tracer):
                self._computed[id(boxes)] = boxes
                self._step = frame
                # Functions that are jitted on their own would get arrays of their own.
                jax.config.update("jax_disable_jit", True)

    def _depends(self, value: Any) -> bool:
        if not isinstance(value, jax.core.Tracer):
            return False
        inside = (getattr(value, name, None) for name in ("val", "primal"))  # vmap's, grad's
        return id(value) in self._computed or any(map(self._depends, inside))

    def _has_loss(self, result: Any) -> bool:
        """Says whether a result has a number, as losses are, that depends on the boxes."""
        leaves = jax.tree.leaves(result)
        return any(self._depends(x) and x.shape == () and x.dtype.kind == "f" for x in leaves)

    def _found_in(self, value: Any, depth: int = 0) -> frozenset[int]:
        """Returns which of the four coordinates a value has, at any place in it."""
        if value is None or isinstance(value, (bool, int)):
            return NONE
        if isinstance(value, jax.core.Tracer):
            return ALL if self._depends(value) else NONE
        if isinstance(value, (float, str, bytes, array.array, np.generic, np.ndarray, jax.Array)):
            return _coordinates_of(value)
        found = NONE
        for part in _parts(value) if depth < DEPTH else ():
            found |= self._found_in(part, depth + 1)
            if found == ALL:
                break
        return found


def _note(notes: dict[str, dict[str, int]], code: CodeType) -> None:
    notes.setdefault(file_of(code), {})[code.co_qualname] = code.co_firstlineno


def _coordinates_of(value: Any) -> frozenset[int]:
    """Returns which of the four coordinates are in a number, a text or an array."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return frozenset(i for i in ALL if str(COORDINATES[i]) in value)
    if isinstance(value, jax.Array) and (value.is_deleted() or value.size > MANY):
        return NONE
    if getattr(value, "dtype", None) in (np.uint8, np.bool_):  # pixels
        return NONE
    numbers = np.asarray(value)
    if numbers.dtype.kind in "OU":
        return _coordinates_of(" ".join(map(str, numbers.ravel()[:MANY])))
    if numbers.dtype.kind not in "fiu":
        return NONE
    return frozenset(i for i in ALL if np.any(numbers == COORDINATES[i]))


def _parts(value: Any) -> Iterable[Any]:
    """Returns the values in a container or in an object of the package; of others none."""
    if isinstance(value, Mapping):
        return list(itertools.islice(value.values(), MANY))
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return list(itertools.islice(value, MANY))
    kind = type(value)
    if not kind.__module__.startswith("m2det_jax") or kind.__module__.startswith("m2det_jax.model"):
        return ()
    slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    named = [getattr(value, name, None) for name in slots]
    return [*named, *getattr(value, "__dict__", {}).values()]


def record_calls(calls: dict[str, list], road: BoxRoad | None, *, stop: bool) -> None:
    """Notes the open calls when the model is first called in training, and the compiled step.

    Calls: "model" and "step"; the step has none if it is not compiled ahead of its call.
    """
    from m2det_jax.model import M2Det

    call_model, call_compiled = M2Det.__call__, jax.stages.Compiled.__call__

    @functools.wraps(call_model)
    def model(self, images, *args, **kwargs):
        if kwargs.get("train", any(args)) and "model" not in calls:
            calls["model"] = open_calls()
            if road:
                road.model_is_called()
        return call_model(self, images, *args, **kwargs)

    @functools.wraps(call_compiled)
    def compiled(self, *args, **kwargs):
        if any(hasattr(arg, "opt_state") for arg in args) and "step" not in calls:
            calls["step"] = open_calls()
            if road:
                road.step_is_called(args)
            if stop:
                raise Enough
        return call_compiled(self, *args, **kwargs)

    M2Det.__call__, jax.stages.Compiled.__call__ = model, compiled


def main(argv: list[str]) -> None:
    out, *argv = argv
    options = {argument for argument in argv if argument in ("--box", "--stop")}
    verb, *arguments = [argument for argument in argv if argument not in options]
    calls, readers = {}, {}
    road = BoxRoad() if "--box" in options else None
    record_config_readers(readers)
    record_calls(calls, road, stop="--stop" in options)
    if road:
        road.start()
    sys.argv = [verb, *arguments]
    try:
        runpy.run_module(f"m2det_jax.{verb}", run_name="__main__", alter_sys=True)
    except Enough:
        pass
    except SystemExit as end:
        if end.code:
            raise
    found = {
        "calls": calls,
        "readers": {file: sorted(functions) for file, functions in sorted(readers.items())},
        "holds": road.holds if road else {},
        "road": road.road if road else {},
    }
    pathlib.Path(out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
