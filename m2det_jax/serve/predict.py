"""POST /predict: an image comes in, its detections go out, as JSON or drawn.

A request holds its place, and its bytes are counted, from its first byte to the last byte of its
answer; so the limits bound the memory of the service.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from m2det_jax.inference.result import Result
from m2det_jax.pages.markup import shorten
from m2det_jax.serve.bodies import Account, Memory, image_of, read_body
from m2det_jax.serve.device import Device
from m2det_jax.serve.figures import Figures
from m2det_jax.serve.images import Images
from m2det_jax.serve.problems import Limits, Problem, overloaded

_T = TypeVar("_T")

PLAIN = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_FLAGS = {"1": True, "true": True, "0": False, "false": False}


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a request asks for: the lowest score, and whether a drawn picture is wanted."""

    threshold: float
    draw: bool


class Predict:
    """The route; an ASGI application.

    Attributes:
        stopping: no more images are accepted.
        accepted: number of requests that were let in.
        answered: number of these that are done: answered, or their client has gone.
    """

    def __init__(
        self, device: Device, figures: Figures, limits: Limits, *, threshold: float, threads: int
    ) -> None:
        self._device, self._figures, self._limits = device, figures, limits
        self._threshold = threshold
        self._images = Images(device.detector.resizes, limits)
        self._memory = Memory(limits.all_bodies)
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "images")
        self.stopping = False
        self.accepted = self.answered = 0
        figures.watch("in_flight", "Images received, waiting or computed.", self.in_flight)
        figures.watch("ready", "1: images are answered.", lambda: float(self.not_ready() is None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request.

        Raises:
            Problem: if it is refused.
            ClientDisconnect: if its client has gone.
        """
        request = Request(scope, receive)
        wish = read_wish(request.query_params, request.headers.get("accept", ""), self._threshold)
        with self._place(), self._memory.account() as account:
            response = await self._answer(request, wish, account)
            await response(scope, receive, _until_taken(send))

    def in_flight(self) -> int:
        """Returns the number of images that are received, wait, are computed or sent."""
        return self.accepted - self.answered

    def not_ready(self) -> Problem | None:
        """Returns why no image is accepted; None: images are accepted."""
        what = "the model is being compiled"
        if self.stopping:
            what = "the service is being stopped"
        elif self._device.failure:
            what = "the device has failed"
        elif self._device.ready.is_set():
            return None
        remedy = "send the request again after the seconds of Retry-After"
        return Problem(503, what, remedy=remedy, retry_after=5)

    def close(self) -> None:
        """Ends the threads that decode."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Counts a request while it is in the service, if there is a place for it."""
        if problem := self.not_ready():
            raise problem
        if self.in_flight() >= self._limits.queue:
            raise overloaded(f"{self._limits.queue} images are here already")
        self.accepted += 1
        begin = time.monotonic()
        try:
            yield
        finally:
            self.answered += 1
            self._figures.seconds.observe(time.monotonic() - begin)

    async def _answer(self, request: Request, wish: Wish, account: Account) -> Response:
        """Reads the image and answers it, unless its time is over or its client goes away."""
        body = await self._timed("body", read_body(request, self._limits, account))
        content = image_of(body, request.headers.get("content-type", ""))
        work = asyncio.create_task(self._detect(content, wish))
        gone = asyncio.create_task(_gone_away(request))
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({work, gone}, timeout=self._limits.timeout, return_when=first)
            if work.done():
                return work.result()
        finally:
            # What waits for the device is taken out of its queue.
            work.cancel()
            gone.cancel()
        if gone.done():
            raise ClientDisconnect
        raise Problem(
            504,
            f"the image was not answered in {self._limits.timeout:g} seconds",
            expected="an image that is small enough for this service and its load",
            remedy="send it again later; if it is frequent, raise --timeout or lower --queue",
            retry_after=5,
        )

    async def _detect(self, content: bytes, wish: Wish) -> Response:
        loop = asyncio.get_running_loop()
        decoding = loop.run_in_executor(self._pool, self._images.decode, content)
        seen = await self._timed("decode", decoding)
        try:
            result = await asyncio.wrap_future(self._device.submit(seen, wish.threshold))
        except Exception as error:  # the device thread has logged it
            raise Problem(
                500,
                "the device failed to compute this image",
                remedy="look at the log of the service; send the image again",
            ) from error
        self._figures.detections.inc(len(result))
        if not wish.draw:
            return json_response(document(result, self._device.detector.step, wish.threshold))
        drawing = loop.run_in_executor(self._pool, self._images.draw, result)
        return Response(await self._timed("draw", drawing), headers=PLAIN, media_type="image/jpeg")

    async def _timed(self, stage: str, work: Awaitable[_T]) -> _T:
        begin = time.monotonic()
        result = await work
        self._figures.stage.labels(stage).observe(time.monotonic() - begin)
        return result


def read_wish(query: QueryParams, accept: str, threshold: float) -> Wish:
    """Returns what a request asks for.

    Args:
        query: of its URL.
        accept: its header.
        threshold: lowest score where it names none.

    Raises:
        Problem: if the query has other names or values.
    """
    expected = "?threshold=, a score from 0 to 1, and ?draw=, 0 or 1"
    remedy = "POST /predict?threshold=0.3"
    for name in query:
        if name not in ("threshold", "draw"):
            what = f"unknown name {shorten(name, 40)!r} in the query of the URL"
            raise Problem(400, what, expected=expected, remedy=remedy)
    text = query.get("threshold", "")
    try:
        threshold = float(text) if text else threshold
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:  # NaN is not, either
        what = f"threshold={shorten(text, 40)!r} is no score"
        raise Problem(400, what, expected=expected, remedy=remedy)
    # Browsers name all types that they know; who wants the picture alone names it alone.
    drawn = "image/jpeg" in accept.lower() and "application/json" not in accept.lower()
    draw = query.get("draw", "1" if drawn else "0").lower()
    if draw not in _FLAGS:
        what = f"draw={shorten(draw, 40)!r} is neither 0 nor 1"
        raise Problem(400, what, expected=expected, remedy=remedy)
    return Wish(threshold, _FLAGS[draw])


def document(result: Result, step: int, threshold: float) -> dict[str, Any]:
    """Returns the JSON answer: n detections, the surest first.

    boxes: n times [x1, y1, x2, y2] in pixels of the upright picture; scores, labels (class ids) and
    names: n each; image_size: width and height of the picture; step: of the checkpoint; threshold.
    """
    height, width = result.image_size
    return {
        "boxes": result.boxes.tolist(),
        "scores": result.scores.tolist(),
        "labels": result.labels.tolist(),
        "names": result.names.tolist(),
        "image_size": {"width": width, "height": height},
        "step": step,
        "threshold": threshold,
    }


def json_response(value: Any, status: int = 200, **headers: str) -> Response:
    """Returns a JSON answer; headers are written with underscores."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    # A lone surrogate becomes its escape, which JSON knows.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "backslashreplace"
    )
    return Response(text, status, PLAIN | named, "application/json")


async def _gone_away(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _until_taken(send: Send) -> Send:
    """Returns `send`, which comes back only when the client has taken nearly all of the answer."""

    async def sent(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return sent
