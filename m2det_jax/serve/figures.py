"""Metrics of the service, for Prometheus."""

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Figures:
    """Counters and durations of one service.

    Attributes:
        requests: answers by path and HTTP status.
        seconds: duration of requests to /predict.
        stage: durations of its parts: body, decode, queue, device, draw.
        batch: number of images of a batch.
        detections: number of detections that were answered.
        given_up: requests whose client went away before the answer.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        add: dict[str, Any] = {"registry": self._registry, "namespace": "m2det"}
        self.requests = Counter("requests", "Answers.", ["path", "status"], **add)
        self.seconds = Histogram(
            "request_seconds", "Duration of requests to /predict.", buckets=_SECONDS, **add
        )
        self.stage = Histogram(
            "stage_seconds", "Duration of a part of a request.", ["stage"], buckets=_SECONDS, **add
        )
        self.batch = Histogram("batch_images", "Images of a batch.", buckets=_IMAGES, **add)
        self.detections = Counter("detections", "Detections that were answered.", **add)
        self.given_up = Counter("given_up", "Requests whose client went away.", **add)
        self._add = add

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a figure whose value is asked for when the metrics are read."""
        Gauge(name, text, **self._add).set_function(value)

    def text(self) -> bytes:
        """Returns all figures in the text format of Prometheus."""
        return generate_latest(self._registry)
