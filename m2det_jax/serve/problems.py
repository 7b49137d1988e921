"""Refusals of a request: the HTTP status, what is wrong, what is expected, and what to do."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        max_body: bytes of a request's body.
        max_pixels: pixels of an image, and of all images that are decoded at the same time.
        timeout: seconds in which a body must be sent, in which an image must be answered, and in
            which a client must take the answer.
        queue: number of images that are received, wait, or are computed at the same time.
    """

    max_body: int = 20 * 2**20
    max_pixels: int = 50_000_000
    timeout: float = 30.0
    queue: int = 64

    @property
    def all_bodies(self) -> int:
        """Bytes of all bodies in memory."""
        return 8 * self.max_body


class Problem(Exception):
    """A request that is not answered with detections.

    Attributes:
        status: of HTTP.
        error: what is wrong, with what was got.
        expected: what would be right; "": nothing to say.
        remedy: what to do.
        retry_after: seconds after which the same request may succeed; None: it will not.
    """

    def __init__(
        self,
        status: int,
        error: str,
        *,
        expected: str = "",
        remedy: str = "",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.expected = status, error, expected
        self.remedy, self.retry_after = remedy, retry_after

    def document(self) -> dict[str, str]:
        """Returns the body of the answer."""
        return {"error": self.error, "expected": self.expected, "remedy": self.remedy}


def overloaded(what: str) -> Problem:
    """Returns the refusal of a service that has enough to do."""
    return Problem(
        503,
        f"too many requests: {what}",
        expected="fewer requests at the same time",
        remedy="send the request again after the seconds of Retry-After",
        retry_after=1,
    )
