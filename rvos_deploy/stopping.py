"""Stops: SIGINT (Ctrl-C), SIGTERM and SIGHUP end a program in one line, with nothing half-written.

Every stop goes the same way, once ``install`` was called:

1. The first signal raises ``Stopped`` in the main thread, so that each ``with`` and ``finally``
   cleans up. Code that must not be cut through (a frame and its files) stands in ``deferred()``; it
   asks ``check()`` where it may end, and marks where it waits by ``interruptible()``.
2. A thread of its own receives each signal too, because no exception reaches a main thread that is
   stuck in C (FFmpeg, ONNX Runtime, a dead network mount). Where the main thread does not answer,
   takes too long, or a second signal comes, that thread removes the temporary files and ends the
   process.

Imports nothing heavy: a program calls ``install`` before anything else is loaded. Without it (in
somebody else's program) nothing here does anything, and Ctrl-C is Python's own.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_REASONS: dict[int, str] = {
    int(getattr(signal, name)): reason
    for name, reason in (
        ("SIGINT", "interrupted"),
        ("SIGTERM", "terminated"),
        ("SIGHUP", "hung up"),
    )
    if hasattr(signal, name)  # Windows has no SIGHUP
}
SIGNALS = frozenset(_REASONS)
"""Numbers of the signals that stop a program."""

# `timeout` and systemd send two signals for one stop; nobody presses Ctrl-C twice as fast.
_ONE_STOP = 0.1
# Seconds until a main thread that does not answer counts as stuck in C.
_STUCK = 0.5
# Seconds that the clean-up may take.
_CLEAN_UP = 5.0
_POLL = 0.05


class Stopped(SystemExit):
    """The process is asked to stop.

    No KeyboardInterrupt, which libraries turn into something else, and no Exception: uncaught, it
    ends the program with the right exit code.

    Attributes:
        reason: "interrupted", "terminated" or "hung up".
        hint: what there is, and how to go on; may be empty.
    """

    def __init__(self, number: int, hint: str = "") -> None:
        super().__init__(128 + number)
        self.reason = _REASONS[number]
        self.hint = hint

    @property
    def line(self) -> str:
        """For people."""
        return f"error: {self.reason}" + (f"; {self.hint}" if self.hint else "")


STOPS = (KeyboardInterrupt, Stopped)
"""How a stop is raised: without and with ``install``."""

INTERRUPTED = 128 + int(signal.SIGINT)


class _State:
    """Of the process. Everything but ``request`` is changed by the main thread only."""

    def __init__(self) -> None:
        self.previous: dict[int, Any] = {}
        self.pipe: tuple[int, int] | None = None
        self.request: int | None = None
        self.answered = False  # the main thread ran the handler, or was told by check()
        self.raised: Stopped | None = None
        self.hint = ""
        self.deferred = 0
        self.interruptible = 0
        self.said = False
        self.ended = False
        self.leaving = threading.Lock()


_state = _State()


def reason_of(stop: BaseException) -> str:
    """``reason`` of a Stopped; "interrupted" of a KeyboardInterrupt."""
    return stop.reason if isinstance(stop, Stopped) else "interrupted"


def stop_for_reason(reason: str, hint: str) -> Stopped:
    """The stop that ended a part of the work, for what cannot go on without that part."""
    return Stopped(exit_code_of(reason) - 128, hint)


def exit_code_of(reason: str) -> int:
    """130 for "interrupted", 143 for "terminated", 129 for "hung up"."""
    return next(128 + number for number, text in _REASONS.items() if text == reason)


def install() -> None:
    """Answer stops from now on; for programs, in their main thread, once.

    A signal that the parent ignores (nohup, a background job of a shell) stays ignored.
    """
    if _state.pipe is not None or not _in_main_thread():
        return
    _state.pipe = receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    threading.Thread(target=_watch, args=(receiver,), name="stops", daemon=True).start()
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            _state.previous[number] = signal.signal(number, _on_signal)
    sys.unraisablehook = _on_unraisable
    atexit.register(_end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)


def install_for_module() -> None:
    """``install`` where ``python -m`` is about to run a module of the package that calls this."""
    if sys.argv[:1] == ["-m"]:  # so it is while the module is being looked for, and only then
        install()


def set_hint(hint: str) -> None:
    """Set what a stop from now on says beside its reason: what there is already."""
    _state.hint = hint


@contextmanager
def deferred() -> Iterator[None]:
    """Raise no stop inside the block, but where it asks for it; at its end instead.

    Only the main thread is ever stopped: in others this does nothing.
    """
    if not _in_main_thread():
        yield
        return
    _state.deferred += 1
    try:
        yield
    finally:
        _state.deferred -= 1
    if not _state.deferred:
        check()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside ``deferred()``: a stop is raised while the block waits."""
    if not _in_main_thread():
        yield
        return
    _state.interruptible += 1
    try:
        check()
        yield
    finally:
        _state.interruptible -= 1


def check() -> None:
    """Raise Stopped if the process was asked to stop and nothing was raised for it yet."""
    if _state.request is not None and _state.raised is None and _in_main_thread():
        _raise()


def requested(patience: float = 0.0) -> Stopped | None:
    """The stop that was asked for. ``patience``: seconds to wait for it.

    A signal to a whole process group may reach a child first, whose end is then an error here.
    """
    end = time.monotonic() + patience
    while _state.pipe is not None and _state.request is None and time.monotonic() < end:
        time.sleep(_POLL)
    if _state.raised is not None or _state.request is None:
        return _state.raised
    return Stopped(_state.request, _state.hint)


def was_raised() -> bool:
    """Whether a Stopped was raised: an error that came of it is not the user's."""
    return _state.raised is not None


def print_last_line(line: str) -> None:
    """Print the one line that a stop ends with, on standard error; only the first call does."""
    if _state.said and _state.request is not None:
        return
    _state.said = True
    with suppress(OSError):  # the terminal may be gone
        os.write(2, (" ".join(line.split()) + "\n").encode(errors="replace"))


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _raise() -> NoReturn:
    assert _state.request is not None
    _state.answered = True
    _state.raised = Stopped(_state.request, _state.hint)
    raise _state.raised


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread, between two instructions of Python."""
    _state.request = _state.request or number
    _state.answered = True
    if _state.raised or _state.ended or _state.leaving.locked():
        return
    if _state.deferred and not _state.interruptible:
        return
    if _importing(frame):
        # An exception in an import is swallowed or becomes another one, and may abort the
        # process where C++ code initialises itself.
        _leave(_state.request)
    _raise()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    # A destructor or callback swallowed the stop: nothing will unwind.
    if isinstance(unraisable.exc_value, Stopped) and _state.request is not None:
        _leave(_state.request)
    sys.__unraisablehook__(unraisable)


def _watch(receiver: int) -> None:
    """Receive signals, whatever the main thread does; end the process where it does not."""
    first = free = None
    while not _state.ended:
        ready, _, _ = select.select([receiver], [], [], None if first is None else _POLL)
        now = time.monotonic()
        for number in os.read(receiver, 64) if ready else b"":
            if number not in SIGNALS:
                continue
            if first is None:
                first, _state.request = now, _state.request or number
            elif now - first > _ONE_STOP:
                _leave(number)
        if first is None or _state.deferred:
            free = None  # a frame is being finished, however long that takes
            continue
        free = now if free is None else free
        if now - free > (_CLEAN_UP if _state.answered else _STUCK):
            assert _state.request is not None
            _leave(_state.request)


def _leave(number: int) -> NoReturn:
    """End the process at once, in any thread, without leftovers."""
    if not _state.leaving.acquire(blocking=False):
        while True:  # another thread is at it
            time.sleep(1)
    print_last_line(Stopped(number, _state.hint).line)
    _end_children()
    _discard_files(ending=True)
    if "rich" in sys.modules and sys.stderr is not None and sys.stderr.isatty():
        with suppress(OSError):
            os.write(2, b"\x1b[?25h")  # progress bars hide the cursor
    os._exit(128 + number)


def _end_children() -> None:
    if "multiprocessing.process" not in sys.modules:
        return
    from multiprocessing import active_children

    with suppress(Exception):
        children = active_children()
        for child in children:
            child.kill()
        for child in children:
            child.join(1)


def _discard_files(*, ending: bool) -> None:
    # Not imported: there are no temporary files then.
    if (files := sys.modules.get("rvos_deploy.files")) is not None:
        with suppress(AttributeError):  # it is being imported
            files.discard_all(ending=ending)


def _end() -> None:
    """The program has ended and the interpreter goes: a stop would change nothing any more."""
    _state.ended = True
    for number in _state.previous:
        signal.signal(number, signal.SIG_IGN)
    _discard_files(ending=False)
    if _state.raised is not None:
        print_last_line(_state.raised.line)


def _forked() -> None:
    """A forked child: its parent receives the stops, and ends it."""
    global _state
    if _state.pipe is None:
        return
    signal.set_wakeup_fd(-1)
    for number in _state.previous:
        # Ctrl-C reaches each process of a terminal; only the parent answers.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    for descriptor in _state.pipe:
        os.close(descriptor)
    _state = _State()
    atexit.unregister(_end)
