"""Downloads of images from http and https URLs, with limits of time and size."""

import http.client
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from m2det_jax.errors import InputError

SECONDS = 30.0  # for all of it: connections, redirects, headers and content
MAX_BYTES = 64 * 2**20
_SILENCE = 10.0  # seconds that a server may say nothing
_CHUNK = 2**16  # bytes


def is_url(text: str) -> bool:
    """Says whether a text is an http or https URL, and no path."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def path_of(url: str) -> str:
    """Returns the path of a URL, whose last part may be the name of a file; a path as it is."""
    if not is_url(url):
        return url
    try:
        return urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    except ValueError:  # not a valid URL, which the download says
        return ""


def download(url: str, *, seconds: float = SECONDS, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns what an http or https URL gives; proxies are those of the environment.

    Raises:
        InputError: if there is no such file, or it exceeds the limits; names the URL.
    """
    came: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def fetch() -> None:
        try:
            came.put(_fetch(url, seconds, max_bytes))
        except Exception as error:  # raised below, in the caller's thread
            came.put(error)

    # A thread, because the timeout of a socket starts again with each byte of the headers.
    threading.Thread(target=fetch, name="download", daemon=True).start()
    try:
        content = came.get(timeout=seconds + 0.5)  # the limits of `_fetch` come first
    except queue.Empty:
        content = ValueError(f"it takes longer than {seconds:g} seconds: save it as a file first")
    if isinstance(content, bytes):
        return content
    if not isinstance(content, OSError | http.client.HTTPException | ValueError):
        raise content
    reason = getattr(content, "reason", None) or content  # of an URLError: what is behind it
    if isinstance(content, urllib.error.HTTPError):
        reason = f"the server answers {content.code} {content.reason}"
    elif isinstance(reason, TimeoutError):
        reason = f"the server does not answer within {min(_SILENCE, seconds):g} seconds"
    raise InputError(f"cannot read image {url}: {reason}") from content


def _fetch(url: str, seconds: float, max_bytes: int) -> bytes:
    deadline = time.monotonic() + seconds
    request = urllib.request.Request(url, headers={"User-Agent": "m2det_jax"})
    with _opener().open(request, timeout=min(_SILENCE, seconds)) as response:
        return _read(response, deadline, seconds, max_bytes)


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
