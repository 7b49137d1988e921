"""The ops stay light: neither they nor their tests load anything of model, run or data."""

import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import m2det_jax.ops", {"flax", "grain", "orbax", "PIL", "optax", "ml_collections"}),
        ("import conftest, m2det_jax.ops", {"flax", "grain", "orbax", "optax", "ml_collections"}),
    ],
)
def test_importing_ops_pulls_in_no_flax_grain_or_orbax(statement, absent):
    program = f"import sys; sys.path.append({str(TESTS)!r}); {statement}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    loaded = {name.partition(".")[0] for name in loaded}
    assert "jax" in loaded
    assert not loaded & absent
