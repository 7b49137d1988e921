"""A service in a thread of this process, on a real socket, and clients for it."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator

import numpy as np
from PIL import Image

from m2det_jax.serve.problems import Limits
from m2det_jax.serve.server import Server, bound_socket, make_server

SECONDS = 60  # of waiting for anything, before a test fails


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer: HTTP status, headers in lower case, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True)
class Running:
    """A service that runs; its server has `predict` and `device`."""

    server: Server
    port: int

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Sends a request on a connection of its own; headers are written with underscores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            fields = {name.lower(): text for name, text in answer.getheaders()}
            return Answer(answer.status, fields, answer.read())

    def post(self, body: bytes, query: str = "", **headers: str) -> Answer:
        return self.ask("POST", f"/predict{query}", body, **headers)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)


@contextlib.contextmanager
def running(
    detector, *, batch_size: int = 4, threshold: float = 0.5, **limits
) -> Iterator[Running]:
    """Yields a service of a detector; `limits` are those of `Limits`."""
    with bound_socket("127.0.0.1", 0) as bound:
        settings = dataclasses.replace(Limits(), **limits)
        server = make_server(detector, settings, threshold=threshold, batch_size=batch_size)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(lambda: asyncio.run(server.serve(sockets=[bound])))
            try:
                assert server.device.ready.wait(SECONDS)
                wait_until(lambda: server.started or done.done())
                yield Running(server, bound.getsockname()[1])
            finally:
                server.should_exit = True
                done.result(SECONDS)
                server.predict.close()
                assert server.device.close(SECONDS)
    assert server.predict.accepted == server.predict.answered


def wait_until(true, seconds: float = SECONDS) -> None:
    """Waits until a function returns something true."""
    changed = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        changed.wait(0.01)
    raise AssertionError("it did not happen")


class Gate:
    """A detector that computes only while its gate is open, and notes the sizes of its batches."""

    def __init__(self, detector) -> None:
        self._detector, self.sizes = detector, []
        self.open, self.errors = threading.Event(), []
        self.open.set()

    def __getattr__(self, name):
        return getattr(self._detector, name)

    def start_batch(self, seen, threshold, batch_size):
        self.sizes.append((len(seen), batch_size))
        fetch = self._detector.start_batch(seen, threshold, batch_size)

        def wait():
            assert self.open.wait(SECONDS)
            if self.errors:
                raise self.errors.pop()
            return fetch()

        return wait


def encoded(picture: np.ndarray, form: str = "JPEG", **options) -> bytes:
    """Returns the file of a picture, uint8."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, form, **options)
    return content.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns a picture of coarse noise, uint8 [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    return np.kron(small, np.ones((8, 8, 1))).astype(np.uint8)[:height, :width]


def multipart(*files: bytes, name: str = "file", end: str = "--") -> tuple[bytes, str]:
    """Returns a multipart body with files, and its content type."""
    body = b""
    for number, content in enumerate(files):
        head = f'form-data; name="{name}"; filename="{number}.jpg"'
        body += f"--limit\r\nContent-Disposition: {head}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--limit{end}\r\n".encode(), "multipart/form-data; boundary=limit"
