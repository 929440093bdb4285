"""Run worker processes that never outlive their parent, and leave stops to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from rvos_deploy import stopping
from rvos_deploy.errors import RvosError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class WorkerPool:
    """Run functions in spawned processes; a context manager.

    Leaving the block on an exception kills the workers at once, and drops their work. If a worker
    has died, leaving the block raises RvosError. A script that uses the pool must guard its main
    code by ``if __name__ == "__main__"``.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._others = set(active_children())
        with _starting():
            # Spawned, not forked: the threads of ONNX Runtime and torch do not survive a fork.
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent)

    def submit(
        self,
        function: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Future[Result]:
        """Queue one call."""
        with _starting():
            return self._pool.submit(function, *args, **kwargs)

    def map(
        self, function: Callable[..., Result], *iterables: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Result]:
        """Queue a call for each item; the results come in the order of the items."""
        with _starting():
            return self._pool.map(function, *iterables, chunksize=chunksize)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._pool.shutdown(cancel_futures=True)
        else:
            # First the queue, then the workers: Python 3.11's pool fails in its own thread, with a
            # traceback, where a worker dies while cancelled work is still queued.
            self._pool.shutdown(wait=False, cancel_futures=True)
            for child in set(active_children()) - self._others:
                child.kill()
                child.join()
        if isinstance(error, BrokenProcessPool):
            raise RvosError(
                f"one of {self._jobs} worker processes ended, perhaps for lack of memory; use "
                "fewer (evaluate: --jobs)"
            ) from error


@contextmanager
def _starting() -> Iterator[None]:
    """Start processes that ignore stops: a terminal signals all, but only the parent answers."""
    with stopping.deferred():
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="parent", daemon=True).start()
