"""Service of a trained detector over HTTP: images in, detections out, and a page to try it.

    python -m m2det_jax.serve --workdir runs/mine [--host 127.0.0.1] [--port 8000]

POST an image to /predict; the answer is JSON, or with ?draw=1 a JPEG with the boxes. / is a page
that does it from a browser or a phone. /healthz, /readyz and /metrics are for those who operate it.
Only this machine can reach it unless --host says otherwise: there is no password. SIGTERM and
Ctrl-C end it after all images that were accepted are answered, with exit status 0.
"""

import argparse
import math
import pathlib
from collections.abc import Sequence

from m2det_jax import runtime
from m2det_jax.errors import InputError

_PACKAGES = ("starlette", "uvicorn", "h11", "prometheus_client")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("m2det serve", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--workdir", required=True, type=pathlib.Path, help="folder of the training run")
    add("--checkpoint", default="latest", help="latest (default), best, or a step")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: this machine alone; 0.0.0.0: all)",
    )
    add("--port", type=_port, default=8000, help="default 8000; 0: any free one")
    add(
        "--threshold",
        type=_score,
        default=0.5,
        help="lowest score where a request names none, 0..1 (default 0.5)",
    )
    add(
        "--batch_size",
        type=_count,
        default=0,
        help="images of a batch at most; default: 8 a device, on a CPU 4",
    )
    add(
        "--max_body",
        type=_positive,
        default=20.0,
        metavar="MIB",
        help="largest body of a request, MiB (default 20)",
    )
    add(
        "--max_pixels",
        type=_positive,
        default=50.0,
        metavar="MEGAPIXELS",
        help="largest image, million pixels (default 50)",
    )
    add(
        "--timeout",
        type=_positive,
        default=30.0,
        metavar="SECONDS",
        help="to send a body; to be answered; to take the answer (default 30)",
    )
    add(
        "--queue",
        type=_count,
        default=64,
        metavar="IMAGES",
        help="images in the service at a time; others are sent away (default 64)",
    )
    runtime.add_overrides(parser)
    return parser.parse_args(argv)


def _number(text: str, what: str, low: float, high: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text!r}: give {what}")
    return value


def _whole(text: str, what: str, low: int, high: float = math.inf) -> int:
    value = _number(text, what, low, high)
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give {what}")
    return int(value)


def _score(text: str) -> float:
    return _number(text, "a score from 0 to 1", 0, 1)


def _positive(text: str) -> float:
    return _number(text, "a number above 0", 1e-6)


def _count(text: str) -> int:
    return _whole(text, "a whole number, 1 or more", 1)


def _port(text: str) -> int:
    return _whole(text, "a port from 0 to 65535", 0, 65535)


def main(options: argparse.Namespace) -> None:
    """Runs the command with parsed options, until a signal comes."""
    with runtime.one_line_errors():
        try:
            from m2det_jax.serve.problems import Limits
            from m2det_jax.serve.server import serve
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if name not in _PACKAGES:
                raise
            raise InputError(
                f"the service needs {name}, which is not installed: "
                "pip install 'm2det_jax[serve]' (or pip install starlette uvicorn "
                "prometheus_client)"
            ) from error
        runtime.start()
        serve(
            options.workdir,
            checkpoint=options.checkpoint,
            overrides=options.overrides,
            host=options.host,
            port=options.port,
            threshold=options.threshold,
            batch_size=options.batch_size,
            limits=Limits(
                max_body=math.ceil(options.max_body * 2**20),
                max_pixels=math.ceil(options.max_pixels * 1e6),
                timeout=options.timeout,
                queue=options.queue,
            ),
        )


def cli(argv: Sequence[str] | None = None) -> None:
    """Entry point of `m2det-serve`."""
    main(parse(argv))


if __name__ == "__main__":
    cli()
