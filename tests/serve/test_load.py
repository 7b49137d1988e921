"""The service under load, with clients that are slow, silent or gone, and with a broken device."""

import concurrent.futures
import contextlib
import json
import re
import tempfile
import threading
import time

import pytest
import serving
from serving import Gate, encoded, multipart, noise, running, wait_until

from m2det_jax.serve import images, server
from m2det_jax.serve.problems import Limits

JPEG = encoded(noise(120, 160))
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def gate(detector):
    gate = Gate(detector)
    yield gate
    gate.open.set()


@contextlib.contextmanager
def waiting(service, count: int):
    """Yields the answers to come of requests that are in the service by then."""
    before = service.server.predict.accepted
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(service.post, JPEG) for _ in range(count)]
        wait_until(lambda: service.server.predict.accepted == before + count)
        yield futures


def read_answer(connection) -> bytes:
    """Returns the next answer on a connection."""
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(65536) or b"closed\r\n\r\n"
    head, _, body = content.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head + body


def read_all(connection) -> bytes:
    """Returns what comes until the connection is closed, however that happens."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            content += data
    return content


def test_requests_that_wait_together_are_a_batch_of_a_compiled_size(gate):
    with running(gate) as service:
        assert gate.sizes == [(1, 1), (2, 2), (4, 4)]
        gate.open.clear()
        with waiting(service, 1) as first:
            wait_until(lambda: len(gate.sizes) == 4)
            with waiting(service, 9) as others:
                wait_until(lambda: len(service.server.device._waiting) >= 6)
                gate.open.set()
                assert [f.result().status for f in [*first, *others]] == [200] * 10
    assert all(count == size in (1, 2, 4) for count, size in gate.sizes)
    assert (4, 4) in gate.sizes[4:] and sum(count for count, _ in gate.sizes[3:]) == 10


def test_a_full_queue_sends_away_at_once(gate):
    with running(gate, queue=3) as service:
        gate.open.clear()
        with waiting(service, 3) as answers:
            for _ in range(2):
                refused = service.post(JPEG)
                assert refused.status == 503 and int(refused.headers["retry-after"]) >= 1
                assert "3 images" in refused.json["error"]
            assert service.ask("GET", "/readyz").status == 200
            gate.open.set()
            assert [f.result().status for f in answers] == [200] * 3
        assert service.post(JPEG).status == 200


def test_the_memory_of_bodies_is_bounded(detector):
    with running(detector, max_body=1000, queue=50) as service, contextlib.ExitStack() as stack:
        held = [stack.enter_context(service.connect()) for _ in range(9)]
        for connection in held[:8]:
            connection.sendall(HEAD % 1000 + bytes(999))
        wait_until(lambda: service.server.predict._memory.held == 8 * 999)
        held[8].sendall(HEAD % 1000 + bytes(999))
        assert b" 503 " in read_answer(held[8]) and service.server.predict._memory.held <= 8000
        for connection in held:
            connection.close()
        wait_until(lambda: not service.server.predict.in_flight())
        assert service.server.predict._memory.held == 0


def test_a_large_body_is_refused_before_and_while_it_comes(detector):
    with running(detector, max_body=100_000) as service:
        answer = service.post(bytes(2_000_000))
        assert answer.status == 413 and "100000 bytes" in answer.json["error"]
        with service.connect() as connection:  # of unknown length
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\n"
                               b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
            for _ in range(9):
                connection.sendall(b"4e20\r\n" + bytes(20_000) + b"\r\n")
            assert b" 413 " in read_answer(connection)
        with service.connect() as connection:  # the answer comes before the body
            connection.sendall(HEAD % 10**12)
            assert b" 413 " in read_answer(connection)


def test_nothing_is_written_to_a_file(service, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a file")

    for name in ("TemporaryFile", "SpooledTemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    body, content_type = multipart(JPEG + bytes(5 * 2**20))
    assert service.post(body, Content_Type=content_type).status == 200


def test_a_slow_sender_is_answered_in_time_and_holds_nothing(detector):
    with running(detector, timeout=0.5) as service, service.connect() as connection:
        connection.sendall(HEAD % len(JPEG) + JPEG[:100])
        begin = time.monotonic()
        answer = read_answer(connection)
        assert 0.3 < time.monotonic() - begin < 20
        assert b" 408 " in answer and b"got 100 bytes" in answer
        wait_until(lambda: not service.server.predict.in_flight())


def test_an_image_that_is_not_answered_in_time(gate):
    with running(gate, timeout=0.5) as service:
        gate.open.clear()
        answer = service.post(JPEG)
        assert answer.status == 504 and "0.5 seconds" in answer.json["error"]
        wait_until(lambda: service.ask("GET", "/healthz").status == 503)
        assert "device has not answered" in service.ask("GET", "/healthz").json["error"]
        gate.open.set()
        wait_until(lambda: service.ask("GET", "/healthz").status == 200)
        assert service.post(JPEG).status == 200


@pytest.mark.parametrize("sent", [b"", b"POST /predict HTTP/1.1\r\nHost:", HEAD % 5 + b"12"])
def test_a_silent_connection_is_closed(detector, monkeypatch, sent):
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.3)
    monkeypatch.setattr(server, "_LOOK_SECONDS", 0.1)
    with running(detector, timeout=0.5) as service, service.connect() as connection:
        connection.sendall(sent)
        assert (b" 408 " in read_all(connection)) == (sent[-2:] == b"12")
        # The second head of a connection, too.
        with service.connect() as second:
            second.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"alive" in read_answer(second)
            second.sendall(b"GET /healthz HTTP/1.1\r\nHost")
            assert read_all(second) == b""


def test_a_client_that_does_not_take_its_answer_is_left(detector, monkeypatch):
    monkeypatch.setattr(server, "_LOOK_SECONDS", 0.1)
    with running(detector, timeout=1) as service, service.connect() as connection:
        connection.setsockopt(serving.socket.SOL_SOCKET, serving.socket.SO_RCVBUF, 4096)
        head = b"POST /predict?draw=1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        answer = bytes(20 * 2**20)
        monkeypatch.setattr(service.server.predict._images, "draw", lambda result: answer)
        connection.sendall(head % len(JPEG) + JPEG)
        wait_until(lambda: service.server.predict.in_flight() == 1)
        wait_until(lambda: service.server.predict.in_flight() == 0, 20)
        wait_until(lambda: not service.server.server_state.connections)


def test_a_client_that_has_gone_costs_the_device_nothing(gate):
    with running(gate) as service:
        gate.open.clear()
        with waiting(service, 1) as first:
            wait_until(lambda: len(gate.sizes) == 4)
            gone = [service.connect() for _ in range(4)]
            for connection in gone:
                connection.sendall(HEAD % len(JPEG) + JPEG)
            wait_until(lambda: len(service.server.device._waiting) == 4)
            for connection in gone:
                connection.close()
            wait_until(lambda: service.server.predict.in_flight() == 1)
            gate.open.set()
            assert first[0].result().status == 200
        assert service.post(JPEG).status == 200
    assert sum(count for count, _ in gate.sizes[3:]) == 2


def test_an_error_of_the_device_is_an_answer(gate, capfd):
    with running(gate) as service:
        gate.errors = [RuntimeError("no memory") for _ in range(3)]
        for number in range(3):
            assert service.ask("GET", "/healthz").status == 200, number
            answer = service.post(JPEG)
            assert answer.status == 500 and "device failed" in answer.json["error"]
        assert "last 3 batches" in service.ask("GET", "/healthz").json["error"]
        assert service.post(JPEG).status == 200
        assert service.ask("GET", "/healthz").status == 200


def test_the_end_of_the_device_thread_leaves_nobody_waiting(gate):
    with running(gate) as service:
        gate.open.clear()
        gate.errors = [SystemExit("gone")]
        with waiting(service, 6) as answers:
            gate.open.set()
            for future in answers:
                with contextlib.suppress(ConnectionError):  # the service ends with the thread
                    assert future.result(30).status in (500, 503)
        wait_until(lambda: service.server.should_exit or not service.server.servers[0].sockets)
    assert isinstance(service.server.device.failure, SystemExit)


def test_pipelined_requests_are_answered_in_turn(service):
    with service.connect() as connection:
        good, bad = HEAD % len(JPEG) + JPEG, HEAD % 5 + b"hello"
        last = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        connection.sendall(good + bad + good + last)
        answers = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [200, 415, 200, 200]
    assert b"alive" in answers[-1]


@pytest.mark.parametrize(
    "sent", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"]
)
def test_what_is_not_http_or_has_too_many_headers(service, sent):
    with service.connect() as connection:
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(sent), 4000):
                connection.sendall(sent[at : at + 4000])
                time.sleep(0.001)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert b" 400 " in head and set(json.loads(body)) == {"error", "expected", "remedy"}


def test_what_was_accepted_is_answered_before_the_end(gate):
    with running(gate) as service:
        gate.open.clear()
        with waiting(service, 5) as answers, service.connect() as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"alive" in read_answer(idle)
            service.server.should_exit = True
            wait_until(lambda: service.server.predict.stopping)
            idle.sendall(HEAD % len(JPEG) + JPEG)
            assert b" 503 " in read_answer(idle)
            with pytest.raises(ConnectionError):
                service.post(JPEG)
            threading.Timer(0.2, gate.open.set).start()
            assert [f.result().status for f in answers] == [200] * 5


def test_images_that_are_decoded_at_the_same_time_have_few_pixels_together(detector, monkeypatch):
    held, most = [], []

    def look_at(image, resizes):
        held.append(images.count_pixels(image))
        most.append(sum(held))
        time.sleep(0.01)
        held.remove(images.count_pixels(image))
        return original(image, resizes)

    original = images.look_at
    monkeypatch.setattr(images, "look_at", look_at)
    pictures = [encoded(noise(100, width)) for width in (10, 40, 60, 90) * 6]
    decoder = images.Images(detector.resizes, Limits(max_pixels=10_000))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [seen[0].size[1] for seen in pool.map(decoder.decode, pictures)] == [100] * 24
    assert 5_000 < max(most) <= 10_000 and len(most) == 24
