"""Headless Chromium, controlled through a pipe, without a driver program or another package.

It uses the DevTools protocol: JSON messages that end with a zero byte, written to file descriptor 3
of the browser and read from its file descriptor 4.
"""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

_KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "Space": 32}


def find_chromium() -> str | None:
    """Returns the path of the program, or None if Chromium is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """A browser with one page, for a `with` statement; `errors` has the errors of its script."""

    def __init__(
        self, profile: pathlib.Path, *, timeout: float = 120.0, options: tuple[str, ...] = ()
    ) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._timeout, self._number, self._buffer = timeout, 0, b""
        self._session: str | None = None
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()
        command = [
            find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={profile}", *options,
        ]  # fmt: skip
        # The shell moves the pipes to the numbers that the browser expects.
        script = f'exec 3<&{from_us} 4>&{to_us}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._out, self._in = to_browser, from_browser

    def __enter__(self) -> "Browser":
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *exception) -> None:
        self._process.terminate()
        self._process.wait(self._timeout)
        os.close(self._out)
        os.close(self._in)

    def open(self, path: pathlib.Path, fragment: str = "", *, width=1280, height=900) -> None:
        """Opens a file from disk, in a window of `width` x `height` pixels."""
        self.visit(path.resolve().as_uri() + fragment, width=width, height=height)

    def visit(self, url: str, *, width=1280, height=900) -> None:
        """Opens a page, in a window of `width` x `height` pixels, as a phone if it is narrow."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self._call("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)
        protocol = url.partition("//")[0]
        self.wait_until(f"location.protocol === '{protocol}' && document.readyState === 'complete'")

    def choose(self, selector: str, path: pathlib.Path) -> None:
        """Gives a file to an input of the page, as a person who chooses it."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve())])

    def prefer(self, scheme: str) -> None:
        """Sets the colours that the system prefers: "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def evaluate(self, script: str):
        """Returns the value of a JavaScript expression."""
        found = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_until(self, script: str) -> None:
        """Waits until a JavaScript expression is true; fails when it stays false."""
        deadline = time.monotonic() + self._timeout
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"still not true: {script}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Presses and releases a key."""
        arguments = dict(key=key, code=key, windowsVirtualKeyCode=_KEYS[key])
        if key == "Enter":
            arguments["text"] = "\r"
        elif key == "Space":
            arguments |= {"key": " ", "text": " "}
        self._call("Input.dispatchKeyEvent", type="keyDown", **arguments)
        arguments.pop("text", None)
        self._call("Input.dispatchKeyEvent", type="keyUp", **arguments)

    def screenshot(self, path: pathlib.Path, *, whole: bool = False) -> None:
        """Writes a picture of the window, or of the whole page, as PNG."""
        data = self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **arguments) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def _read(self) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], self._timeout)
            assert ready, "Chromium does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)
