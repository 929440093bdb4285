"""Several streams over the same frames, which share the graphs that see only the frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.closeable import Closing
from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.runtime.backends.base import Fetching, Runner, Value
from rvos_deploy.runtime.stream import FrameMasks, Stream
from rvos_deploy.video.frames import Frame

SHARED = ("backbone", "frame_decoder")
"""Graphs that read the frame and the texts alone: mode, memory and threshold change nothing."""


class StreamsInStep(Closing):
    """Streams that get each frame at the same time.

    Made by :meth:`rvos_deploy.runtime.segmenter.Segmenter.streams_in_step`. Belongs to one thread.
    Expressions stay as they were at the start; read what waits at the end with each stream's own
    ``flush``.
    """

    def __init__(self, streams: tuple[Stream, ...], next_step: Callable[[], None]) -> None:
        self.streams = streams
        self._next_step = next_step

    def push(self, frame: Frame | NDArray[np.uint8] | Any) -> list[list[FrameMasks]]:
        """Push a frame to every stream; what each decides now, in the order of the streams.

        Raises: as ``Stream.push``.
        """
        self._next_step()
        return [stream.push(frame) for stream in self.streams]

    def close(self) -> None:
        """Close every stream."""
        self._next_step()
        for stream in self.streams:
            stream.close()


def run_once_a_step(runners: Mapping[str, Runner]) -> tuple[dict[str, Runner], Callable[[], None]]:
    """Runners of which the shared ones run once a step; a function that begins the next step."""
    once = {name: _OnceAStep(runners[name]) for name in SHARED}

    def next_step() -> None:
        for runner in once.values():
            runner.forget()

    return {**runners, **once}, next_step


class _OnceAStep(Runner):
    """A runner whose first results of a step serve everybody who asks in that step.

    Everything else is done by the runner inside. It stays active as long as the segmenter keeps it.
    """

    def __init__(self, inside: Runner) -> None:
        super().__init__(inside.spec)
        self._inside = inside
        self._input: Value = None
        self._outputs: dict[str, Value] | None = None

    def forget(self) -> None:
        """Begin the next step."""
        self._input = self._outputs = None

    @property
    def active(self) -> bool:
        return self._inside.active

    def fit(self, frame: Value, geometry: FrameGeometry) -> Value:
        if self._input is None:
            self._input = self._inside.fit(frame, geometry)
        return self._input

    def infer(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        if self._outputs is None:
            self._outputs = self._inside.infer(inputs)
        return self._outputs

    def takes(self, axes: Mapping[str, int]) -> bool:
        return self._inside.takes(axes)

    def to_host(self, value: Value) -> NDArray[Any]:
        return self._inside.to_host(value)

    def fetch(self, values: Sequence[Value]) -> Fetching:
        return self._inside.fetch(values)

    def gather(self, value: Value, index: NDArray[np.integer]) -> Value:
        return self._inside.gather(value, index)

    def stack(self, rows: Sequence[Sequence[Value | None]]) -> Value:
        return self._inside.stack(rows)

    def show(self, logits: Value, geometry: FrameGeometry) -> Fetching:
        return self._inside.show(logits, geometry)

    def finite_maps(self, logits: Value) -> Fetching:
        return self._inside.finite_maps(logits)

    def require_device_masks(self) -> None:
        self._inside.require_device_masks()

    def show_on_device(self, logits: Value, geometry: FrameGeometry) -> Value:
        return self._inside.show_on_device(logits, geometry)

    def take(self, value: Any) -> Value:
        return self._inside.take(value)

    def activate_impl(self) -> None:
        self._inside.activate()

    def infer_impl(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        return self._inside.infer(inputs)

    def deactivate_impl(self) -> None:
        """The segmenter's to do: other streams use the runner inside."""
