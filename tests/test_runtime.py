"""What the process around a verb sets up. That XLA knows the flags, the started commands show."""

import logging
import os

import pytest

from m2det_jax import runtime

YNN = "--xla_cpu_experimental_ynn_fusion_type="
DETERMINISTIC = "--xla_gpu_deterministic_ops="


@pytest.fixture
def flags_after(monkeypatch):
    def flags_after(before: str | None, **options) -> list[str]:
        if before is None:
            monkeypatch.delenv("XLA_FLAGS", raising=False)
        else:
            monkeypatch.setenv("XLA_FLAGS", before)
        runtime.add_xla_flags(**options)
        return os.environ["XLA_FLAGS"].split()

    return flags_after


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


@pytest.mark.parametrize(
    "what, value",
    [("jax.__version_info__", (0, 13, 0)), ("importlib.util.find_spec", lambda name: name)],
)
def test_an_xla_of_unknown_age_gets_no_flag_that_might_stop_it(
    flags_after, monkeypatch, what, value
):
    monkeypatch.setattr(what, value)
    assert flags_after(None) == []


def test_what_terminals_obey_is_escaped_in_log_lines_and_errors(capsys):
    record = logging.LogRecord(
        "m2det_jax", logging.INFO, "x.py", 1, "skipped: %s\nmore", ("a\x1b[31m\r.jpg",), None
    )
    runtime._BesideTheBar().emit(record)
    assert capsys.readouterr().err == "skipped: a\\x1b[31m\\r.jpg\nmore\n"

    def refuse():
        raise ValueError("photo\x1b[2J.jpg: no such file")

    with pytest.raises(SystemExit) as ended:
        runtime.one_line_errors(refuse)
    assert ended.value.code == "error: photo\\x1b[2J.jpg: no such file"


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "interrupted\n"), ({"interrupted": runtime.GOES_ON}, f"{runtime.GOES_ON}\n")],
)
def test_only_a_run_with_checkpoints_speaks_of_them(capsys, options, words):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        runtime.one_line_errors(interrupt, **options)
    assert ended.value.code == 130 and capsys.readouterr().err == words
