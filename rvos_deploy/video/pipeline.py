"""Overlap decoding, inference and encoding: threads joined by bounded queues."""

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

# Seconds to wait for an iterator that does not end. Its thread is a daemon: it is left behind, and
# does not keep the process alive.
_PATIENCE = 5.0


class _End(NamedTuple):
    error: BaseException | None


def prefetch(iterable: Iterable[Item], depth: int = 4) -> Generator[Item, None, None]:
    """Yield the items of ``iterable``, made up to ``depth`` ahead by a thread of its own.

    What the iterator raises is raised here, with its traceback. The thread starts with the first
    item asked for. It ends when the items do, or when this generator is closed: by ``close()``, by
    leaving a loop over it, by an exception such as KeyboardInterrupt. The iterator, if it can be
    closed, is closed then: by that thread, or, if it is a ``Closeable``, from here, which wakes a
    thread that waits for a silent source. Raises InputError for a depth below 1.
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
            # A generator can be closed only where it is not running: here.
            getattr(iterator, "close", lambda: None)()
        except BaseException as caught:
            error = error or caught
        queue.put(_End(error))


class BackgroundSink(Generic[Arguments]):
    """Calls a function in worker threads, so that the caller goes on.

    ``submit`` waits while ``depth`` calls are queued already. One worker keeps their order; several
    do not. The first exception of the function is raised by the next ``submit`` or by ``close``;
    the calls queued behind it are dropped.

    As a context manager it finishes every call submitted, also when the block is left on an
    exception: there are few, and they may belong to frames that were reported as done. ``abort``
    drops them instead.
    """

    def __init__(
        self, function: Callable[Arguments, object], depth: int = 4, workers: int = 1
    ) -> None:
        if depth < 1 or workers < 1:
            raise InputError(f"depth and workers start at 1, found {depth} and {workers}")
        self._function = function
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="sink")
        # An executor's own queue has no bound.
        self._queue_slots = threading.Semaphore(depth)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._raised = False
        self._dropping = False
        self._closed = False

    def submit(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Queue one call. Raises what an earlier call raised, or InputError after close."""
        if self._error is not None:
            self._raised = True
            raise self._error
        if self._closed:
            raise InputError("the sink is closed; make another one")
        self._queue_slots.acquire()
        self._executor.submit(self._call, *args, **kwargs)

    def close(self) -> None:
        """Finish what is queued and end the threads, then raise what a call raised. Safe twice."""
        self._end()
        self._raise_unseen()

    def abort(self) -> None:
        """Drop what is queued, finish the calls under way, end the threads. Raises nothing."""
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
        self._executor.shutdown()  # again after Ctrl-C in the middle: it waits for its threads

    def _call(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        # Runs for a dropped call too: a submit may be waiting for its place in the queue.
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
