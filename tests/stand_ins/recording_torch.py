"""Stand in for ``torch.cuda`` with a clock: which launches ran, in which order, and how long.

It has the names and arguments of the real module that the benchmark of kernels uses, and these
rules of a GPU:

* Work of a stream runs one after the other. The GPU starts a launch when it is free, and not before
  the host has queued it. Each call of the host takes ``host_us`` microseconds.
* A capture runs nothing; a replay runs all of it without the host.
* A kernel takes longer when something was written over the L2 cache since its last run.
* Waiting during a capture, and a launch outside a ``stream`` block, fail the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

GIGAHERTZ = 1000
"""Cycles a microsecond of the spin kernel."""


class RecordingTorchCuda:
    def __init__(self, host_us: float = 20.0) -> None:
        self.host_us = host_us
        self.host = self.gpu = 0.0
        self.log: list[str] = []
        self.in_cache: set[str] = set()
        self.streams: list[Any] = []
        self.current: Any = None
        self.capture: list[tuple[str, Callable[[], float]]] | None = None
        outer = self

        class Stream:
            def __init__(self) -> None:
                self.cuda_stream = 0x9000 + len(outer.streams)
                outer.streams.append(self)

        class CUDAGraph:
            def __init__(self) -> None:
                self.work: list[tuple[str, Callable[[], float]]] = []

            def replay(self) -> None:
                outer.call("replay")
                for name, duration in self.work:
                    outer.run(name, duration)

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing, "this event has no time"
                self.at = 0.0

            def record(self, stream: Any = None) -> None:
                assert outer.capture is None
                outer.call("record")
                outer.gpu = max(outer.gpu, outer.host)
                self.at = outer.gpu

            def query(self) -> bool:
                return self.at <= outer.host

            def elapsed_time(self, end_event: Any) -> float:
                assert outer.gpu <= outer.host, "nobody waited for the event"
                return (end_event.at - self.at) / 1e3

        self.Stream, self.CUDAGraph, self.Event = Stream, CUDAGraph, Event

    def call(self, what: str) -> None:
        assert self.current is not None, f"{what} on the default stream"
        self.host += self.host_us

    def run(self, name: str, duration: Callable[[], float]) -> None:
        self.log.append(name)
        self.gpu = max(self.gpu, self.host) + duration()

    def launch(self, name: str, duration: Callable[[], float]) -> None:
        self.call(name)
        if self.capture is None:
            self.run(name, duration)
        else:
            self.capture.append((name, duration))

    def kernel(self, name: str, warm: float, flushed: float) -> Callable[[], None]:
        """Return a launch of a kernel that takes so many microseconds."""

        def duration() -> float:
            cached = name in self.in_cache
            self.in_cache.add(name)
            return warm if cached else flushed

        return lambda: self.launch(name, duration)

    def flush(self, microseconds: float = 30.0) -> None:
        """Launch a write over the cache."""

        def duration() -> float:
            self.in_cache.clear()
            return microseconds

        self.launch("flush", duration)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, cuda_graph: Any, pool: Any = None, stream: Any = None) -> Iterator[None]:
        assert self.capture is None
        self.synchronize()
        self.capture = []
        try:
            with self.stream(stream):
                yield
        finally:
            cuda_graph.work, self.capture = self.capture, None

    def current_stream(self, device: Any = None) -> Any:
        assert self.current is not None, "the default stream"
        return self.current

    def get_device_properties(self, device: Any = None) -> Any:
        return SimpleNamespace(L2_cache_size=2**20)

    def synchronize(self, device: Any = None) -> None:
        assert self.capture is None, "a wait during a capture"
        self.host = max(self.host, self.gpu)

    def _sleep(self, cycles: int) -> None:
        self.launch("spin", lambda: cycles / GIGAHERTZ)
