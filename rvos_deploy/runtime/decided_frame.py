"""Give evaluations a decided frame before its candidates are chosen and its masks are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.tensors import TensorOps
from rvos_deploy.networks.steps import MaskMaker
from rvos_deploy.runtime.finite import MASK_LOGITS, require_finite


@dataclass(frozen=True, eq=False)
class DecidedFrame:
    """Hold a frame whose masks can be made, for the E expressions that are present.

    Args:
        index: the frame's number, from 0.
        geometry: the frame's sizes: displayed, and at the network's input.
        expressions: [E] numbers of the expressions.
        maker: the network's mask maker.
        ops: the session's tensor operations.
        mask_graph: name of the graph that computes mask logits, for errors.
    """

    index: int
    geometry: FrameGeometry
    expressions: tuple[int, ...]
    maker: MaskMaker
    ops: TensorOps
    mask_graph: str

    @property
    def scores(self) -> NDArray[np.float32]:
        """Return the score of each candidate: float32 [E,N]."""
        return self.maker.scores

    def mask_logits(self, thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute mask logits float32 [E, padded height/4, padded width/4].

        The masks unite the candidates whose score exceeds the threshold [E] of their expression.

        Raises BackendError: the back end failed, or a logit is NaN or plus infinity.
        """
        (logits,) = self.ops.to_host([self.maker.mask_logits(thresholds)]).arrays()
        require_finite(self.mask_graph, {MASK_LOGITS: logits}, f"frame {self.index}")
        return logits.astype(np.float32, copy=False)


Render = Callable[[DecidedFrame], NDArray[np.bool_]]
"""Makes the masks bool [E,H,W] of a decided frame. A stream calls it for each frame, in order."""
