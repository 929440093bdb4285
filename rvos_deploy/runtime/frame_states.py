"""Hold a frame on its way through a stream: pushed, started, pending."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks import steps
from rvos_deploy.video.frames import Frame, is_foreign


@dataclass(frozen=True)
class PushedFrame:
    """Hold a pushed frame, and the numbers of the expressions to segment in it.

    Args:
        frame: the frame without its image.
        image: the image; None where the stream keeps no images.
        geometry: how the frame fits the network.
        expressions: numbers of the expressions.
    """

    frame: Frame
    image: Tensor | None
    geometry: FrameGeometry
    expressions: tuple[int, ...]

    @property
    def occasion(self) -> str:
        """Name the frame for an error."""
        return f"frame {self.frame.index}"

    def result_frame(self) -> Frame:
        """Return the frame for its result, with its image where the stream keeps images."""
        if self.image is None:
            return self.frame
        assert isinstance(self.image, np.ndarray) or is_foreign(self.image)
        return self.frame.with_image(self.image)


@dataclass(frozen=True)
class StartedFrame:
    """Hold a frame whose graphs are queued.

    The network's steps advance by this frame only after the next frame is queued, or when an
    answer needs them. So the device computes one frame while the host works on the other.

    Args:
        frame: the frame.
        started: the network's part; None where the frame has no expressions.
    """

    frame: PushedFrame
    started: steps.StartedFrame | None


@dataclass(frozen=True)
class PendingFrame:
    """Hold a frame that waits for the decision about its masks.

    Args:
        frame: the frame, without pixels.
        kept: numbers of its tensors in the spill store, for the masks.
        image: number of its image in the spill store.
    """

    frame: PushedFrame
    kept: tuple[int, ...]
    image: int | None
