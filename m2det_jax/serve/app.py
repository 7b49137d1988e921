"""Routes of the service: /predict, the page, health and metrics; all refusals are JSON."""

import logging
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m2det_jax.errors import BUG
from m2det_jax.serve.device import Device
from m2det_jax.serve.figures import Figures
from m2det_jax.serve.page import HEADERS, render
from m2det_jax.serve.predict import PLAIN, Predict, json_response
from m2det_jax.serve.problems import Limits, Problem

log = logging.getLogger("m2det_jax")

_CLIENT_GONE = 499  # nobody reads it; for the metrics, as nginx counts it
_PATHS = ("/", "/predict", "/healthz", "/readyz", "/metrics")
_REMEDIES = {
    404: f"the paths are {', '.join(_PATHS)}",
    405: "POST an image to /predict, GET all else",
}


def make_app(
    device: Device, predict: Predict, figures: Figures, limits: Limits, threshold: float
) -> ASGIApp:
    """Returns the ASGI application of the service.

    Args:
        device: whose health it tells.
        predict: the route of images.
        figures: its metrics.
        limits: shown on the page.
        threshold: first position of the slider on the page.
    """
    page = render(device.detector, limits, threshold)

    async def get_page(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def healthz(request: Request) -> Response:
        if illness := device.illness(2 * limits.timeout):
            raise Problem(503, illness, remedy="start the service again")
        return json_response({"status": "alive"})

    async def readyz(request: Request) -> Response:
        if problem := predict.not_ready():
            raise problem
        return json_response({"status": "ready", "step": device.detector.step})

    async def metrics(request: Request) -> Response:
        media_type = "text/plain; version=0.0.4; charset=utf-8"
        return Response(figures.text(), headers=PLAIN, media_type=media_type)

    routes = [
        Route("/", get_page),
        Route("/predict", predict, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
    ]
    handlers = {Problem: _problem, HTTPException: _http, ClientDisconnect: _gone, Exception: _bug}
    return _Answers(Starlette(routes=routes, exception_handlers=handlers), predict, figures)


class _Answers:
    """Counts the answers of an application, and tells clients when it ends.

    A client that would send its next request on the same connection might lose it.
    """

    def __init__(self, app: ASGIApp, predict: Predict, figures: Figures) -> None:
        self._app, self._predict, self._figures = app, predict, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in _PATHS else "other"
                self._figures.requests.labels(path, message["status"]).inc()
                if self._predict.stopping:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, sent)


async def _problem(request: Request, error: Exception) -> Response:
    problem = cast(Problem, error)
    headers = {}
    if problem.retry_after is not None:
        headers["Retry_After"] = str(problem.retry_after)
    return json_response(problem.document(), problem.status, **headers)


async def _http(request: Request, error: Exception) -> Response:
    """Answers what no route takes."""
    refusal = cast(HTTPException, error)
    what = f"{request.method} {request.url.path[:100]}: {refusal.detail}"
    problem = Problem(refusal.status_code, what, remedy=_REMEDIES.get(refusal.status_code, ""))
    answer = json_response(problem.document(), problem.status)
    answer.headers.update(refusal.headers or {})
    return answer


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed. %s", request.method, request.url.path, BUG)
    problem = Problem(500, "the service failed", remedy="look at its log, and report it")
    return json_response(problem.document(), 500)
