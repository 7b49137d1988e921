"""Stop signals: a first SIGTERM, SIGINT or SIGHUP asks a run to save and end, a second ends it."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from types import FrameType

import jax

from m2det_jax.run import devices

log = logging.getLogger("m2det_jax")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds. timeout(1), srun and other wrappers pass on a signal that has come with the group's too.
_ONE_REQUEST = 0.25


class Stopped(Exception):
    """A signal ended the run after its state was saved.

    Attributes:
        step: the last optimiser step done, and saved; 0: none.
        status: exit status of the process, 128 + the number of the signal.
    """

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        done = f"step {step} is saved; the same command resumes from it"
        super().__init__(f"{name}: {done if step else 'left before the first step'}")
        self.step, self.status = step, 128 + number


class StopSignals:
    """Turns the first SIGTERM, SIGINT or SIGHUP into a request, and leaves at once on the second.

    A thread hears them, so that the second is obeyed even while the main thread is compiling or
    waits for a device. Handlers exist inside the `with` only, and only in the main thread; without
    them `number` stays None. Under nohup, SIGHUP stays ignored.

    Attributes:
        number: of the signal that asked to stop; None: go on.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked: jax.Array | None = None
        self._before: dict = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        wanted = [n for n in _SIGNALS if not (nohup and n == signal.SIGHUP)]
        self._before = {number: signal.signal(number, _no_more) for number in wanted}
        self._before_wakeup = signal.set_wakeup_fd(self._write)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def agreed(self) -> int | None:
        """Returns the signal to stop for after this step, the same in all processes.

        Of several processes it is the one known a step ago: an answer of now would wait for the
        step that the devices have just begun.
        """
        if jax.process_count() == 1:
            return self.number
        asked, self._asked = self._asked, devices.start_maximum(self.number or 0)
        return None if asked is None else int(asked) or None

    def _listen(self) -> None:
        since = 0.0
        while number := os.read(self._read, 1)[0]:
            if number not in _SIGNALS:
                continue
            if self.number is not None:
                if time.monotonic() - since > _ONE_REQUEST:
                    leave_at_once(number)
                continue
            self.number, since = number, time.monotonic()
            log.warning("%s: finishing the step and saving; once more to leave at once without",
                        signal.Signals(number).name)  # fmt: skip

    def __exit__(self, *exception: object) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._before_wakeup)
        for number, handler in self._before.items():
            # None: it was not set from Python, and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)
        self._before = {}


def _no_more(number: int, frame: FrameType | None) -> None:
    """Only keeps Python's own handler from ending the process; the thread does the work."""


def leave_at_once(number: int) -> None:
    """Ends the data workers and this process, saving nothing."""
    for child in multiprocessing.active_children():
        child.kill()
    log.warning("%s again: left without saving", signal.Signals(number).name)
    os._exit(128 + number)
