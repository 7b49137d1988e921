"""Command line `m2det VERB ...`, the entry point of all verbs; also `python -m m2det_jax`.

It imports the module of one verb only, so that --help and --version are fast.
"""

import difflib
import importlib
import importlib.metadata
import platform
import sys
from typing import NamedTuple, NoReturn

from m2det_jax import __version__


class Verb(NamedTuple):
    """A row of the table of verbs.

    Attributes:
        module: the module of `m2det_jax` whose `cli` runs the verb.
        summary: one line for --help.
    """

    module: str
    summary: str


VERBS = {
    "train": Verb("main", "train a detector, or continue a run"),
    "evaluate": Verb("evaluate", "average precision of a trained detector on annotated images"),
    "report": Verb("report", "what a detector has learnt and where it fails, on one HTML page"),
    "replay": Verb("replay", "repeat a step whose loss is not finite; name the layer and image"),
    "predict": Verb("predict", "detect objects in images: pictures and JSON"),
    "serve": Verb("serve", "answer images over HTTP, with a page to try a detector"),
    "check": Verb("check", "check a data set before training, on one HTML page"),
    "export": Verb("export", "a detector for use without this package, compared with the native"),
    "benchmark": Verb("benchmark", "milliseconds a picture of a detector and of exported files"),
    "convert": Verb("convert", "weights of other programs in and out"),
    "convert-dataset": Verb("convert_dataset", "CSV, COCO, VOC, KITTI, Open Images, YOLO"),
    "demo": Verb("demo", "draw a data set, train on it, evaluate, predict"),
    "doctor": Verb("doctor", "versions and devices; why the GPU is not used, and the fix"),
}
_NAMED = ("jax", "jaxlib", "flax", "orbax-checkpoint", "grain", "numpy", "pillow")
_HELP = ("--help", "-h", "-help", "--helpshort")


def cli(argv: list[str] | None = None) -> None:
    """Entry point of `m2det`: runs a verb with the arguments after its name.

    Args:
        argv: the command line without the program; None: that of the process.

    Raises:
        SystemExit: with the exit status of the verb; 2 if there is no such verb.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    first, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if first == "help":
        first, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    if first in _HELP:
        print(_usage())
    elif first == "--version":
        print(_versions())
    elif first in VERBS:
        # A verb reads sys.argv, as it does if its own command starts it.
        sys.argv = [f"m2det {first}", *rest]
        importlib.import_module(f"m2det_jax.{VERBS[first].module}").cli()
    else:
        _refuse(first)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: m2det VERB [arguments]",
            "       m2det VERB --help",
            "       m2det --version",
            "",
            "M2Det, a single-shot object detector, in JAX and Flax.",
            "",
            *verbs,
        ]
    )


def _versions() -> str:
    """Returns the versions of this package and of the packages below it, without importing them."""
    others = [f"Python {platform.python_version()}"]
    for name in _NAMED:
        try:
            others.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            others.append(f"{name} missing")
    return (
        f"m2det_jax {__version__}\n{', '.join(others)}\n"
        "`m2det doctor` shows the devices and whether the GPU is used"
    )


def _refuse(name: str) -> NoReturn:
    if name.startswith("-"):
        text = f"{name!r} stands before the verb; give m2det VERB {name}"
    else:
        nearest = difflib.get_close_matches(name.replace("_", "-"), VERBS, n=1, cutoff=0.5)
        hint = f"the nearest is {nearest[0]!r}" if nearest else f"there are {', '.join(VERBS)}"
        text = f"there is no verb {name!r}; {hint}"
    print(f"error: {text} (m2det --help lists all)", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    cli()
