"""Stop a program on SIGINT (Ctrl-C), SIGTERM or SIGHUP with one line and no half-written files.

After ``install``, every stop follows the same path:

1. The first signal raises ``Stopped`` in the main thread, so that each ``with`` and ``finally``
   cleans up. Code that must not be interrupted (a frame and its files) runs in ``deferred()``; it
   calls ``check()`` where it may end, and waits in ``interruptible()``.
2. A watcher thread receives each signal too, because no exception reaches a main thread that is
   stuck in C (FFmpeg, ONNX Runtime, a dead network mount). If the main thread does not answer or
   takes too long, or if a second signal arrives, the watcher removes the temporary files and ends
   the process.

This module has no heavy imports, because a program calls ``install`` before other modules are
loaded. Without ``install`` (in other programs) this module has no effect, and Ctrl-C is Python's.
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

# Seconds in which two signals count as one: `timeout` and systemd send two, people are slower.
_ONE_STOP = 0.1
# Seconds until a main thread that does not answer counts as stuck in C.
_STUCK = 0.5
# Seconds that the clean-up may take.
_CLEAN_UP = 5.0
_POLL = 0.05


class Stopped(SystemExit):
    """Report that the process was asked to stop.

    It is not a KeyboardInterrupt, because libraries convert those. It is a SystemExit, so it ends
    the program with the right exit code if nobody catches it.

    Attributes:
        reason: "interrupted", "terminated" or "hung up".
        hint: finished results, and how to continue; may be empty.
    """

    def __init__(self, number: int, hint: str = "") -> None:
        super().__init__(128 + number)
        self.reason = _REASONS[number]
        self.hint = hint

    @property
    def line(self) -> str:
        """Return the error line for people."""
        return f"error: {self.reason}" + (f"; {self.hint}" if self.hint else "")


STOPS = (KeyboardInterrupt, Stopped)
"""Exceptions of a stop, without and with ``install``."""

INTERRUPTED = 128 + int(signal.SIGINT)


class _State:
    """Hold the state of the process. Only ``request`` is also changed outside the main thread."""

    def __init__(self) -> None:
        self.previous: dict[int, Any] = {}
        self.pipe: tuple[int, int] | None = None
        self.request: int | None = None
        self.answered = False  # the main thread ran the handler, or was told by check()
        self.raised: Stopped | None = None
        self.hint = ""
        self.deferred = 0
        self.interruptible = 0
        self.printed = False
        self.ended = False
        self.leaving = threading.Lock()


_state = _State()


def reason_of(stop: BaseException) -> str:
    """Return the ``reason`` of a Stopped; "interrupted" for a KeyboardInterrupt."""
    return stop.reason if isinstance(stop, Stopped) else "interrupted"


def stop_for_reason(reason: str, hint: str) -> Stopped:
    """Return a stop again that has ended a part of the work, for code that needs that part."""
    return Stopped(exit_code_of(reason) - 128, hint)


def exit_code_of(reason: str) -> int:
    """Return 130 for "interrupted", 143 for "terminated", 129 for "hung up"."""
    return next(128 + number for number, text in _REASONS.items() if text == reason)


def install() -> None:
    """Handle stops from now on. Programs call this once, in their main thread.

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
    """Call ``install`` if ``python -m`` is about to run a module of the calling package."""
    if sys.argv[:1] == ["-m"]:  # true only while Python looks for the module
        install()


def set_hint(hint: str) -> None:
    """Set the hint that later stops print after their reason, for example finished results."""
    _state.hint = hint


@contextmanager
def deferred() -> Iterator[None]:
    """Defer stops to the end of the block, or to a ``check`` or ``interruptible`` in it.

    Only the main thread is ever stopped, so this has no effect in other threads.
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
    """Allow stops in a waiting block inside ``deferred()``."""
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
    """Raise Stopped if the process was asked to stop, and Stopped was not raised yet."""
    if _state.request is not None and _state.raised is None and _in_main_thread():
        _raise()


def requested(patience: float = 0.0) -> Stopped | None:
    """Return the requested stop, or None. ``patience``: seconds to wait for it.

    A signal to a process group may reach a child first, and the child's end is then an error here.
    """
    end = time.monotonic() + patience
    while _state.pipe is not None and _state.request is None and time.monotonic() < end:
        time.sleep(_POLL)
    if _state.raised is not None or _state.request is None:
        return _state.raised
    return Stopped(_state.request, _state.hint)


def was_raised() -> bool:
    """Tell whether a Stopped was raised, because errors that it causes are not the user's."""
    return _state.raised is not None


def print_last_line(line: str) -> None:
    """Print the last line of a stop on standard error; only the first call prints."""
    if _state.printed and _state.request is not None:
        return
    _state.printed = True
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
    """Handle a signal in the main thread, between two Python instructions."""
    _state.request = _state.request or number
    _state.answered = True
    if _state.raised or _state.ended or _state.leaving.locked():
        return
    if _state.deferred and not _state.interruptible:
        return
    if _importing(frame):
        # Importing code may swallow or convert an exception, and C++ initialisers may abort the
        # process.
        _leave(_state.request)
    _raise()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    # A destructor or callback swallowed the stop, so the stack will not unwind.
    if isinstance(unraisable.exc_value, Stopped) and _state.request is not None:
        _leave(_state.request)
    sys.__unraisablehook__(unraisable)


def _watch(receiver: int) -> None:
    """Receive signals while the main thread is busy; end the process if it does not answer."""
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
            free = None  # a frame is being finished, without a time limit
            continue
        free = now if free is None else free
        if now - free > (_CLEAN_UP if _state.answered else _STUCK):
            assert _state.request is not None
            _leave(_state.request)


def _leave(number: int) -> NoReturn:
    """End the process at once, from any thread, and remove its temporary files."""
    if not _state.leaving.acquire(blocking=False):
        while True:  # another thread is ending the process
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
    # Without the module there are no temporary files.
    if (files := sys.modules.get("rvos_deploy.files")) is not None:
        with suppress(AttributeError):  # it is being imported
            files.discard_all(ending=ending)


def _end() -> None:
    """Ignore stops while the interpreter exits, because the program has ended."""
    _state.ended = True
    for number in _state.previous:
        signal.signal(number, signal.SIG_IGN)
    _discard_files(ending=False)
    if _state.raised is not None:
        print_last_line(_state.raised.line)


def _forked() -> None:
    """Reset a forked child, because its parent handles stops and ends the child."""
    global _state
    if _state.pipe is None:
        return
    signal.set_wakeup_fd(-1)
    for number in _state.previous:
        # Ctrl-C reaches all processes of a terminal, but only the parent answers.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    for descriptor in _state.pipe:
        os.close(descriptor)
    _state = _State()
    atexit.unregister(_end)
