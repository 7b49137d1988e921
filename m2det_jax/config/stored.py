"""The config that a run has left in its workdir, as an experiment of its own.

`--config runs/mine/config.json`, or `--workdir runs/mine` alone, takes it.
"""

import json
import pathlib

from ml_collections import ConfigDict

from m2det_jax.config.experiments import stored_config
from m2det_jax.config.paths import find_paths
from m2det_jax.errors import InputError


def get_config(path: str) -> ConfigDict:
    """Returns the config in config.json or in a checkpoint's meta, read as `stored_config` does.

    Files that it names are looked for beside the workdir where they are not in their place.

    Raises:
      ValueError: the file is no config of this program, or has keys that this version has not.
    """
    file = pathlib.Path(path)
    content = _read(file)
    workdir = file.parent
    if file.name == "metadata":
        workdir = file.parents[3]  # workdir/checkpoints/STEP/meta/metadata
    elif metas := stored_metas(workdir):
        # config.json does not say which version wrote it.
        content = {"config": content, "versions": _read(metas[0]).get("versions", {})}
    try:
        return find_paths(stored_config(content, source=path), workdir)
    except ValueError as error:
        raise InputError(f"{error}; or give --config") from None


def stored_metas(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files with the meta of the checkpoints in a workdir, the newest first."""
    found = workdir.glob("checkpoints/*/meta/metadata")
    steps = {path: path.parts[-3] for path in found if path.parts[-3].isdigit()}
    return sorted(steps, key=lambda path: int(steps[path]), reverse=True)


def _read(file: pathlib.Path) -> dict:
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("no object")
        return content
    except ValueError as error:
        raise InputError(f"{file} is not a config in JSON ({error}); give --config") from None
