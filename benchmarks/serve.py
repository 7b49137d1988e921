"""The service under load: bad clients, lost answers, latency, memory, speed, and its end.

    python -m benchmarks.serve --workdir runs/mine --images photos [--requests 10000] [--clients 32]

The service runs in a process of its own, with its default limits but for the time limit. First it
and `load(...).predict` take turns on the same pictures. Then come the requests. A fifth of them are
bad: bodies that are no image or broken multipart, images that are cut off, decompression bombs,
senders that are slow, and clients that go away. Bodies are prepared beforehand. In the end SIGTERM
comes while all clients send. The exit status is 1 if an answer was lost or is another than
expected, if the service failed, or if its memory grew by more than 500 MB.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

import m2det_jax
from benchmarks import timing
from benchmarks.predict_rate import resident, spread
from m2det_jax.data.images import IMAGE_SUFFIXES

MOST_GROWTH = 500e6  # bytes
REFUSED = 0  # instead of a status: the service does not accept connections
PATIENCE = 120.0  # seconds after which an answer counts as lost
GOOD = 200
QUANTILES = (50, 90, 99, 100)  # per cent
# Share of the requests, and the status that answers them; None: nobody waits for an answer.
BAD: dict[str, tuple[float, int | None]] = {
    "noise": (0.02, 415), "text": (0.01, 415), "empty": (0.01, 400), "form cut off": (0.02, 400),
    "form without a file": (0.01, 400), "too large": (0.005, 413), "not http": (0.005, 400),
    "cut off": (0.06, 422), "png bomb": (0.02, 413), "gif bomb": (0.02, 413),
    "slow": (0.01, 408), "gone": (0.01, None),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Request:
    """A prepared request: what it is, its bytes, and the status that must answer it."""

    kind: str
    content: bytes
    status: int | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a request: its status (None: no answer, or REFUSED), and its seconds."""

    request: Request
    status: int | None
    seconds: float

    @property
    def lost(self) -> bool:
        """Whether an answer is missing."""
        return not self.status and self.request.status is not None

    @property
    def right(self) -> bool:
        """Whether the answer is as expected."""
        return self.status == self.request.status


def http(body: bytes, query: str = "", content_type: str = "image/jpeg") -> bytes:
    """Returns a whole request."""
    head = f"POST /predict{query} HTTP/1.1\r\nHost: service\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def form(body: bytes, name: str = 'name="a"; filename="a.jpg"', end: str = "--") -> bytes:
    """Returns a whole request with a multipart body."""
    head = f"--limit\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode()
    whole = head + body + f"\r\n--limit{end}\r\n".encode()
    return http(whole, content_type="multipart/form-data; boundary=limit")


def png_bomb(side: int = 20_000) -> bytes:
    """Returns a PNG file of some kilobytes with side x side pixels, all of them there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + zlib.crc32(name + data).to_bytes(4)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(side * (1 + -(-side // 8))), 9))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    """Returns a small GIF file that says that it has the most pixels that a GIF can have."""
    content = io.BytesIO()
    Image.new("L", (1, 1)).save(content, "GIF")
    return content.getvalue()[:6] + b"\xff\xff\xff\xff" + content.getvalue()[10:]


def prepare(images: Sequence[bytes], count: int, seed: int = 0) -> list[Request]:
    """Returns `count` requests in a random order, a fifth of them bad."""
    rng = np.random.default_rng(seed)
    large, png, gif = http(bytes(20 * 2**20 + 1)), http(png_bomb()), http(gif_bomb())
    makers: dict[str, Callable[[bytes], bytes]] = {
        "noise": lambda image: http(rng.bytes(len(image) // 4 + 100)),
        "text": lambda image: http(b"<html>" + rng.bytes(20).hex().encode()),
        "empty": lambda image: http(b""),
        "form cut off": lambda image: form(image, end=""),
        "form without a file": lambda image: form(b"0.5", 'name="threshold"'),
        "too large": lambda image: large,
        "not http": lambda image: rng.bytes(50).replace(b"\n", b"") + b"\r\n\r\n",
        "cut off": lambda image: http(image[: int(len(image) * rng.uniform(0.3, 0.8))]),
        "png bomb": lambda image: png,
        "gif bomb": lambda image: gif,
        "slow": http,
        "gone": http,
    }
    goods = [http(image) for image in images]
    requests = []
    for kind, (share, status) in BAD.items():
        for _ in range(max(1, round(share * count))):
            image = images[rng.integers(len(images))]
            requests.append(Request(kind, makers[kind](image), status))
    for i in range(count - len(requests)):
        way = i % 20
        image = i % len(images)
        content = goods[image]
        if way == 0:
            content = http(images[image], "?draw=1&threshold=0.3")
        elif way == 1:
            content = form(images[image])
        requests.append(Request("good", content, GOOD))
    return [requests[i] for i in rng.permutation(len(requests))]


class Client:
    """A client on one connection, which is opened again when it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def send(self, request: Request) -> Outcome:
        """Sends a request and waits for its answer."""
        begin = time.perf_counter()
        new = self._socket is None
        try:
            status = self._send(request)
        except OSError as error:
            self.close()
            refused = new and isinstance(error, ConnectionRefusedError | ConnectionResetError)
            status = REFUSED if refused else None
        return Outcome(request, status, time.perf_counter() - begin)

    def close(self) -> None:
        """Closes the connection."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def _send(self, request: Request) -> int | None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        if request.kind == "slow":
            self._trickle(request.content)
        else:
            # An answer may come before all is sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(request.content)
        status = None if request.kind == "gone" else self._answer()
        if status != GOOD:
            self.close()
        return status

    def _trickle(self, content: bytes) -> None:
        """Sends half of the content, and then a byte now and then until an answer comes."""
        assert self._socket
        half = len(content) // 2
        self._socket.sendall(content[:half])
        for byte in content[half:]:
            self._socket.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                if self._socket.recv(1, socket.MSG_PEEK) is not None:
                    break
            self._socket.settimeout(PATIENCE)
            self._socket.sendall(bytes([byte]))
        self._socket.settimeout(PATIENCE)

    def _answer(self) -> int | None:
        """Reads an answer; returns its status, None if it is not whole."""
        assert self._socket
        content = b""
        while b"\r\n\r\n" not in content:
            if not (data := self._socket.recv(65536)):
                return None
            content += data
        head, _, body = content.partition(b"\r\n\r\n")
        left = int(re.findall(rb"(?i)content-length: (\d+)", head)[0]) - len(body)
        while left > 0:
            if not (data := self._socket.recv(65536)):
                return None
            left -= len(data)
        if b"connection: close" in head.lower():
            self.close()
        return int(head[9:12])


def send_all(port: int, requests: Sequence[Request], clients: int) -> list[Outcome]:
    """Sends requests by so many clients at the same time, each as soon as it has its answer."""
    numbers = iter(range(len(requests)))
    lock = threading.Lock()

    def work(_: int) -> list[Outcome]:
        client, outcomes = Client(port), []
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                client.close()
                return outcomes
            outcomes.append(client.send(requests[number]))

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return [outcome for outcomes in pool.map(work, range(clients)) for outcome in outcomes]


@dataclasses.dataclass
class Service:
    """The service's process, its port, the file of its log, and its memory in bytes."""

    process: subprocess.Popen
    port: int
    log: pathlib.Path
    start: int = 0
    peak: int = 0

    def watch(self, ended: threading.Event) -> None:
        """Notes its largest memory until an event."""
        while not ended.wait(0.05):
            self.peak = max(self.peak, resident(str(self.process.pid)))


@contextlib.contextmanager
def started(workdir: str, timeout: float, folder: pathlib.Path) -> Iterator[Service]:
    """Yields a service that is ready."""
    log = folder / "service.log"
    command = [sys.executable, "-m", "m2det_jax.serve", "--workdir", workdir, "--port", "0",
               "--timeout", str(timeout)]  # fmt: skip
    ended = threading.Event()
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        while "ready:" not in (said := log.read_text()):
            if process.poll() is not None:
                raise SystemExit(f"error: the service did not start:\n{said}")
            time.sleep(0.1)
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", said)[0])
        memory = resident(str(process.pid))
        service = Service(process, port, log, memory, memory)
        watcher = threading.Thread(target=service.watch, args=(ended,))
        watcher.start()
        yield service
    finally:
        ended.set()
        process.kill()
        process.wait()


def compare_speed(
    service: Service, workdir: str, paths: Sequence[str], clients: int, rounds: int
) -> list[float]:
    """Prints and returns the ratios of the speed of the service to that of `predict`."""
    detector = m2det_jax.load(workdir)
    requests = [Request("good", http(pathlib.Path(path).read_bytes()), GOOD) for path in paths]
    rates: dict[str, list[float]] = {"service": [], "predict": []}
    works: dict[str, Callable[[], object]] = {
        "service": lambda: send_all(service.port, requests, clients),
        "predict": lambda: detector.predict(paths),
    }
    for number in range(rounds + 1):  # the first is for caches
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            if number:
                rates[name].append(len(paths) / (time.perf_counter() - begin))
    for name, values in rates.items():
        timing.print_figure(f"images/s, {name}", spread(values, 1))
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    timing.print_figure("ratio to predict", spread(ratios, 3))
    return ratios


def report(outcomes: Sequence[Outcome], seconds: float) -> bool:
    """Prints what became of the requests; returns whether all of it is as it should be."""
    statuses = collections.Counter(str(one.status or "none") for one in outcomes)
    lost = sum(one.lost for one in outcomes)
    wrong = [one for one in outcomes if not one.right and not one.lost]
    timing.print_figure("requests", f"{len(outcomes)} in {seconds:.1f} s")
    timing.print_figure("statuses", ", ".join(f"{s}: {n}" for s, n in sorted(statuses.items())))
    for kind in ("good", *BAD):
        times = sorted(one.seconds for one in outcomes if one.request.kind == kind)
        if times:
            marks = {q: times[min(len(times) * q // 100, len(times) - 1)] for q in QUANTILES}
            text = ", ".join(f"{q} % {timing.readable(value)}" for q, value in marks.items())
            timing.print_figure(f"latency, {kind} ({len(times)})", text)
    timing.print_figure("lost answers", str(lost))
    kinds = collections.Counter(f"{one.request.kind} {one.status}" for one in wrong)
    timing.print_figure("other answers than expected", str(dict(kinds) or 0))
    return not lost and not wrong


def end_under_load(service: Service, requests: Sequence[Request], clients: int) -> bool:
    """Sends SIGTERM while all clients send; returns whether all that was accepted is answered."""
    good = [request for request in requests if request.kind == "good"]
    told = threading.Event()

    def work(number: int) -> list[Outcome]:
        client, outcomes = Client(service.port), []
        for i in range(number, 10**9, clients):
            outcome = client.send(good[i % len(good)])
            if outcome.status != GOOD and told.is_set():
                client.close()
                return [*outcomes, outcome]
            outcomes.append(outcome)
        return outcomes

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(work, number) for number in range(clients)]
        time.sleep(2)
        told.set()
        service.process.send_signal(signal.SIGTERM)
        begin = time.perf_counter()
        outcomes = [outcome for future in futures for outcome in future.result()]
        status = service.process.wait(PATIENCE)
    seconds = time.perf_counter() - begin
    log = service.log.read_text()
    accepted, answered = map(int, re.findall(r"(\d+) images were accepted, (\d+) answered", log)[0])
    lost = sum(one.status is None for one in outcomes)
    names = {None: "none", REFUSED: "refused"}
    counts = collections.Counter(names.get(one.status, str(one.status)) for one in outcomes)
    timing.print_figure("SIGTERM under load", f"ended in {seconds:.1f} s, exit status {status}")
    timing.print_figure("its answers", ", ".join(f"{s}: {n}" for s, n in sorted(counts.items())))
    timing.print_figure("accepted, answered, in all", f"{accepted}, {answered}")
    return status == 0 and accepted == answered and not lost


def find_images(folder: str) -> list[str]:
    """Returns the paths of the images in a folder, sorted."""
    found = pathlib.Path(folder).rglob("*")
    return sorted(str(path) for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these command line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="folder of a trained run")
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with predict")
    parser.add_argument("--most_images", type=int, default=500, help="of the folder; default 500")
    parser.add_argument("--timeout", type=float, default=5.0, help="of the service, seconds")
    args = parser.parse_args(argv)
    timing.print_machine(devices=False)
    paths = find_images(args.images)[: args.most_images]
    images = [pathlib.Path(path).read_bytes() for path in paths]
    requests = prepare(images, args.requests)
    with (
        tempfile.TemporaryDirectory() as folder,
        started(args.workdir, args.timeout, pathlib.Path(folder)) as service,
    ):
        compare_speed(service, args.workdir, paths, args.clients, args.rounds)
        begin = time.perf_counter()
        outcomes = send_all(service.port, requests, args.clients)
        good = report(outcomes, time.perf_counter() - begin)
        alive = service.process.poll() is None
        good &= alive and end_under_load(service, requests, args.clients)
        crashes = service.log.read_text().count("Traceback") + (not alive)
        grown = service.peak - service.start
        text = (
            f"{service.start / 1e6:.0f} MB, at most {service.peak / 1e6:.0f} (+{grown / 1e6:.0f})"
        )
        timing.print_figure("memory of the service", text)
        timing.print_figure("crashes", str(crashes))
    if not good or crashes or grown > MOST_GROWTH:
        sys.exit(1)


if __name__ == "__main__":
    main()
