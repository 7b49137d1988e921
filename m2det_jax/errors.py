"""Errors: `InputError` for what the user can fix; other errors are bugs."""

import pathlib
import traceback

# The last line after the traceback of all other errors.
BUG = "This is a bug of m2det_jax: please report it, with the lines above and the command."


class InputError(ValueError):
    """Wrong input of the user; the message names the place, the value and the remedy.

    A command prints only that message. Any other ValueError is a bug and keeps its traceback.
    """


def in_one_line(error: Exception, module: str) -> str:
    """Returns type, text and line of an error in a Python module of the user.

    Args:
        error: the error that was raised.
        module: name of the module, such as the file name of an experiment without ".py".
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    places = [
        f", {pathlib.Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).stem == module.rpartition(".")[2]
    ]
    return text + "".join(places[-1:])


def in_words(error: BaseException) -> str:
    """Returns the text of an error. For a failed system call: the file and the reason, no errno."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        names = (name for name in (error.filename, error.filename2) if name is not None)
        return f"{' -> '.join(map(str, names))}: {error.strerror}"
    return str(error)
