"""The command `m2det serve`: its start, its end by a signal under load, and its errors."""

import concurrent.futures
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from serving import encoded, noise
from test_main import ONE_DEVICE

from m2det_jax.errors import InputError
from m2det_jax.serve import server
from m2det_jax.serve.__main__ import parse

JPEG = encoded(noise(120, 160))


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "m2det_jax.serve", *map(str, arguments)]
    return subprocess.Popen(
        command, env=os.environ | ONE_DEVICE, stderr=subprocess.PIPE, text=True, **options
    )


def lines_until(process: subprocess.Popen, text: str) -> str:
    """Returns what the process writes until a line has a text."""
    said = ""
    while line := process.stderr.readline():
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def test_a_signal_under_load_ends_it_when_all_is_answered(workdir):
    process = start("--workdir", workdir, "--port", 0, "--batch_size", 2)
    said = lines_until(process, "ready: batch sizes 1, 2")
    assert "only this machine can reach it" in said
    port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", said)[0])

    def send_until_it_ends(_) -> list[int]:
        statuses = []
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while True:
                connection.request("POST", "/predict", JPEG)
                statuses.append(connection.getresponse().status)
                connection.close()
        except (ConnectionError, http.client.HTTPException):
            return statuses

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        clients = [pool.submit(send_until_it_ends, i) for i in range(12)]
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        statuses = [status for client in clients for status in client.result(60)]
    assert process.wait(60) == 0
    accepted, answered = map(int, re.findall(r"(\d+) images were accepted, (\d+) answered",
                                             process.stderr.read())[0])  # fmt: skip
    process.stderr.close()
    assert accepted == answered == statuses.count(200) > 12
    assert set(statuses) <= {200, 503}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workdir", "gone"], "gone"),
        (["--workdir", "gone", "--host", "no.such.host.invalid"], "no address of this machine"),
    ],
)
def test_an_error_at_the_start_is_one_line(arguments, said, tmp_path):
    process = start(*arguments, "--port", 0, cwd=tmp_path)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in error
    assert error.splitlines()[-1].startswith("error: ") and said in error


def test_an_address_that_is_in_use():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"--port {port}: Address already in use; give another"),
            server.bound_socket("127.0.0.1", port),
        ):
            pass


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "h11", "prometheus_client"])
def test_a_missing_package_names_the_extra(name):
    program = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "from m2det_jax.serve import cli; cli(['--workdir', 'x'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"the service needs {name}" in done.stderr and "m2det_jax[serve]" in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("port", "70000"), ("port", "http"), ("threshold", "1.5"), ("timeout", "0"),
     ("timeout", "inf"), ("queue", "0"), ("queue", "1.5"), ("max_pixels", "-1"),
     ("batch_size", "-2"), ("max_body", "much")],
)  # fmt: skip
def test_a_flag_out_of_range_is_refused(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--workdir", "x", f"--{flag}", value])
    assert ended.value.code == 2 and value in capsys.readouterr().err


def test_who_can_reach_it_is_said(log_of_run):
    for host, said in [
        ("127.0.0.1", "only this machine"),
        ("0.0.0.0", "everybody who can reach this machine"),
    ]:
        with server.bound_socket(host, 0) as bound:
            server._announce(bound)
        assert said in log_of_run.messages[-1] and f"http://{host}:" in log_of_run.messages[-1]
