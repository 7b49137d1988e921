"""Downloads of images: what a server may do, and the limits."""

import contextlib
import http.server
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data import ResizeSettings
from m2det_jax.errors import InputError
from m2det_jax.inference.pictures import look_at
from m2det_jax.inference.urls import download, is_url

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
RESIZE = ResizeSettings((64, 96), "stretch", (0, 0, 0))


def png(orientation: int = 1) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow_headers":
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                while True:
                    self.wfile.write(b"X")
                    time.sleep(0.05)
        content, length, status = png(), None, 200
        headers = {}
        if self.path == "/turned.png":
            content = png(6)
        elif self.path == "/page.html":
            content = b"<html></html>"
        elif self.path == "/large":
            content = b"x" * 300_000
        elif self.path == "/cut":
            length = len(content) + 10
        elif self.path == "/gone":
            status = 404
        elif self.path.startswith("/to?"):
            status, headers = 302, {"Location": self.path.partition("?")[2]}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may be gone
            for start in range(0, len(content), 1 if self.path == "/slow" else 2**16):
                self.wfile.write(content[start : start + (1 if self.path == "/slow" else 2**16)])
                time.sleep(0.05 if self.path == "/slow" else 0)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def host():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_an_image_of_a_url(host):
    picture, (view,) = look_at(f"{host}/a.png", [RESIZE])
    assert picture.name == f"{host}/a.png" and picture.size == (60, 40)
    np.testing.assert_array_equal(np.asarray(picture.load()), PIXELS)
    np.testing.assert_array_equal(view.image, look_at(PIXELS, [RESIZE])[1][0].image)


def test_its_orientation_is_respected(host):
    picture, _ = look_at(f"{host}/turned.png", [RESIZE])
    np.testing.assert_array_equal(np.asarray(picture.load()), np.rot90(PIXELS, -1))


def test_a_redirect_is_followed(host):
    assert download(f"{host}/to?{host}/a.png") == png()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/gone", "the server answers 404"),
        ("/cut", "10 bytes too early"),
        ("/to?file:///etc/passwd", "file"),
        ("/to?ftp://127.0.0.1/a.png", "ftp"),
    ],
)
def test_what_does_not_come_is_said_with_the_url(host, path, reason):
    with pytest.raises(InputError, match=f"cannot read image {host}/.*{reason}"):
        download(host + path)


def test_what_is_no_image_is_said(host):
    with pytest.raises(InputError, match="page.html: not an image file"):
        look_at(f"{host}/page.html", [RESIZE])


def test_the_limit_of_size(host):
    assert len(download(f"{host}/large", max_bytes=300_000)) == 300_000
    with pytest.raises(InputError, match="more than 0.25 MiB"):
        download(f"{host}/large", max_bytes=2**18)


def test_the_limit_of_time_also_where_bytes_come_all_the_time(host):
    begin = time.monotonic()
    with pytest.raises(InputError, match="longer than 0.5 seconds"):
        download(f"{host}/slow", seconds=0.5)
    assert time.monotonic() - begin < 5


def test_no_server():
    with pytest.raises(InputError, match="cannot read image http://127.0.0.1:9/a.png"):
        download("http://127.0.0.1:9/a.png")
    with pytest.raises(InputError, match="cannot read image http://"):
        download("http://[bad/a.png")


def test_what_counts_as_a_url():
    assert is_url("HTTPS://x/a.jpg") and not is_url("folder/http/a.jpg") and not is_url("http.jpg")


def test_headers_are_under_the_limit_of_time(host):
    begin = time.monotonic()
    with pytest.raises(InputError, match="takes longer than 0.5 seconds"):
        download(f"{host}/slow_headers", seconds=0.5)
    assert time.monotonic() - begin < 5
