"""An iterator that may block for ever, driven by a thread that can be left behind.

PyAV and file systems that are gone block in C, where no signal handler and no exception of Python
reaches them. So the iterator runs in a daemon thread of its own, and who needs an item waits in
Python: Ctrl-C ends the wait at once, and so does a time-out.
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

# A wait is counted in steps: what the whole process slept (Ctrl-Z, a closed laptop) is one of them.
_STEP = 1.0
# Seconds that `close` waits for an item that is being made.
_PATIENCE = 0.3


class NoItemError(Exception):
    """No item came within the limit. The iterator hangs; all that is left to do is to close it."""


class _Reply(NamedTuple, Generic[Item]):
    items: tuple[Item, ...]  # one, or none: the iterator has ended
    error: BaseException | None = None


class _Thread(threading.Thread):
    """Told from others, so that a process knows when one is left."""


class IteratorThread(Generic[Item]):
    """Runs a generator in a daemon thread, one step for each ``next``.

    The generator is closed there too: by ``close``, when the last reference to this goes, or after
    the step that it hangs in, should that ever end.
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
        """The next item; at most one thread may wait for it. What the generator raises is raised.

        Raises:
            StopIteration: there is none, or this was closed, also meanwhile by another thread.
            NoItemError: it did not come within ``limit`` seconds.
        """
        if self._closed:
            raise StopIteration
        # A wait that was interrupted left its step under way, or its reply behind.
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

        A step under way is waited for, but no more than ``patience`` seconds.
        """
        self._closed = True
        self._steps.put(False)
        self._replies.put(_Reply(()))  # for another thread that waits
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
    """Whether a thread was left behind in a step."""
    return any(isinstance(thread, _Thread) for thread in threading.enumerate())


def _drive(
    generator: Generator[Item, None, None],
    steps: SimpleQueue[bool],
    replies: SimpleQueue[_Reply[Item]],
    idle: threading.Event,
) -> None:
    # Holds no reference to the IteratorThread, which could not go away otherwise.
    try:
        while steps.get():
            try:
                reply: _Reply[Item] = _Reply((next(generator),))
            except StopIteration:
                reply = _Reply(())
            except BaseException as error:
                reply = _Reply((), error)
            # Before the reply: who takes that may ask for the next item at once.
            idle.set()
            replies.put(reply)
            del reply  # a frame is large
    finally:
        with suppress(Exception):
            generator.close()
