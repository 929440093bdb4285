"""Threads for long calls: a block waits for them, a stop does not."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from rvos_deploy.stopping import STOPS, Stopped
from rvos_deploy.worker_threads import any_running, worker_threads


def wait_until_none_runs() -> None:
    while any_running():
        time.sleep(0.01)


def test_the_block_waits_for_its_calls() -> None:
    done = threading.Event()
    with worker_threads(1) as executor:
        call = executor.submit(done.wait)
        threading.Timer(0.05, done.set).start()
    assert call.done()
    wait_until_none_runs()


class Calls:
    """One call that runs until ``done`` is set, and one that waits for its thread."""

    def __init__(self) -> None:
        self.begun, self.done = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        self.done.wait()

    def submit_and_raise(self, error: BaseException) -> None:
        with worker_threads(1) as executor:
            self.running, self.waiting = executor.submit(self), executor.submit(self)
            self.begun.wait()
            raise error


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped(signal.SIGTERM)])
def test_a_stop_waits_for_no_call_and_drops_those_that_wait(stop: BaseException) -> None:
    calls = Calls()
    with pytest.raises(STOPS):
        calls.submit_and_raise(stop)
    assert calls.running.running()
    assert calls.waiting.cancelled()
    assert any_running()
    calls.done.set()
    wait_until_none_runs()


def test_an_error_waits_for_calls_that_run_and_drops_the_others() -> None:
    calls = Calls()
    threading.Timer(0.05, calls.done.set).start()
    with pytest.raises(ValueError, match="broken"):
        calls.submit_and_raise(ValueError("broken"))
    assert calls.running.done()
    assert calls.waiting.cancelled()
