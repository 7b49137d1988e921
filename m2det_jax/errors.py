"""User errors told from bugs by their type."""

import pathlib
import traceback


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
