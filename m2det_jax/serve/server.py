"""Server of the service: socket, connections, signals, and the order of start and end."""

import asyncio
import contextlib
import ipaddress
import json
import logging
import math
import os
import pathlib
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType

import h11
import jax
import uvicorn
from PIL import Image
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from m2det_jax.errors import InputError
from m2det_jax.inference.trained_detector import TrainedDetector, load
from m2det_jax.run import readers
from m2det_jax.serve.app import make_app
from m2det_jax.serve.device import Device
from m2det_jax.serve.figures import Figures
from m2det_jax.serve.predict import Predict
from m2det_jax.serve.problems import Limits, Problem

log = logging.getLogger("m2det_jax")

_MOST_CONNECTIONS = 512  # a process has often 1,024 files
_HEAD_SECONDS = 10.0  # for the header lines of a request, and the rest of a body that was refused
_HEAD_BYTES = 16 * 2**10
_IDLE_SECONDS = 75  # longer than proxies keep a connection, so that they close it
_LATE_SECONDS = 0.3  # for a request that is on its way when the service ends
_LOOK_SECONDS = 1.0
_BLOCK_BYTES = 64 * 2**20  # above 32 MiB, the largest threshold of glibc's malloc
_BATCH, _BATCH_ON_CPU = 8, 4  # images of a batch for each device


class Connection(H11Protocol):
    """A connection with a client, which may be slow, silent or gone: none is waited for for ever.

    uvicorn limits the time between requests only.
    """

    answer_seconds = 30.0  # in which a client must take an answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Starts to look after the connection, or closes it if there are too many."""
        super().connection_made(transport)
        self._head_since: float | None = self.loop.time()
        self._taking_since: float | None = None
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what looks after the connection."""
        self._looking.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Starts to wait for the next request."""
        self._head_since = None
        super().on_response_complete()

    def shutdown(self) -> None:
        """Ends after the answer that is computed, or soon if there is none."""
        if self._is_waiting():
            self.loop.call_later(_LATE_SECONDS, self._end)
        else:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, or has more than 16 KiB of header lines."""
        problem = Problem(
            400,
            msg,
            expected=f"HTTP/1.1 with at most {_HEAD_BYTES} bytes of header lines",
            remedy="POST an image to /predict",
        )
        with contextlib.suppress(h11.LocalProtocolError):  # an answer was begun already
            body = json.dumps(problem.document()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_waiting():
            super().shutdown()
        else:
            self.cycle.keep_alive = False

    def _look(self) -> None:
        """Closes the connection if the client keeps it busy with nothing."""
        now = self.loop.time()
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)
        incomplete = self.cycle is None or self.conn.trailing_data[0]
        if self._is_waiting() and (incomplete or self.conn.their_state is h11.SEND_BODY):
            self._head_since = self._head_since or now
            if now - self._head_since > _HEAD_SECONDS:
                self.transport.abort()
        else:
            self._head_since = None
        if not self.transport.get_write_buffer_size():
            self._taking_since = None
            return
        self._taking_since = self._taking_since or now
        if now - self._taking_since > self.answer_seconds:
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn, which ends in order at a signal, and with the device."""

    def __init__(self, app: ASGIApp, predict: Predict, device: Device, limits: Limits) -> None:
        kind = type("LimitedConnection", (Connection,), {"answer_seconds": limits.timeout})
        super().__init__(
            uvicorn.Config(
                app,
                http=kind,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_MOST_CONNECTIONS,
                h11_max_incomplete_event_size=_HEAD_BYTES,
                timeout_keep_alive=_IDLE_SECONDS,
                # To send a body, to be answered, and to take the answer.
                timeout_graceful_shutdown=math.ceil(3 * limits.timeout) + 1,
            )
        )
        self.predict, self.device = predict, device

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, and says so."""
        await super().startup(sockets)
        for bound in sockets or ():
            _announce(bound)

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to end."""
        return await super().on_tick(counter) or self.device.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted."""
        self.predict.stopping = True
        log.info("no more images are accepted, %d are answered first; a second signal ends the "
                 "service at once", self.predict.in_flight())  # fmt: skip
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends in order at the first signal, and at once at the second; in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._heard) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.predict.stopping = self.should_exit = True


@contextlib.contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Yields a socket that has an address, and does not listen yet.

    Raises:
        InputError: if there is no such address, or it is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: no address of this machine ({error})") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            what = f"--host {host} --port {port}: {error.strerror}"
            raise InputError(f"{what}; give another --port, 0 for any free one") from error
        yield bound


def _announce(bound: socket.socket) -> None:
    """Logs the address, and who can reach it."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        who = "only this machine can reach it; --host 0.0.0.0 opens it to others"
    else:
        who = "everybody who can reach this machine can use it: there is no password"
    log.info("listening on http://%s:%d (%s)", f"[{host}]" if ":" in host else host, port, who)


def make_server(
    detector: TrainedDetector, limits: Limits, *, threshold: float, batch_size: int
) -> Server:
    """Returns a server of a detector, whose device thread runs already.

    Args:
        threshold: lowest score where a request names none.
        batch_size: images of a batch at most; 0: what fits the devices.
    """
    figures = Figures()
    automatic = _BATCH_ON_CPU if jax.default_backend() == "cpu" else _BATCH
    device = Device(detector, batch_size or automatic * jax.local_device_count(), figures)
    threads = readers.local_readers("the service", batch_bytes=0, images=0).threads
    predict = Predict(device, figures, limits, threshold=threshold, threads=threads)
    device.start()
    return Server(make_app(device, predict, figures, limits, threshold), predict, device, limits)


def serve(
    workdir: pathlib.Path,
    *,
    checkpoint: str = "latest",
    overrides: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    threshold: float = 0.5,
    batch_size: int = 0,
    limits: Limits | None = None,
) -> None:
    """Answers requests until a signal comes.

    Args:
        workdir: folder of the training run.
        checkpoint: "latest", "best" or a step.
        overrides: changes of config.eval.
        host: address to listen on.
        port: its port; 0: any free one.
        threshold: lowest score where a request names none.
        batch_size: images of a batch at most; 0: what fits the devices.
        limits: None: the default ones.

    Raises:
        InputError: if there is no such checkpoint or address.
        OutOfMemory: if a batch does not fit into a device.
    """
    limits = limits or Limits()
    # Pillow warns of large images, which are refused, or were allowed by --max_pixels.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    # Blocks of this size go back to the system as soon as an image is done. Smaller ones stay in
    # the heap of each thread, where several large images need a gigabyte.
    Image.core.set_block_size(_BLOCK_BYTES)
    with bound_socket(host, port) as bound:
        detector = load(workdir, checkpoint, overrides)
        log.info("%s", detector)
        server = make_server(detector, limits, threshold=threshold, batch_size=batch_size)
        asyncio.run(server.serve(sockets=[bound]))
    server.predict.close()
    ended = server.device.close(limits.timeout)
    done = server.predict
    log.info("stopped: %d images were accepted, %d answered", done.accepted, done.answered)
    if server.device.failure:
        raise server.device.failure
    if not ended:
        log.error("the device does not answer; the process ends without it")
        os._exit(1)
