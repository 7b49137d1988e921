"""Errors of a training run: what a disk refuses has a name, and is told once."""

import errno
import subprocess
import sys

import pytest

from m2det_jax.training.errors import disk_trouble

# As tensorstore says it, inside of what Orbax raises.
FULL = (
    "RESOURCE_EXHAUSTED: Error writing \"x\" [os_error_code='28'] [source locations='open.cc:61']"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "quota"),
        (OSError(errno.EFBIG, "File too large"), "file size"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.ESTALE, "Stale file handle"), "no longer knows"),
        (ValueError(FULL), "the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file", "run/x"), "run/x"),
        (ValueError("config.batch_size=3"), None),
        (OSError("cannot read image a.jpg"), None),
        (PermissionError(errno.EACCES, "Permission denied"), None),
    ],
)
def test_what_a_disk_refuses_has_a_name(error, said):
    found = disk_trouble(error)
    assert found is None if said is None else said in found


def test_a_failed_save_is_told_once(tmp_path):
    """The disk is a limit on the file size, of a process of its own as it cannot be lifted."""
    program = (
        "import resource, signal, sys\n"
        "from m2det_jax import runtime\n"
        "from m2det_jax.run import checkpoint\n"
        "import numpy as np, orbax.checkpoint as ocp\n"
        "def verb():\n"
        "    tree = {str(i): np.ones((100, 100), np.float32) for i in range(20)}\n"
        "    with checkpoint.open_manager(sys.argv[1]) as manager:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "        manager.save(1, args=ocp.args.Composite(model=ocp.args.StandardSave(tree)))\n"
        "        try:\n"
        "            manager.wait_until_finished()\n"
        "        except (OSError, ValueError) as error:\n"
        "            raise OSError(disk_trouble(error)) from error\n"
        "from m2det_jax.training.errors import disk_trouble\n"
        "with runtime.one_line_errors():\n"
        "    runtime.start()\n"
        "    verb()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if "devices:" not in line]
    assert lines == ["error: a file would grow beyond the allowed file size"]
