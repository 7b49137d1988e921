"""A program that knows only Orbax finds and reads the checkpoints, in old workdirs too."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
import support
from support import running_at, save_steps, state_at

from m2det_jax import train
from m2det_jax.run import checksums
from m2det_jax.run.checkpoint import open_manager, restore_latest
from m2det_jax.trained import restore

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "checkpoints.md"
WITHOUT_US = "import sys\nsys.modules['m2det_jax'] = None\n"
# Prints what was read, for a comparison with what was saved.
SHOW = """
print(step)
for name, tree in (("numpy", variables), ("device", on_device)):
    leaves = jax.tree.leaves(tree)
    print(name, len(leaves), f"{sum(float(np.asarray(x, np.float64).sum()) for x in leaves):.4f}")
"""


@pytest.fixture(scope="module")
def saved(tiny_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    save_steps(workdir, tiny_run, {9: 0.5, 584: 0.3})
    return workdir


@pytest.fixture
def old(saved, tmp_path):
    """The same as earlier versions named it."""
    workdir = tmp_path / "old"
    shutil.copytree(saved, workdir)
    for folder in (workdir / "checkpoints").iterdir():
        folder.rename(folder.with_name(f"{int(folder.name):08d}"))
    return workdir


def run_alone(code: str, devices: int = 1) -> list[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", WITHOUT_US + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("devices", [1, 3])
def test_the_lines_of_the_page(devices, saved, tiny_run):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    folder = '"/path/to/runs/mine/checkpoints"'
    assert folder in code and "m2det_jax" not in code
    step, *read = run_alone(code.replace(folder, repr(f"{saved}/checkpoints")) + SHOW, devices)
    leaves = support.leaves(state_at(tiny_run, 584).eval_variables)
    total = sum(float(leaf.astype(np.float64).sum()) for leaf in leaves)
    assert step == "584"
    assert read == [f"numpy {len(leaves)} {total:.4f}", f"device {len(leaves)} {total:.4f}"]


def test_without_a_target_on_as_many_devices(saved):
    code = f"""
import jax, orbax.checkpoint as ocp
with ocp.CheckpointManager("{saved}/checkpoints") as manager:
    print(manager.all_steps())
    found = manager.restore(584)
print(sorted(found), found["metrics"]["AP"], found["meta"]["class_names"][0])
alone = ocp.StandardCheckpointer().restore("{saved}/checkpoints/584/model")
print(len(jax.tree.leaves(alone)) == len(jax.tree.leaves(found["model"])))
"""
    steps, items, same = run_alone(code, 8)
    assert steps == "[9, 584]" and same == "True"
    assert items == "['meta', 'metrics', 'model', 'train'] 0.3 disc"


def test_old_names_are_restored_and_kept(old, saved, tiny_run):
    assert restore(old).step == 584 and restore(old, "best").step == 9
    support.assert_trees_equal(restore(old).variables, restore(saved).variables)
    with open_manager(old) as manager:
        like = tiny_run.fresh_state(), running_at(tiny_run, 0)
        state, _, _ = restore_latest(manager, *like)
    support.assert_trees_equal(state, state_at(tiny_run, 584))
    save_steps(old, tiny_run, {600: 0.1})
    assert sorted(p.name for p in (old / "checkpoints").iterdir()) == [
        "00000009", "00000584", "00000600"
    ]  # fmt: skip
    options = ocp.CheckpointManagerOptions(step_format_fixed_length=8)
    with ocp.CheckpointManager(old / "checkpoints", options=options) as manager:
        assert sorted(manager.all_steps()) == [9, 584, 600]


def test_damage_in_a_folder_with_an_old_name(old, tiny_run):
    shutil.rmtree(old / "checkpoints" / "00000584" / "train")
    with open_manager(old) as manager:
        assert manager.all_steps() == [9]
    assert checksums.finished_steps(old) == [9]
    assert (old / "damaged" / "00000584").is_dir()


def test_an_old_run_goes_on(whole, drawn_files, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    (workdir / "checkpoints" / "3").rename(workdir / "checkpoints" / "00000003")
    train.train(support.short_config(drawn_files), workdir)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["00000003", "00000006"]
    support.assert_trees_equal(restore(workdir).variables, restore(whole[0]).variables)
