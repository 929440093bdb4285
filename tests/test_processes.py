"""Test worker processes: leaving a pool early is silent and leaves nothing."""

from __future__ import annotations

import threading
import time
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

import pytest

from rvos_deploy.processes import WorkerPool


def test_cancelled_work_and_killed_workers_do_not_disturb_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pool's own thread once failed where it saw a dead worker beside cancelled work."""
    kill = BaseProcess.kill

    def kill_and_let_the_pool_notice(process: BaseProcess) -> None:
        kill(process)
        time.sleep(0.3)

    monkeypatch.setattr(BaseProcess, "kill", kill_and_let_the_pool_notice)
    failures: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    before, threads = set(active_children()), set(threading.enumerate())

    def give_up() -> None:
        with WorkerPool(2) as pool:
            results = pool.map(time.sleep, [0.01] * 2_000)
            next(results)
            results.close()  # type: ignore[attr-defined]  # a generator; cancels what is queued
            raise RuntimeError("given up")

    with pytest.raises(RuntimeError, match="given up"):
        give_up()
    assert set(active_children()) == before
    for thread in set(threading.enumerate()) - threads:
        thread.join(30)
        assert not thread.is_alive()
    assert failures == []
