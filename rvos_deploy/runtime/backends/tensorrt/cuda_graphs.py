"""CUDA graphs: when a run is captured, how, what is kept of it, and what is said when it fails.

A captured run is replayed by one call instead of some hundred kernel launches. It is bound to its
sizes and to every address, so runs are kept by both; see ``RunKey``.

NOT RUN: it needs a GPU. The decisions, and what happens to a refused capture, are tested against a
recording stand-in of ``cuda.bindings.driver``.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.libraries import call

CAPACITY = 8
"""Captured runs kept of one graph. Each holds its outputs and an execution context."""
_REMEMBERED = 64
"""Keys of which it is remembered that they were seen once."""


@dataclass(frozen=True)
class RunKey:
    """What a captured run is bound to, beside its own buffers: sizes, and inputs on the device."""

    axes: tuple[tuple[str, int], ...]
    addresses: tuple[tuple[str, int], ...]

    @staticmethod
    def of(axes: Mapping[str, int], addresses: Mapping[str, int]) -> RunKey:
        """The key of these sizes and these addresses of inputs that are on the device."""
        return RunKey(tuple(sorted(axes.items())), tuple(sorted(addresses.items())))


class CapturedRun(Protocol):
    """What is kept of a capture."""

    @property
    def busy(self) -> bool:
        """Whether somebody still holds the outputs of its last replay."""

    def close(self) -> None:
        """Free the graph and what belongs to it."""


_Run = TypeVar("_Run", bound=CapturedRun)


class CapturedRuns(Generic[_Run]):
    """The captured runs of one graph: least recently used ones are dropped, busy ones never.

    A run is captured when its key is seen for the second time: sizes that come once (the memory
    of a whole clip) are not worth it. Where a run of the same key is busy, as with
    frames that wait for their lookahead, another one is captured beside it.
    """

    def __init__(self, graph: str, *, enabled: bool = True, capacity: int = CAPACITY) -> None:
        """``graph``: its name, for what is said. ``enabled``: False captures nothing."""
        self._graph, self._capacity = graph, capacity
        self._runs: OrderedDict[int, tuple[RunKey, _Run]] = OrderedDict()
        self._next = 0
        self._seen: OrderedDict[RunKey, None] = OrderedDict()
        self.reason: str | None = None if enabled else "CUDA graphs were switched off"

    def __len__(self) -> int:
        return len(self._runs)

    def find(self, key: RunKey) -> _Run | None:
        """A run of this key that may be replayed now."""
        for number, (known, run) in self._runs.items():
            if known == key and not run.busy:
                self._runs.move_to_end(number)
                return run
        return None

    def wants(self, key: RunKey) -> bool:
        """Whether to capture this run, which :meth:`find` did not find."""
        if self.reason is not None or self._capacity < 1:
            return False
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return False
        self._seen.move_to_end(key)
        return len(self._runs) < self._capacity or self._oldest_idle() is not None

    def add(self, key: RunKey, run: _Run) -> None:
        """Keep a run; the least recently used one that is idle goes where there are too many."""
        oldest = self._oldest_idle()
        if len(self._runs) >= self._capacity and oldest is not None:
            self._runs.pop(oldest)[1].close()
        self._runs[self._next] = (key, run)
        self._next += 1

    def give_up(self, reason: str) -> None:
        """Capture nothing more of this graph, and say why, once; runs go on without."""
        if self.reason is None:
            self.reason = reason
            warnings.warn(
                f"{self._graph} runs without CUDA graphs, somewhat slower: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )

    def clear(self) -> None:
        """Free everything."""
        while self._runs:
            self._runs.popitem()[1][1].close()
        self._seen.clear()

    def _oldest_idle(self) -> int | None:
        return next((number for number, (_, run) in self._runs.items() if not run.busy), None)


class CaptureError(Exception):
    """A capture that did not come about; the stream is as before. The text says why."""


def capture(driver: Any, stream: int, enqueue: Callable[[], bool]) -> Any:
    """Capture what ``enqueue`` puts on a stream, which must have run once just before.

    The first run after a change of sizes prepares things that must not be captured, so it is the
    caller's to run, and to check, before.

    Args:
        driver: ``cuda.bindings.driver``.
        stream: handle of a stream that is not the default one.
        enqueue: puts the work there; False when it was refused. A refusal that went unseen would
            leave a graph that replays stale buffers.

    Returns:
        The executable graph, a ``CUgraphExec``; free it by :func:`free_graph`.

    Raises:
        CaptureError: nothing was captured.
    """
    handle = driver.CUstream(stream)
    # Thread-local: other threads of the process may allocate meanwhile.
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _must(driver, "cuStreamBeginCapture", handle, mode)
    accepted = False
    try:
        accepted = enqueue()
    finally:
        # Whatever happened, the stream must not stay in capture mode.
        error, graph = driver.cuStreamEndCapture(handle)
        if not accepted and int(error) == 0:
            driver.cuGraphDestroy(graph)
    if not accepted:
        raise CaptureError("TensorRT refused to be captured")
    if int(error) != 0:
        raise CaptureError(f"cuStreamEndCapture failed with {error.name}")
    try:
        return _must(driver, "cuGraphInstantiate", graph, 0)
    finally:
        driver.cuGraphDestroy(graph)


def launch(driver: Any, graph: Any, stream: int) -> None:
    """Replay a captured run on a stream. Raises BackendError when CUDA refuses."""
    call(driver, "cuGraphLaunch", graph, driver.CUstream(stream))


def free_graph(driver: Any, graph: Any) -> None:
    """Free what :func:`capture` gave; a replay under way is completed."""
    call(driver, "cuGraphExecDestroy", graph)


def _must(driver: Any, name: str, *arguments: Any) -> Any:
    try:
        return call(driver, name, *arguments)
    except BackendError as error:
        raise CaptureError(str(error)) from None
