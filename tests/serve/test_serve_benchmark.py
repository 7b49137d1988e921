"""The benchmark of the service in a small form: good and bad clients, all answered as expected."""

import collections
import importlib
import pathlib
import socket
import threading

import pytest
from serving import encoded, noise, running

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)
    return importlib.import_module("benchmarks.serve")


IMAGES = [encoded(noise(80 + 40 * i, 120, seed=i)) for i in range(10)]


def test_hundreds_of_requests_are_all_answered_as_expected(benchmark, detector, capsys):
    requests = benchmark.prepare(IMAGES, 400)
    kinds = collections.Counter(request.kind for request in requests)
    assert kinds["good"] == 320 and kinds.keys() == {"good", *benchmark.BAD}
    with running(detector, timeout=2) as service:
        outcomes = benchmark.send_all(service.port, requests, 16)
        assert benchmark.report(outcomes, 1.0), capsys.readouterr().out
        assert service.ask("GET", "/healthz").status == 200
    assert sorted(id(one.request) for one in outcomes) == sorted(map(id, requests))
    said = capsys.readouterr().out
    assert "200: 320" in said and "lost answers                       0" in said


def test_a_lost_and_a_wrong_answer_are_seen(benchmark, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_once() -> None:
            for text in (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
                         b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"):  # fmt: skip
                connection = server.accept()[0]
                connection.recv(65536)
                connection.sendall(text)
                connection.close()

        threading.Thread(target=answer_once).start()
        good = benchmark.Request("good", benchmark.http(b"image"), 200)
        outcomes = benchmark.send_all(server.getsockname()[1], [good, good], 1)
    assert [one.status for one in outcomes] == [None, 500]
    assert [one.lost for one in outcomes] == [True, False]
    assert not benchmark.report(outcomes, 1.0)
    assert "'good 500': 1" in capsys.readouterr().out


def test_bombs_are_small(benchmark):
    assert len(benchmark.png_bomb()) < 100_000 and len(benchmark.gif_bomb()) < 1000
