"""A frame that the video decoder has decided on, before queries are chosen and masks are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.runtime.backends.base import Value
from rvos_deploy.runtime.finite import require_finite


@dataclass(frozen=True, eq=False)
class DecidedFrame:
    """What the mask head needs of one frame, for the E expressions that are present.

    Args:
        index: the frame's number, from 0.
        pts: its presentation time in seconds.
        geometry: its sizes as displayed and as the network sees it.
        expressions: [E] numbers of the expressions.
        scores: float32 [E,N]: each query's probability of being referred to.
        inputs: all of the mask head's inputs but ``threshold``, by name.
        run_mask_head: runs the graph on inputs by name.
        to_host: of the back end that ran it.
    """

    index: int
    pts: float
    geometry: FrameGeometry
    expressions: tuple[int, ...]
    scores: NDArray[np.float32]
    inputs: Mapping[str, Value]
    run_mask_head: Callable[[Mapping[str, Value]], Mapping[str, Value]]
    to_host: Callable[[Value], NDArray[Any]]

    def mask_logits(self, thresholds: NDArray[np.float32]) -> Value:
        """Run the mask head: float32 [E, padded height/4, padded width/4], where the back end keeps
        it.

        ``thresholds``: float32 [E]; a query passes when its score is greater. The logits are the
        maximum over the queries that pass.
        """
        return self.run_mask_head({**self.inputs, "threshold": thresholds})["mask_logits"]

    def mask_logits_on_host(self, thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
        """As :meth:`mask_logits`, a NumPy array. Raises BackendError when one is NaN."""
        logits = self.to_host(self.mask_logits(thresholds))
        require_finite("mask_head", {"mask_logits": logits}, f"frame {self.index}")
        return logits


Render = Callable[[DecidedFrame], Any]
"""Makes from a decided frame what ``FrameMasks.masks`` then holds."""
