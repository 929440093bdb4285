"""Capture repeated runs as CUDA graphs: when to capture, how, and what to keep.

One call replays a captured run, instead of some hundred kernel launches. A captured run has inputs
and outputs of its own (``owned_run.py``), so its sizes alone identify it.

NOT RUN: it needs a GPU. A recording stand-in of ``cuda.bindings.driver`` tests the decisions, and
what happens where CUDA refuses a capture.
"""

from __future__ import annotations

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, Protocol, TypeVar

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.driver_calls import call
from rvos_deploy.runtime.backends.cuda.runtime_errors import clear_runtime_errors

CAPACITY = 8
"""Captured runs kept for one graph. Each has buffers and an execution context of its own."""
_REMEMBERED = 64
"""Sizes that came once. They are remembered, so that a second run is recognised."""

_Sizes = tuple[tuple[str, int], ...]


class CapturedRun(Protocol):
    """What is kept of a capture."""

    def close(self) -> None:
        """Free the CUDA graph and what belongs to it."""


_Run = TypeVar("_Run", bound=CapturedRun)


class CapturedRuns(Generic[_Run]):
    """The captured runs of one graph, one for each sizes. The least recently used is dropped first.

    A run is captured when its sizes come for the second time, because sizes that come once (the
    memory of a whole clip) are not worth a capture.
    """

    def __init__(self, graph: str, *, enabled: bool = True, capacity: int = CAPACITY) -> None:
        """Keep no run yet.

        Args:
            graph: the graph's name, for the warning.
            enabled: False captures nothing.
            capacity: how many runs are kept, at least one.
        """
        self._graph, self._capacity = graph, capacity
        self._runs: OrderedDict[_Sizes, _Run] = OrderedDict()
        self._seen: OrderedDict[_Sizes, None] = OrderedDict()
        self.reason: str | None = None if enabled else "CUDA graphs were switched off"

    def __len__(self) -> int:
        return len(self._runs)

    def find(self, axes: Mapping[str, int]) -> _Run | None:
        """Return the run of these sizes, or None."""
        sizes = _sizes(axes)
        if sizes in self._runs:
            self._runs.move_to_end(sizes)
        return self._runs.get(sizes)

    def should_capture(self, axes: Mapping[str, int]) -> bool:
        """Tell whether to capture a run that :meth:`find` did not find."""
        if self.reason is not None:
            return False
        sizes = _sizes(axes)
        again = sizes in self._seen
        self._seen[sizes] = None
        self._seen.move_to_end(sizes)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return again

    def add(self, axes: Mapping[str, int], run: _Run) -> None:
        """Keep a run; where there are too many, free the least recently used one."""
        if len(self._runs) >= self._capacity:
            self._runs.popitem(last=False)[1].close()
        self._runs[_sizes(axes)] = run

    def disable(self, reason: str) -> None:
        """Capture nothing more of this graph, and warn once; runs go on without CUDA graphs."""
        if self.reason is None:
            self.reason = reason
            warnings.warn(
                f"{self._graph} runs without CUDA graphs, somewhat slower: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )

    def clear(self) -> None:
        """Free all runs, also where freeing one of them fails."""
        with ExitStack() as stack:
            for run in self._runs.values():
                stack.callback(run.close)
            self._runs.clear()
            self._seen.clear()


def _sizes(axes: Mapping[str, int]) -> _Sizes:
    return tuple(sorted(axes.items()))


class CaptureError(Exception):
    """Nothing was captured, and the stream is unchanged. The text says why."""


def capture(driver: Any, stream: int, enqueue: Callable[[], bool]) -> Any:
    """Capture the work that ``enqueue`` queues on a stream.

    The same work must have run once, and must have finished: the first run at new sizes prepares
    what must not be captured. Nothing is collected as garbage during the capture, because a
    library's finaliser may call CUDA, and such a call would be captured or would end the capture.
    A refusal's pending error is cleared, so that no other library reports it.

    Args:
        driver: ``cuda.bindings.driver``.
        stream: the handle of a stream other than the default one.
        enqueue: queues the work; returns False where TensorRT refuses. A graph of refused work
            would replay stale buffers.

    Returns:
        The executable graph, a ``CUgraphExec``; free it by :func:`free_graph`.

    Raises:
        CaptureError: nothing was captured.
    """
    handle = driver.CUstream(stream)
    # Thread-local mode lets other threads of the process allocate during the capture.
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    accepted = False
    error: Any = None
    graph: Any = None
    try:
        with _no_garbage_collection():
            _call_capture(driver, "cuStreamBeginCapture", handle, mode)
            try:
                accepted = enqueue()
            finally:
                # The stream must leave capture mode, whatever happened.
                error, graph = driver.cuStreamEndCapture(handle)
                if not accepted and int(error) == 0:
                    driver.cuGraphDestroy(graph)
    finally:
        if not accepted or int(error) != 0:
            clear_runtime_errors()
    if not accepted:
        raise CaptureError("TensorRT refused to be captured")
    if int(error) != 0:
        raise CaptureError(f"cuStreamEndCapture failed with {error.name}")
    try:
        return _call_capture(driver, "cuGraphInstantiate", graph, 0)
    finally:
        driver.cuGraphDestroy(graph)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def launch(driver: Any, graph: Any, stream: int) -> None:
    """Queue the replay of a captured run. Raises BackendError: CUDA refuses."""
    call(driver, "cuGraphLaunch", graph, driver.CUstream(stream))


def free_graph(driver: Any, graph: Any) -> None:
    """Free what :func:`capture` returned; CUDA completes a replay that is under way."""
    call(driver, "cuGraphExecDestroy", graph)


def _call_capture(driver: Any, name: str, *arguments: Any) -> Any:
    try:
        return call(driver, name, *arguments)
    except BackendError as error:
        raise CaptureError(str(error)) from None
