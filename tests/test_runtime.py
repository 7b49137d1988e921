"""What the process around a verb sets up. That XLA knows the flags, the started commands show."""

import logging
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec

import jax
import pytest

from m2det_jax import runtime
from m2det_jax.errors import InputError

YNN = "--xla_cpu_experimental_ynn_fusion_type="
DETERMINISTIC = "--xla_gpu_deterministic_ops="


@pytest.fixture
def flags_after(monkeypatch):
    monkeypatch.delenv("PJRT_NAMES_AND_LIBRARY_PATHS", raising=False)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cpu")  # whatever else is installed here

    def flags_after(before: str | None, **options) -> list[str]:
        if before is None:
            monkeypatch.delenv("XLA_FLAGS", raising=False)
        else:
            monkeypatch.setenv("XLA_FLAGS", before)
        runtime.add_xla_flags(**options)
        return os.environ["XLA_FLAGS"].split()

    yield flags_after
    jax.config.update("jax_platforms", before)


def test_convolutions_of_a_cpu_go_to_eigen(flags_after):
    (flag,) = flags_after(None)
    assert flag.startswith(YNN) and "CONVOLUTION" not in flag
    assert flags_after("--xla_force_host_platform_device_count=8") == [
        "--xla_force_host_platform_device_count=8",
        flag,
    ]


def test_flags_of_the_user_stay_and_none_is_given_twice(flags_after):
    own = f"{YNN}LIBRARY_FUSION_TYPE_DOT"
    assert flags_after(own) == [own]
    once = flags_after(own, deterministic=True)
    assert once == [own, f"{DETERMINISTIC}true"]
    assert flags_after(" ".join(once), deterministic=True) == once


def test_deterministic_kernels_of_the_config_win(flags_after):
    flags = flags_after(f"{DETERMINISTIC}false", deterministic=True)
    assert [flag for flag in flags if flag.startswith(DETERMINISTIC)][-1] == f"{DETERMINISTIC}true"


def a_new_jaxlib(monkeypatch, path):
    monkeypatch.setattr("jax.__version_info__", (0, 13, 0))


def a_libtpu(monkeypatch, path):
    (path / "libtpu").mkdir()


def a_plugin_with_an_entry_point(monkeypatch, path):
    about = path / "some_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[jax_plugins]\nsome = some_plugin\n")


def a_plugin_in_the_shared_package(monkeypatch, path):
    (path / "jax_plugins" / "xla_rocm7").mkdir(parents=True)
    (path / "jax_plugins" / "xla_rocm7" / "__init__.py").touch()


def a_plugin_of_the_environment(monkeypatch, path):
    monkeypatch.setenv("PJRT_NAMES_AND_LIBRARY_PATHS", "some:/usr/lib/some.so")


OTHERS = [
    a_new_jaxlib,
    a_libtpu,
    a_plugin_with_an_entry_point,
    a_plugin_in_the_shared_package,
    a_plugin_of_the_environment,
]


@pytest.mark.parametrize("other", OTHERS)
def test_an_xla_of_unknown_age_gets_no_flag_that_might_stop_it(
    flags_after, monkeypatch, tmp_path, other
):
    monkeypatch.syspath_prepend(tmp_path)
    other(monkeypatch, tmp_path)
    jax.config.update("jax_platforms", None)  # as where nobody has chosen
    assert flags_after(None) == []


@pytest.mark.parametrize("other", OTHERS[1:])
@pytest.mark.parametrize(("chosen", "flags"), [("cpu", 1), ("cuda,cpu", 0), ("rocm", 0)])
def test_the_platforms_that_are_chosen_decide_before_what_is_installed(
    flags_after, monkeypatch, tmp_path, other, chosen, flags
):
    monkeypatch.syspath_prepend(tmp_path)
    other(monkeypatch, tmp_path)
    jax.config.update("jax_platforms", chosen)
    assert len(flags_after(None)) == flags


@pytest.mark.parametrize("shared_package", [None, ModuleSpec("jax_plugins", None, is_package=True)])
def test_a_jax_without_plugins_runs_on_the_cpu(flags_after, monkeypatch, shared_package):
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: shared_package if name == "jax_plugins" else None
    )
    assert len(flags_after(None)) == 1


def test_what_terminals_obey_is_escaped_in_log_lines_and_errors(capsys):
    record = logging.LogRecord(
        "m2det_jax", logging.INFO, "x.py", 1, "skipped: %s\nmore", ("a\x1b[31m\r.jpg",), None
    )
    runtime._BesideTheBar().emit(record)
    assert capsys.readouterr().err == "skipped: a\\x1b[31m\\r.jpg\nmore\n"

    with pytest.raises(SystemExit) as ended, runtime.one_line_errors():
        raise InputError("photo\x1b[2J.jpg: no such file")
    assert ended.value.code == "error: photo\\x1b[2J.jpg: no such file"


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "interrupted\n"), ({"interrupted": runtime.GOES_ON}, f"{runtime.GOES_ON}\n")],
)
def test_only_a_run_with_checkpoints_speaks_of_them(capsys, options, words):
    with pytest.raises(SystemExit) as ended, runtime.one_line_errors(**options):
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == words


@pytest.mark.parametrize("count", [1, 2])
def test_programs_of_several_cpu_devices_are_not_taken_from_the_cache(count, tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    program = "import jax; from m2det_jax import runtime; jax.jit(lambda x: x + 1)(1); "
    program += "runtime.start(); jax.jit(lambda x: x * 2)(1)"
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    kept = len({path.name for path in tmp_path.glob("*-cache")})
    assert kept == (2 if count == 1 else 1)  # the first is compiled before
