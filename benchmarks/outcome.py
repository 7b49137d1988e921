"""Outcome of a finished run: all that it leaves in its workdir, compared bit for bit."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from m2det_jax.run.checkpoint import open_manager
from m2det_jax.run.history import read_history

LEFT = {"checkpoints", "config.json", "history.jsonl", "tensorboard", "train_samples.png"}
CLOCK = {"images_per_second", "data_wait_share"}


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns all that a finished run leaves, except measured times, as {name: value}."""
    args = ocp.args.Composite(
        model=ocp.args.StandardRestore(),
        train=ocp.args.StandardRestore(),
        meta=ocp.args.JsonRestore(),
    )
    with open_manager(workdir, read_only=True) as manager:
        last, best = max(manager.all_steps()), manager.best_step()
        found = manager.restore(last, args=args)
        best_model = manager.restore(best, args=ocp.args.Composite(model=args["model"])).model
    trees = {"model": found.model, "train": found.train, "best": best_model}
    leaves = {
        f"{name}{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    history = [{k: v for k, v in r.items() if k not in CLOCK} for r in read_history(workdir)]
    return leaves | {
        "last step": last,
        "best step": best,
        "progress": found.meta["progress"],
        "history.jsonl": repr(history),  # as text, because NaN does not equal NaN
        "config.json": (workdir / "config.json").read_text(),
        "train_samples.png": (workdir / "train_samples.png").read_bytes(),
        "files": {path.name for path in workdir.iterdir()} - {"damaged"} - LEFT,
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Returns the names of the values that are not the same, bit for bit."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, np.ndarray):
            return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
        return a == b

    names = [
        name for name in expected if name not in found or not same(found[name], expected[name])
    ]
    return [*names, *(found.keys() - expected.keys())]
