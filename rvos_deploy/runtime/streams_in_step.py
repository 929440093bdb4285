"""Several streams over the same frames, which share the graphs that see only the frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.closeable import Closeable
from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Session
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.graph_calls import SessionCalls
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.video.frames import Frame


@dataclass
class FrameResults:
    """What one frame gave already: its network input, and outputs by graph."""

    image: Tensor | None = None
    outputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def clear(self) -> None:
        """Begin the next frame."""
        self.image = None
        self.outputs.clear()


class SharedCalls(SessionCalls):
    """Calls of one of several streams: the first stream's results of a frame serve the others."""

    def __init__(self, session: Session, graphs: tuple[str, ...], results: FrameResults) -> None:
        """``graphs``: names of those that are shared; ``results``: of the frame at hand."""
        super().__init__(session)
        self._graphs, self._results = graphs, results

    def preprocess(self, frame: Tensor, geometry: FrameGeometry) -> Tensor:
        """Resize and pad a frame, once for all streams."""
        if self._results.image is None:
            self._results.image = super().preprocess(frame, geometry)
        return self._results.image

    def run(self, graph: str, inputs: Mapping[str, Tensor], occasion: str) -> dict[str, Tensor]:
        """Run a graph; a shared one once for all streams."""
        if graph not in self._graphs:
            return super().run(graph, inputs, occasion)
        known = self._results.outputs
        if graph not in known:
            known[graph] = super().run(graph, inputs, occasion)
        return known[graph]


class StreamsInStep(Closeable):
    """Streams that get each frame at the same time.

    Made by :meth:`rvos_deploy.runtime.segmenter.Segmenter.streams_in_step`. Belongs to one thread.
    Expressions stay as they were at the start; read what waits at the end with each stream's own
    ``flush``.
    """

    def __init__(self, streams: tuple[Stream, ...], results: FrameResults) -> None:
        self.streams = streams
        self._results = results

    def push(self, frame: Frame | NDArray[np.uint8] | object) -> list[list[FrameMasks]]:
        """Push a frame to every stream; what each decides now, in the order of the streams.

        Raises: as ``Stream.push``.
        """
        self._results.clear()
        return [stream.push(frame) for stream in self.streams]

    def close(self) -> None:
        """Close every stream."""
        self._results.clear()
        for stream in self.streams:
            stream.close()
