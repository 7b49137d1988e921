"""What a user can mend ends a command in one line; a bug keeps its traceback and says so."""

import pickle
import traceback

import pytest

from m2det_jax import runtime
from m2det_jax.data import DataError
from m2det_jax.data.images import UnreadableImage
from m2det_jax.errors import BUG, InputError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.csv:1: a header row; remove it"), "a.csv:1: a header row; remove it"),
        (FileNotFoundError(2, "No such file", "a.csv"), "a.csv: No such file"),
        (OSError(18, "Other device", "a", None, "b"), "a -> b: Other device"),
        (OSError("the disk is full"), "the disk is full"),
        (FloatingPointError("the loss is nan at step 3"), "the loss is nan at step 3"),
        (MemoryError("64 GiB"), "64 GiB"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line(error, line, monkeypatch):
    monkeypatch.delenv("M2DET_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as caught, runtime.one_line_errors():
        raise error
    assert caught.value.code == f"error: {line}"
    monkeypatch.setenv("M2DET_TRACEBACK", "1")
    with pytest.raises(type(error)), runtime.one_line_errors():
        raise error


@pytest.mark.parametrize("error", [ValueError("shapes differ"), KeyError("a"), AssertionError()])
def test_a_bug_keeps_its_traceback_and_says_that_it_is_one(error):
    with pytest.raises(type(error)) as caught, runtime.one_line_errors():
        raise error
    *_, last = traceback.format_exception(caught.value)
    assert last.strip() == BUG


def test_user_errors_are_value_errors_and_pass_between_processes():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", OSError("it is cut off"))))
    assert isinstance(error, InputError) and str(error) == "cannot read image a.png: it is cut off"
    assert issubclass(InputError, ValueError) and issubclass(DataError, InputError)
