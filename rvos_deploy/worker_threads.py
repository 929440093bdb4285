"""Run long calls of C libraries in threads that a stop leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from rvos_deploy import stopping

_NAME = "rvos-worker"


@contextmanager
def worker_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield an executor with ``count`` threads, and wait for its calls at the end of the block.

    After an error, calls that wait are dropped. A stop does not wait either for those that run,
    because nothing interrupts them in C: they end with the process (see ``any_running``).
    """
    executor = ThreadPoolExecutor(count, thread_name_prefix=_NAME)
    try:
        yield executor
    except stopping.STOPS:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


def any_running() -> bool:
    """Tell whether a call in a thread of this module is still running."""
    return any(thread.name.startswith(_NAME) for thread in threading.enumerate())
