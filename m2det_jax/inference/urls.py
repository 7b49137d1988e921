"""Downloads of images from http and https URLs, with limits of time and size."""

import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request

from m2det_jax.errors import InputError

SECONDS = 30.0  # for the content, once the server has begun to send it
MAX_BYTES = 64 * 2**20
_SILENCE = 10.0  # seconds that a server may say nothing
_CHUNK = 2**16  # bytes


def is_url(text: str) -> bool:
    """Says whether a text is an http or https URL, and no path."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def path_of(url: str) -> str:
    """Returns the path of a URL, whose last part may be the name of a file; a path as it is."""
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path) if is_url(url) else url


def download(url: str, *, seconds: float = SECONDS, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns what an http or https URL gives; proxies are those of the environment.

    Raises:
        InputError: if there is no such file, or it exceeds the limits; names the URL.
    """
    deadline = time.monotonic() + seconds
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "m2det_jax"})
        with _opener().open(request, timeout=min(_SILENCE, seconds)) as response:
            return _read(response, deadline, seconds, max_bytes)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error  # of an URLError: what is behind it
        if isinstance(error, urllib.error.HTTPError):
            reason = f"the server answers {error.code} {error.reason}"
        elif isinstance(reason, TimeoutError):
            reason = f"the server does not answer within {min(_SILENCE, seconds):g} seconds"
        raise InputError(f"cannot read image {url}: {reason}") from error


def _read(
    response: http.client.HTTPResponse, deadline: float, seconds: float, max_bytes: int
) -> bytes:
    content = bytearray()
    # read1 returns what has come: a server that sends a byte a second meets the deadline, too.
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > max_bytes:
            raise ValueError(f"it has more than {max_bytes / 2**20:g} MiB: save it as a file first")
        if time.monotonic() > deadline:
            raise ValueError(f"it takes longer than {seconds:g} seconds: save it as a file first")
    if response.length:  # bytes that were announced and did not come
        raise ValueError(f"the connection ended {response.length} bytes too early")
    return bytes(content)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https only, wherever a server redirects to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
