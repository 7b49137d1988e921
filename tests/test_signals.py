"""A first signal asks a run to stop, a second ends it at once."""

import errno
import logging
import os
import signal
import sys
import threading
import time

import pytest

from m2det_jax import runtime
from m2det_jax.run import signals as stop_signals
from m2det_jax.run.signals import Stopped, StopSignals


def wait_for_number(signals):
    end = time.monotonic() + 10
    while signals.number is None and time.monotonic() < end:
        time.sleep(0.005)
    return signals.number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_leaves(number, monkeypatch, warnings_of_run):
    left = []
    monkeypatch.setattr(stop_signals, "leave_at_once", left.append)
    if (before := signal.getsignal(number)) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored by whoever started the tests, as nohup does")
    with StopSignals() as signals:
        assert signals.agreed() is None
        os.kill(os.getpid(), number)
        assert wait_for_number(signals) == number == signals.agreed()
        assert f"{number.name}: finishing the step and saving" in warnings_of_run.text
        # timeout(1) sends it to the process and, at once, to its group: that is one request.
        os.kill(os.getpid(), number)
        time.sleep(0.3)
        assert left == []
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 10
        while not left and time.monotonic() < end:
            time.sleep(0.005)
        assert left == [signal.SIGTERM]
    assert signal.getsignal(number) == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert signals.number is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_no_handler_is_set():
    seen = []

    def run():
        with StopSignals() as signals:
            seen.extend([signals.agreed(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None, signal.SIG_DFL]


def test_leaving_at_once_ends_the_workers_first(monkeypatch):
    done = []

    class Worker:
        def kill(self):
            done.append("killed")

    workers = [Worker(), Worker()]
    monkeypatch.setattr(stop_signals.multiprocessing, "active_children", lambda: workers)
    monkeypatch.setattr(stop_signals.os, "_exit", done.append)
    stop_signals.leave_at_once(signal.SIGINT)
    assert done == ["killed", "killed", 130]


@pytest.mark.parametrize(
    ("number", "step", "status", "said"),
    [(signal.SIGTERM, 7, 143, "step 7 is saved"), (signal.SIGINT, 0, 130, "before the first step")],
)
def test_a_stopped_run_has_the_status_of_its_signal(number, step, status, said, capsys):
    with pytest.raises(SystemExit) as ended, runtime.one_line_errors():
        raise Stopped(number, step)
    assert ended.value.code == status
    written = capsys.readouterr().err
    assert written.startswith(f"{number.name}: ") and said in written


class Gone:
    """A terminal that was closed."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    def flush(self):
        pass


def test_a_log_that_nobody_can_read_ends_no_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone())
    handler = runtime._BesideTheBar()
    handler.emit(logging.LogRecord("m2det_jax", logging.INFO, "x.py", 1, "step 1", (), None))
    with pytest.raises(SystemExit) as ended, runtime.one_line_errors():
        raise Stopped(signal.SIGHUP, 3)
    assert ended.value.code == 129
