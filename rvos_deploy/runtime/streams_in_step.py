"""Run several streams over the same frames; they share the graphs that read only the frame."""

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
    """Cache the network input of one frame, and the outputs of its graphs by name."""

    image: Tensor | None = None
    outputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the frame, before the next one."""
        self.image = None
        self.outputs.clear()


class SharedCalls(SessionCalls):
    """Call graphs for one of several streams, which share the results of a frame."""

    def __init__(self, session: Session, graphs: tuple[str, ...], results: FrameResults) -> None:
        """``graphs``: names of the shared graphs; ``results``: results of the current frame."""
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
    """Push each frame to several streams.

    :meth:`rvos_deploy.runtime.segmenter.Segmenter.streams_in_step` makes it. It belongs to one
    thread. Its expressions cannot change. Read the frames that wait at the end with ``flush`` of
    each stream.
    """

    def __init__(self, streams: tuple[Stream, ...], results: FrameResults) -> None:
        self.streams = streams
        self._results = results

    def push(self, frame: Frame | NDArray[np.uint8] | object) -> list[list[FrameMasks]]:
        """Push a frame to every stream, and return what each one decides now, in order.

        Raises: as in ``Stream.push``.
        """
        self._results.clear()
        return [stream.push(frame) for stream in self.streams]

    def close(self) -> None:
        """Close every stream."""
        self._results.clear()
        for stream in self.streams:
            stream.close()
