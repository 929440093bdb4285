"""Turn TensorRT's nested build phases into one share of progress and a remaining time.

TensorRT reports phases within phases, each with a number of steps. Their names and number differ
between versions. The share of a phase is its finished steps plus the share of the phase in it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt

Report = Callable[[str, float, float | None], None]
"""A ``ShareProgress`` of one graph: phase, share done, and the seconds that remain."""

_EARLIEST_GUESS = 0.02
"""The least share from which the remaining time is estimated."""


@dataclass
class _Phase:
    steps: int
    parent: str | None
    done: int = 0
    children: list[str] = field(default_factory=list)


class BuildProgress:
    """The phases under way. TensorRT may report from several threads."""

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock.

        Args:
            report: is told every change.
            clock: returns seconds.
        """
        self.interrupted = False
        self._report, self._clock = report, clock
        self._phases: dict[str, _Phase] = {}
        self._started = clock()
        self._share = 0.0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase, within ``parent`` or at the top."""
        with self._lock:
            self._phases[name] = _Phase(max(1, steps), parent)
            if parent in self._phases:
                self._phases[parent].children.append(name)
        self._report_share(name)

    def step(self, name: str, step: int) -> bool:
        """Finish step number ``step`` (from 0) of a phase. Return False to make TensorRT stop."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done = max(phase.done, step + 1)
        self._report_share(name)
        return not self.interrupted

    def finish(self, name: str) -> None:
        """End a phase, whether or not all of its steps were reported."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase and phase.parent in self._phases:
                self._phases[phase.parent].children.remove(name)
        self._report_share(name)

    def interrupt(self) -> None:
        """Make TensorRT stop at the next step; an exception must not cross its C++ frames."""
        self.interrupted = True

    def _report_share(self, name: str) -> None:
        with self._lock:
            tops = [key for key, phase in self._phases.items() if phase.parent not in self._phases]
            # A phase ends before its parent's step is reported, so the share must not fall.
            self._share = max([self._share, *map(self._done, tops)])
            share = min(self._share, 1.0)
        elapsed = self._clock() - self._started
        remaining = elapsed * (1 - share) / share if share > _EARLIEST_GUESS else None
        self._report(name, share, remaining)

    def _done(self, name: str) -> float:
        phase = self._phases[name]
        below = max((self._done(child) for child in phase.children), default=0.0)
        return min(1.0, (phase.done + below) / phase.steps)


def make_monitor(trt: Any, progress: BuildProgress) -> trt.IProgressMonitor:
    """Return TensorRT's progress monitor. Keep a reference to it until the build ends."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                progress.start(phase_name, parent_phase, num_steps)
            except KeyboardInterrupt:
                progress.interrupt()

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return progress.step(phase_name, step)
            except KeyboardInterrupt:
                progress.interrupt()
                return False

        def phase_finish(self, phase_name: str) -> None:
            try:
                progress.finish(phase_name)
            except KeyboardInterrupt:
                progress.interrupt()

    return Monitor()
