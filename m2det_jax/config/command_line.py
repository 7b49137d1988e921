"""The command line of verbs that take an experiment: --config and its overrides.

Light, so that `--help` and a misspelt flag answer at once.
"""

import pathlib
import re
import sys
from collections.abc import Mapping

from absl import flags
from ml_collections import config_flags

from m2det_jax.config import experiments
from m2det_jax.config.dotted import flatten, nearest_key
from m2det_jax.config.experiment_checks import load_checked
from m2det_jax.config.keys import FORMATS
from m2det_jax.config.stored import stored_file
from m2det_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: a file, or the name of a shipped one (vgg320, vgg512, vgg800, small320, "
    "quickstart).",
    lock_config=True,
)
_TRUST = flags.DEFINE_bool(
    "trust",
    False,
    "Import the Python module that the config of a workdir names as config.data.format.",
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
    keys: Mapping[str, object] = {}
    try:
        name = _resolve_config(argv)
        keys = _check_keys(argv, name)
        rest = flags.FLAGS(argv)
        if CONFIG.value is None:
            raise InputError(
                "give --config, such as --config experiments/vgg512.py, or the --workdir of a run "
                "to go on with (--help)"
            )
        if len(rest) > 1:
            raise InputError(f"unexpected arguments: {' '.join(rest[1:])}")
        _refuse_untrusted(argv, name or "")
    except (InputError, OSError, flags.Error) as error:
        text = str(error.args[0] if error.args else error)
        sys.exit("error: " + _with_type(" ".join(text.split()), keys))
    return rest


def _with_type(text: str, keys: Mapping[str, object]) -> str:
    """Says which type a flag takes, in place of what Python says of a value that it cannot read."""
    found = re.match(r"flag (--([\w.]+)=.*?): (invalid|could not|\('Non-boolean)", text)
    if not found:
        return text
    given, name, _ = found.groups()
    if (key := name.removeprefix("config.")) in keys:
        return f"{given}: give a value of type {type(keys[key]).__name__}, now {keys[key]!r}"
    return f"{given}: give a value of type {flags.FLAGS[name].flag_type()}"


def config_name() -> str:
    """Returns the name of the experiment that --config gives, without folder and ending."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _resolve_config(argv: list[str]) -> str | None:
    """Replaces the name of an experiment by its file, in place; returns it.

    Where there is none, the config in the workdir is taken, if that has one.
    """
    given = {}
    if sum(argument.partition("=")[0] in ("--config", "-config") for argument in argv) > 1:
        raise InputError("--config is given twice; give one experiment")
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        value = value if equals else "".join(argv[i + 1 : i + 2])
        given[flag.lstrip("-")] = value
        if flag in ("--config", "-config"):
            argv[i : i + 1 + (not equals)] = [f"--config={_config_file(value)}"]
            return argv[i].partition("=")[2]
    stored = stored_file(pathlib.Path(given.get("workdir", "")))
    if "workdir" not in given or stored is None:
        return None
    argv.insert(1, f"--config={_stored(stored)}")
    return argv[1].partition("=")[2]


def _config_file(name: str) -> str:
    """The file of an experiment, with the text for its get_config where it takes one."""
    name, colon, text = name.partition(":")
    path = experiments.experiment_path(name)
    if path.suffix == ".json":
        return _stored(path)
    return f"{path}{colon}{text}"


_STORED = pathlib.Path(__file__).with_name("stored.py")


def _stored(path: pathlib.Path) -> str:
    """A config in JSON as an experiment that config_flags can read."""
    return f"{_STORED}:{path.absolute()}"


def _refuse_untrusted(argv: list[str], name: str) -> None:
    """Refuses a module to import that only a stored config names: a workdir is data, not code."""
    module = CONFIG.value.data.format
    given = any(flag.lstrip("-").partition("=")[0] == "config.data.format" for flag in argv)
    if module in FORMATS or given or _TRUST.value or not name.startswith(f"{_STORED}:"):
        return
    raise InputError(
        f"{name.partition(':')[2]} names the Python module {module!r} as config.data.format, and "
        f"importing it runs its code; give --config.data.format={module}, or --trust"
    )


def _check_keys(argv: list[str], path: str | None) -> dict[str, object]:
    """Returns the keys with the experiment's values.

    Raises:
        InputError: an override of a key that the experiment does not have, or no experiment at all.
    """
    if path is None:
        return {}
    config = load_checked(path)
    keys = flatten(config)
    for argument in argv:
        flag = argument.partition("=")[0]
        key = flag.lstrip("-").removeprefix("no").removeprefix("config.")
        if flag.lstrip("-").removeprefix("no").startswith("config.") and key not in keys:
            nearest = nearest_key(config, key)
            raise InputError(f"{flag}: there is no such key; the nearest is --config.{nearest}")
    return keys
