"""Bodies of requests: read within limits of bytes and time, never to a file; the image in them.

A body is the file of an image itself, or multipart/form-data with one file in any field.
"""

import asyncio
import contextlib
import email.message
import email.parser
from collections.abc import Iterator

from starlette.requests import Request

from m2det_jax.serve.problems import Limits, Problem, overloaded

_MOST_PARTS = 16
_LONGEST_HEAD = 8192  # bytes of the header lines of a part
_FORM = "multipart/form-data"
EXPECTED = "the file of one image as the body, or multipart/form-data with one file"


class Memory:
    """Bytes of the bodies that are in memory, of all requests together; used by one thread."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    @contextlib.contextmanager
    def account(self) -> Iterator["Account"]:
        """Yields the account of a request; at the end its bytes are free again."""
        account = Account(self)
        try:
            yield account
        finally:
            self.held -= account.held


class Account:
    """Bytes of one request."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self.held = memory, 0

    def add(self, count: int) -> None:
        """Counts bytes.

        Raises:
            Problem: if there is no room for them.
        """
        if self._memory.held + count > self._memory.most:
            raise overloaded("the memory for bodies is full")
        self._memory.held += count
        self.held += count


async def read_body(request: Request, limits: Limits, account: Account) -> bytes:
    """Returns the body of a request.

    Raises:
        Problem: if it is empty, too large, encoded, or does not come in time.
        starlette.requests.ClientDisconnect: if the client has gone.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise Problem(
            415,
            f"Content-Encoding: {coding} is not supported",
            expected="a body without Content-Encoding",
            remedy="send the file of the image as it is",
        )
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limits.max_body:
        raise _too_large(limits)
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(limits.timeout):
            async for chunk in request.stream():
                account.add(len(chunk))
                chunks.append(chunk)
                if account.held > limits.max_body:
                    raise _too_large(limits)
    except TimeoutError:
        raise Problem(
            408,
            f"the body did not come in {limits.timeout:g} seconds, got {account.held} bytes",
            expected=f"the whole body in {limits.timeout:g} seconds",
            remedy="send a smaller image, or use a faster connection",
        ) from None
    if not account.held:
        raise Problem(
            400, "the body is empty", expected=EXPECTED, remedy="curl --data-binary @photo.jpg URL"
        )
    return b"".join(chunks)


def _too_large(limits: Limits) -> Problem:
    return Problem(
        413,
        f"the body is larger than {limits.max_body} bytes",
        expected=f"at most {limits.max_body} bytes",
        remedy="send a smaller image, or raise --max_body of the service",
    )


def image_of(body: bytes, content_type: str) -> bytes:
    """Returns the file of the image in a body.

    Args:
        body: whole.
        content_type: header of the request. Only multipart/form-data counts: programs name the
            other types wrongly, and the image itself says what it is.

    Raises:
        Problem: if a multipart body is malformed, or has not exactly one file.
    """
    header = email.message.Message()
    header["Content-Type"] = content_type
    if header.get_content_type() != _FORM:
        return body
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 200:
        raise _malformed("Content-Type has no boundary")
    files = [content for head, content in _parts(body, boundary) if _is_file(head)]
    if len(files) != 1:
        raise _malformed(f"{len(files)} files are in it")
    if not files[0]:
        raise _malformed("the file in it is empty")
    return files[0]


def _parts(body: bytes, boundary: str) -> Iterator[tuple[email.message.Message, bytes]]:
    """Yields header and content of the parts of a multipart body (RFC 2046)."""
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    # The first delimiter may stand at the very beginning.
    _, *sections = (b"\r\n" + body).split(delimiter, _MOST_PARTS + 2)
    if len(sections) > _MOST_PARTS + 1:
        raise _malformed(f"it has more than {_MOST_PARTS} parts")
    *sections, end = sections or [b""]
    if not end.startswith(b"--"):
        raise _malformed("its last boundary is missing; it is cut off, or has another boundary")
    for section in sections:
        start = section.find(b"\r\n")
        cut = section.find(b"\r\n\r\n", max(start, 0), max(start, 0) + _LONGEST_HEAD)
        if start < 0 or cut < 0 or section[:start].strip(b" \t"):
            raise _malformed("a part has no header, or a very long one")
        head = email.parser.BytesHeaderParser().parsebytes(section[start + 2 : cut + 2])
        yield head, section[cut + 4 :]


def _is_file(head: email.message.Message) -> bool:
    if head.get_content_disposition() != "form-data":
        raise _malformed("a part is not form-data")
    if head.get_filename() is not None:
        return True
    name = str(head.get_param("name", "", "content-disposition"))
    raise _malformed(f"field {name[:40]!r} is not a file; options stand in the URL: ?threshold=0.3")


def _malformed(what: str) -> Problem:
    return Problem(
        400,
        f"the multipart body cannot be used: {what}",
        expected=EXPECTED,
        remedy="curl -F file=@photo.jpg URL",
    )
