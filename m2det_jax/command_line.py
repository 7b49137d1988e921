"""The command line of verbs that take an experiment: --config and its overrides.

Light, so that `--help` and a misspelt flag answer at once.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from m2det_jax import experiment

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: a file, or the name of a shipped one (vgg320, vgg512, vgg800, small320, "
    "quickstart).",
    lock_config=True,
)


def parse(argv: list[str], doc: str, own_flag: str) -> list[str]:
    """Parses flags; what is wrong with them ends in one line that names the nearest key.

    Args:
      doc: printed above the flags when --help is asked for.
      own_flag: any flag of the verb, whose module's flags --help lists beside --config.
    """
    argv = list(argv)
    if {"--help", "-help", "-h", "--helpshort"} & set(argv):
        # absl's own help exits with 1, and lists nothing for a console script.
        print(doc)
        for flag in ("config", own_flag):
            listed = flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag(flag))
            print("\n".join(listed.strip().splitlines()[1:]))  # without the module's name
        sys.exit(0)
    try:
        name = _resolve_config(argv)
        _check_keys(argv, name)
        rest = flags.FLAGS(argv)
        if CONFIG.value is None:
            raise ValueError("give --config, such as --config experiments/vgg512.py (--help)")
        if len(rest) > 1:
            raise ValueError(f"unexpected arguments: {' '.join(rest[1:])}")
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
        text = error.args[0] if error.args else error
        sys.exit("error: " + " ".join(str(text).split()))
    return rest


def config_name() -> str:
    """Returns the name of the experiment that --config gives, without folder and ending."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _resolve_config(argv: list[str]) -> str | None:
    """Replaces the name of a shipped experiment by its file, in place; returns the file."""
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            argv[i] = f"--config={experiment.experiment_path(value)}"
            return argv[i].partition("=")[2]
        if i + 1 < len(argv):
            argv[i + 1] = str(experiment.experiment_path(argv[i + 1]))
            return argv[i + 1]
    return None


def _check_keys(argv: list[str], path: str | None) -> None:
    """Raises ValueError for an override of a key that the experiment does not have."""
    if path is None:
        return
    config = experiment.load_experiment(path)
    keys = experiment.flatten(config)
    for argument in argv:
        flag = argument.partition("=")[0]
        key = flag.lstrip("-").removeprefix("no").removeprefix("config.")
        if flag.lstrip("-").removeprefix("no").startswith("config.") and key not in keys:
            nearest = experiment.nearest_key(config, key)
            raise ValueError(f"{flag}: there is no such key; the nearest is --config.{nearest}")
