"""Overlap decoding, inference and encoding by threads and bounded queues."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, NamedTuple, ParamSpec, TypeVar

from rvos_deploy import stopping
from rvos_deploy.closeable import Closeable
from rvos_deploy.errors import InputError

Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")

# Seconds to wait for an iterator that does not end. Its daemon thread does not keep the process
# alive.
_PATIENCE = 5.0


class _End(NamedTuple):
    error: BaseException | None


def prefetch(iterable: Iterable[Item], depth: int = 4) -> Generator[Item, None, None]:
    """Yield the items of ``iterable``, which a background thread makes up to ``depth`` ahead.

    Errors of the iterator are raised here, with their traceback. The thread starts with the first
    item, and ends after the last item or when this generator is closed: by ``close()``, by leaving
    a loop over it, or by an exception such as KeyboardInterrupt. The iterator is closed then, if it
    can be closed: by the thread, or from here if it is a ``Closeable``, which wakes a thread that
    waits for a silent source. Raises InputError: ``depth`` is below 1.
    """
    if depth < 1:
        raise InputError(f"depth must be at least 1, found {depth}")
    return _prefetched(iterable, depth)


def _prefetched(iterable: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    # A semaphore bounds the queue, because one release wakes a producer that waits for a slot; the
    # queue itself has no bound.
    free_slots, stop = threading.Semaphore(depth), threading.Event()
    queue: SimpleQueue[Item | _End] = SimpleQueue()
    thread = threading.Thread(
        target=_produce, args=(iterable, queue, free_slots, stop), name="prefetch", daemon=True
    )
    thread.start()
    try:
        while not isinstance(item := _next(queue), _End):
            free_slots.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        free_slots.release()
        if isinstance(iterable, Closeable):
            iterable.close()
        thread.join(_PATIENCE)


def _next(queue: SimpleQueue[Item | _End]) -> Item | _End:
    with stopping.interruptible():
        return queue.get()


def _produce(
    iterable: Iterable[Item],
    queue: SimpleQueue[Item | _End],
    free_slots: threading.Semaphore,
    stop: threading.Event,
) -> None:
    error: BaseException | None = None
    iterator: Iterator[Item] | None = None
    try:
        iterator = iter(iterable)
        while free_slots.acquire() and not stop.is_set():
            queue.put(next(iterator))
    except StopIteration:
        pass
    except BaseException as caught:
        error = caught
    finally:
        try:
            # Only this thread knows that the generator is not running, so it closes the generator.
            getattr(iterator, "close", lambda: None)()
        except BaseException as caught:
            error = error or caught
        queue.put(_End(error))


class BackgroundSink(Generic[Arguments]):
    """Call a function in worker threads while the caller goes on.

    ``submit`` waits while ``depth`` calls are queued. One worker keeps the order of the calls;
    several workers do not. The next ``submit``, or ``close``, raises the first exception of the
    function; calls that were queued behind it are dropped.

    As a context manager it finishes every submitted call, even if the block raises: there are few
    calls, and they may belong to frames that were reported as done. ``abort`` drops them instead.
    """

    def __init__(
        self, function: Callable[Arguments, object], depth: int = 4, workers: int = 1
    ) -> None:
        if depth < 1 or workers < 1:
            raise InputError(f"depth and workers start at 1, found {depth} and {workers}")
        self._function = function
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="sink")
        # The executor's own queue is unbounded.
        self._queue_slots = threading.Semaphore(depth)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._raised = False
        self._dropping = False
        self._closed = False

    def submit(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Queue one call. Raises the error of an earlier call, or InputError after ``close``."""
        if self._error is not None:
            self._raised = True
            raise self._error
        if self._closed:
            raise InputError("the sink is closed; make another one")
        self._queue_slots.acquire()
        self._executor.submit(self._call, *args, **kwargs)

    def close(self) -> None:
        """Finish queued calls, end the threads, and raise the error of a call. Safe to repeat."""
        self._end()
        self._raise_unseen()

    def abort(self) -> None:
        """Drop the queued calls, finish the running ones, and end the threads. Raises nothing."""
        self._dropping = True
        self._end()

    def __enter__(self) -> BackgroundSink[Arguments]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        if error is None:
            self._raise_unseen()

    def _end(self) -> None:
        self._closed = True
        self._executor.shutdown()  # a repeated call after Ctrl-C waits for the threads

    def _call(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        # Dropped calls run this too, because ``submit`` may be waiting for a slot.
        self._queue_slots.release()
        if self._dropping:
            return
        try:
            self._function(*args, **kwargs)
        except BaseException as error:
            with self._lock:
                self._dropping = True
                self._error = self._error or error

    def _raise_unseen(self) -> None:
        if self._error is not None and not self._raised:
            self._raised = True
            raise self._error
