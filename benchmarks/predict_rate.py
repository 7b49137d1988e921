"""Speed and memory of prediction: a folder of images, and one call from Python.

    python -m benchmarks.predict_rate --workdir runs/mine --images photos [--pictures] [--rounds 3]

Each round runs `predict` on the folder, from its first line of JSON to its last. "The network
runs" is the share of this time in which the device has a batch to compute. Then the compiled
network with its suppression runs alone on the first images: what it needs with the whole machine
for itself, as a share of the time of `predict`, in which readers compute on the same cores of a
CPU. Memory is that of the process and its readers; it is compared at a quarter of the images and at
the end. Then a call of `load(...).predict` on an array of 640 x 480 pixels and the compiled
function take turns: the function alone, on an input that has its size already, and behind Pillow's
resize of the array, which no call can do without.
"""

import argparse
import concurrent.futures
import contextlib
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import jax
import numpy as np

import m2det_jax
from benchmarks import timing
from m2det_jax import runtime
from m2det_jax.detector.detector import Detector
from m2det_jax.detector.reading import Reading, open_batches
from m2det_jax.inference.pictures import look_at
from m2det_jax.inference.trained_detector import TrainedDetector
from m2det_jax.predict.inputs import find_inputs, index_inputs
from m2det_jax.predict.outputs import LINES
from m2det_jax.predict.run import predict
from m2det_jax.run.outputs import Outputs

SAMPLED = 0.05  # seconds between two looks at a run
NETWORK_IMAGES = 200  # images of the network alone
CALLS = 40


def resident(pid: str = "self") -> int:
    """Returns the resident memory of a process and all its children, in bytes (Linux)."""
    folder = pathlib.Path("/proc", pid)
    total = 0
    # A reader may end while we look.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        status = (folder / "status").read_text().split("VmRSS:")
        total = 1024 * int(status[1].split()[0]) if len(status) > 1 else 0
        for children in folder.glob("task/*/children"):
            total += sum(resident(child) for child in children.read_text().split())
    return total


@contextlib.contextmanager
def watched(lines: pathlib.Path) -> Iterator[list[tuple[float, int, int]]]:
    """Yields a list that grows by (seconds, lines of the file, bytes of memory) during a run."""
    samples: list[tuple[float, int, int]] = []
    ended = threading.Event()

    def look() -> None:
        count, read = 0, 0
        while not ended.wait(SAMPLED):
            if lines.exists():
                with open(lines, "rb") as file:
                    file.seek(read)
                    new = file.read()
                count, read = count + new.count(b"\n"), read + len(new)
            samples.append((time.perf_counter(), count, resident()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


class Busy:
    """The time in which a device computes, from the calls of a function to their results.

    Attributes:
        seconds: of all calls but the first, which compiles.
        elapsed: from the end of the first call to that of the last.
    """

    def __init__(self) -> None:
        self.seconds = self.elapsed = 0.0
        self._first = self._last = 0.0
        self._waiting = concurrent.futures.ThreadPoolExecutor(1)

    def of(self, function: Callable) -> Callable:
        """Returns the same function, whose calls are counted."""

        def counted(*args: object) -> object:
            begin = time.perf_counter()
            result = function(*args)
            self._waiting.submit(self._wait, begin, result)
            return result

        return counted

    def _wait(self, begin: float, result: object) -> None:
        jax.block_until_ready(result)
        end = time.perf_counter()
        if self._first:
            self.seconds += end - max(begin, self._last)
            self.elapsed = end - self._first
        self._first, self._last = self._first or end, end

    def share(self) -> float:
        """Returns the share of the time, when all calls have ended."""
        self._waiting.shutdown()
        return self.seconds / self.elapsed


def rate_of(samples: Sequence[tuple[float, int, int]]) -> float:
    """Returns lines a second, from the first sample with lines to the first with all of them."""
    last = samples[-1][1]
    first = next(sample for sample in samples if sample[1])
    end = next(sample for sample in samples if sample[1] == last)
    return (last - first[1]) / (end[0] - first[0])


def growth_of(samples: Sequence[tuple[float, int, int]]) -> tuple[int, int]:
    """Returns the memory in bytes at a quarter of the lines, and the most after that."""
    last = samples[-1][1]
    at = next(number for number, sample in enumerate(samples) if sample[1] >= last / 4)
    return samples[at][2], max(sample[2] for sample in samples[at:])


def network_alone(detector: TrainedDetector, images: str) -> Callable[[], float]:
    """Returns a function that detects objects in the first images; it returns seconds an image."""
    inner = detector.restored.detector.at_threshold(0.5)
    outputs = Outputs(pathlib.Path(tempfile.gettempdir(), "m2det_jax_no_output"), "predict")
    inputs = find_inputs([images], "", outputs)
    index = index_inputs(inputs, dict(enumerate(inputs.paths)), detector.class_names, ())[0]
    batches = []
    with open_batches(index, [inner.resize], Reading(jax.device_count())) as read:
        for (batch,) in read:
            batches.append(batch["image"])
            if len(batches) * len(batches[0]) >= NETWORK_IMAGES:
                break
    detect = inner.detect_fn()

    def run() -> float:
        start = time.perf_counter()
        for batch in batches:
            jax.block_until_ready(detect(detector.restored.variables, batch))
        return (time.perf_counter() - start) / sum(map(len, batches))

    run()
    return run


def measure_folder(detector: TrainedDetector, images: str, *, pictures: bool, rounds: int) -> None:
    """Prints rate, share of the network and memory of prediction on a folder."""
    network = network_alone(detector, images)
    runs, shares, rates, seconds, grown = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            output = pathlib.Path(folder, str(number))
            busy, plain = Busy(), Detector.detect_fn
            counted = mock.patch.object(Detector, "detect_fn", lambda one: busy.of(plain(one)))  # noqa: B023
            with watched(output / LINES) as samples, counted:
                predict(detector.workdir, [images], output=str(output), pictures=pictures)
            runs.append(busy.share())
            seconds.append(network())
            rates.append(rate_of(samples))
            shares.append(seconds[-1] * rates[-1])
            grown.append(growth_of(samples))
    what = "with pictures" if pictures else "without pictures"
    timing.print_figure(f"images/s, {what}", spread(rates, 1))
    timing.print_figure("network alone, an image", timing.spread(seconds))
    timing.print_figure("the network runs, share", spread(runs, 3))
    timing.print_figure("its time alone, share", spread(shares, 3))
    for first, most in grown:
        text = f"{first / 2**20:.0f} MiB, then at most {most / 2**20:.0f} ({most / first - 1:+.1%})"
        timing.print_figure("memory at a quarter of the images", text)


def measure_call(detector: TrainedDetector, rounds: int) -> None:
    """Prints the time of a call on one array, and its ratios to the compiled function."""
    array = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    detect, resize = detector.restored.detector.detect_fn(), detector.restored.detector.resize

    def resized() -> np.ndarray:
        return look_at(array, [resize])[1][0].image[None]

    def function(image: np.ndarray) -> None:
        jax.block_until_ready(detect(detector.restored.variables, image))

    given = resized()
    works = {
        "call": lambda: detector.predict(array),
        "function": lambda: function(given),
        "resize and function": lambda: function(resized()),
    }
    samples = timing.take_turns({name: _repeated(work) for name, work in works.items()}, rounds)
    timing.print_figure("one call, 640 x 480", timing.spread([s / CALLS for s in samples["call"]]))
    for name in ("function", "resize and function"):
        ratios = [a / b for a, b in zip(samples["call"], samples[name], strict=True)]
        timing.print_figure(f"ratio to the {name}", spread(ratios, 3))


def _repeated(work: Callable[[], object]) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(CALLS):
            work()

    return repeat


def spread(values: Sequence[float], digits: int) -> str:
    """Returns the median of numbers with the lowest and the highest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, rounds: {len(values)})"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark with these command line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="folder of a trained run")
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures too")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    timing.print_machine()
    detector = m2det_jax.load(args.workdir)
    with runtime.expected_warnings_left_out():
        measure_folder(detector, args.images, pictures=args.pictures, rounds=args.rounds)
    measure_call(detector, args.rounds)


if __name__ == "__main__":
    main()
