"""Run an iterator that may block without end in a thread that can be abandoned.

PyAV and lost file systems block in C, where neither a signal handler nor a Python exception reaches
them. So the iterator runs in its own daemon thread, and its consumer waits in Python, where Ctrl-C
and a timeout end the wait at once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from rvos_deploy import stopping

Item = TypeVar("Item")

# Seconds per step of a wait: a sleep of the whole process (Ctrl-Z, a closed laptop) counts as one.
_STEP = 1.0
# Seconds that `close` waits for the step in progress.
_PATIENCE = 0.3


class NoItemError(Exception):
    """Report that no item came within the limit. The iterator hangs, and can only be closed."""


class _Reply(NamedTuple, Generic[Item]):
    items: tuple[Item, ...]  # one item, or none when the iterator has ended
    error: BaseException | None = None


class _Thread(threading.Thread):
    """Mark these threads by a type, so that a process can find abandoned ones."""


class IteratorThread(Generic[Item]):
    """Run a generator in a daemon thread, one step per ``next``.

    The thread also closes the generator: on ``close``, when the last reference to this object is
    dropped, or after a step that hung, if that step ever ends.
    """

    def __init__(self, generator: Generator[Item, None, None], name: str) -> None:
        self._steps: SimpleQueue[bool] = SimpleQueue()
        self._replies: SimpleQueue[_Reply[Item]] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._closed = False
        self._thread = _Thread(
            target=_drive,
            args=(generator, self._steps, self._replies, self._idle),
            name=name,
            daemon=True,
        )
        self._thread.start()
        weakref.finalize(self, self._steps.put, False)

    def next(self, limit: float | None = None) -> Item:
        """Return the next item, or raise the generator's error. Only one thread may wait at a time.

        Raises:
            StopIteration: the generator has ended, or a thread has closed this object.
            NoItemError: no item came within ``limit`` seconds.
        """
        if self._closed:
            raise StopIteration
        # After an interrupted wait, its step may still run, or its reply may be in the queue.
        if self._idle.is_set() and self._replies.empty():
            self._idle.clear()
            self._steps.put(True)
        reply = self._wait(limit)
        if reply.error is not None:
            raise reply.error
        if not reply.items:
            self._closed = True
            raise StopIteration
        return reply.items[0]

    def close(self, patience: float = _PATIENCE) -> None:
        """End the generator; safe to call twice, and from any thread.

        Wait for a step in progress, but at most ``patience`` seconds.
        """
        self._closed = True
        self._steps.put(False)
        self._replies.put(_Reply(()))  # wakes another thread that waits
        if threading.current_thread() is not self._thread:
            self._thread.join(patience)

    def _wait(self, limit: float | None) -> _Reply[Item]:
        with stopping.interruptible():
            if limit is None:
                return self._replies.get()
            while limit > 0:
                with suppress(Empty):
                    return self._replies.get(timeout=min(_STEP, limit))
                limit -= _STEP
        raise NoItemError


def any_stuck() -> bool:
    """Tell whether a thread of this module is still running."""
    return any(isinstance(thread, _Thread) for thread in threading.enumerate())


def _drive(
    generator: Generator[Item, None, None],
    steps: SimpleQueue[bool],
    replies: SimpleQueue[_Reply[Item]],
    idle: threading.Event,
) -> None:
    # This function holds no reference to the IteratorThread, so that it can be collected.
    try:
        while steps.get():
            try:
                reply: _Reply[Item] = _Reply((next(generator),))
            except StopIteration:
                reply = _Reply(())
            except BaseException as error:
                reply = _Reply((), error)
            # Set before the reply, because its consumer may ask for the next item at once.
            idle.set()
            replies.put(reply)
            del reply  # a frame is large
    finally:
        with suppress(Exception):
            generator.close()
