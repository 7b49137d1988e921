"""The ops stay light: importing them pulls in nothing of the model or of the data side."""

import subprocess
import sys


def test_importing_ops_pulls_in_no_flax_grain_orbax_or_pillow():
    program = "import sys, m2det_jax.ops; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "jax" in loaded
    assert not loaded & {"flax", "grain", "orbax", "PIL", "optax", "ml_collections"}
