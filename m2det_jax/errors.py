"""User errors told from bugs by their type."""

import pathlib
import traceback

# The last line behind the traceback of all other errors.
BUG = "This is a bug of m2det_jax: please report it, with the lines above and the command."


class InputError(ValueError):
    """What the user gave does not fit; the message names place, value and remedy.

    A command ends in that message alone; any other ValueError is a bug and keeps its traceback.
    """


def in_one_line(error: Exception, module: str) -> str:
    """Returns kind and text of an error in a program of the user's, and its place in that.

    Args:
      module: name of the program, such as that of an experiment's file without ending.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    places = [
        f", {pathlib.Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).stem == module.rpartition(".")[2]
    ]
    return text + "".join(places[-1:])


def in_words(error: BaseException) -> str:
    """Returns the text of an error; of a system call the file and what is wrong, no number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        names = (name for name in (error.filename, error.filename2) if name is not None)
        return f"{' -> '.join(map(str, names))}: {error.strerror}"
    return str(error)
