"""Time a kernel on a GPU: many launches between two events, with its data in the L2 cache or not.

One launch between two events measures Python, because the GPU waits for the next launch. So 100
launches are captured in one CUDA graph. What has CUDA graphs of its own cannot be captured: its
launches are queued one by one. Before either, a spin kernel holds the GPU until the host has queued
everything; where the spin was too short, it is made longer and the batch runs again.

Without the L2 cache, a buffer of twice the cache's size is written before each launch. The time of
as many writes alone, in the same round, is taken off.

NOT RUN: it needs a GPU. The tests run it on a stand-in of ``torch.cuda`` with a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rvos_deploy.errors import BackendError

LAUNCHES = 100
WARM_UP = 5
"""Launches of a contender before it is captured or timed."""
SPIN_CYCLES, LONGEST_SPIN = 200_000, 2_000_000_000
"""Clock cycles of the spin kernel: some 0.1 ms at first, and one second at most."""

Launch = Callable[[], object]
"""Queues one launch on PyTorch's current stream."""


@dataclass(frozen=True)
class Contender:
    """Something that is timed.

    Args:
        launch: queues one launch on PyTorch's current stream.
        captured: it can be captured in a CUDA graph; otherwise a spin kernel precedes it.
    """

    launch: Launch
    captured: bool = True


@dataclass(frozen=True)
class PreparedLaunches:
    """The batches of one contender."""

    warm: Batch
    flushed: Batch


@dataclass(frozen=True)
class LaunchTimes:
    """Milliseconds of one launch: its data in the L2 cache (``warm``), and flushed from it."""

    warm: float
    flushed: float


class LaunchTimer:
    """Time launches on a stream of its own.

    Args:
        cuda: ``torch.cuda``.
        flush: queues a write over the whole L2 cache on the current stream.
        launches: of one batch.
    """

    def __init__(self, cuda: Any, flush: Launch, launches: int = LAUNCHES) -> None:
        self._cuda, self._flush, self._launches = cuda, flush, launches
        self._stream = cuda.Stream()
        # A kernel's first launch may load it, which must not happen during a capture.
        self._warm_up(flush)
        self._flushes = self._captured([flush])

    def prepare(self, contender: Contender) -> PreparedLaunches:
        """Warm a contender up, and capture its launches. Errors are those of its library."""
        self._warm_up(contender.launch)
        make = self._captured if contender.captured else self._queued
        return PreparedLaunches(make([contender.launch]), make([self._flush, contender.launch]))

    def measure(self, prepared: PreparedLaunches) -> LaunchTimes:
        """Time each batch once, after one untimed run, which fills the cache or loads the graph.

        Raises:
            BackendError: the host cannot queue a batch before the spin kernel ends.
        """
        warm, flushed, flushes = (
            self._timed(batch) for batch in (prepared.warm, prepared.flushed, self._flushes)
        )
        return LaunchTimes(warm / self._launches, (flushed - flushes) / self._launches)

    def _timed(self, batch: Batch) -> float:
        batch.milliseconds()
        return batch.milliseconds()

    def _warm_up(self, launch: Launch) -> None:
        self._cuda.synchronize()
        with self._cuda.stream(self._stream):
            for _ in range(WARM_UP):
                launch()
        self._cuda.synchronize()

    def _captured(self, launches: Sequence[Launch]) -> Batch:
        graph = self._cuda.CUDAGraph()
        with self._cuda.graph(graph, stream=self._stream):
            for _ in range(self._launches):
                for launch in launches:
                    launch()
        return Batch(self._cuda, self._stream, graph.replay)

    def _queued(self, launches: Sequence[Launch]) -> Batch:
        def queue() -> None:
            for _ in range(self._launches):
                for launch in launches:
                    launch()

        return Batch(self._cuda, self._stream, queue)


@dataclass
class Batch:
    """Launches that are timed together, as one.

    Args:
        cuda: ``torch.cuda``.
        stream: where they run.
        queue: queues all of them: a replay of their graph, or one by one.
        cycles: of the spin kernel; they grow until the host is fast enough.
    """

    cuda: Any
    stream: Any
    queue: Callable[[], object]
    cycles: int = SPIN_CYCLES

    def milliseconds(self) -> float:
        """Run all, and return the milliseconds between the events around them.

        Raises:
            BackendError: the host cannot queue them before the spin kernel ends.
        """
        while True:
            taken = self._run()
            if taken is not None:
                return taken
            if self.cycles >= LONGEST_SPIN:
                raise BackendError(
                    "the host needs longer to queue the launches than the GPU spins, so their time "
                    "would be the host's"
                )
            self.cycles = min(4 * self.cycles, LONGEST_SPIN)

    def _run(self) -> float | None:
        """Return the milliseconds; None where the GPU went ahead before everything was queued."""
        with self.cuda.stream(self.stream):
            start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
            self.cuda._sleep(self.cycles)
            start.record()
            self.queue()
            end.record()
            early = start.query()
        self.cuda.synchronize()
        return None if early else float(start.elapsed_time(end))
