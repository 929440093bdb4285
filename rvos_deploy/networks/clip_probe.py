"""Define the clip with which the masks of a bundle are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.graph_spec import GraphSpec, fixed_box
from rvos_deploy.graph_io.probe import PROBE_BOX, PROBE_FRAMES, probe_clip
from rvos_deploy.networks.network import Network
from rvos_deploy.stream_settings import StreamSettings


@dataclass(frozen=True)
class ClipProbe:
    """Hold the clip and how its frames fit the network's input.

    Args:
        frames: uint8 [T,H,W,3].
        box: (height, width) of the box for frames.
        geometry: geometry of every frame.
    """

    frames: NDArray[np.uint8]
    box: tuple[int, int]
    geometry: FrameGeometry


def clip_probe(network: Network, graphs: Mapping[str, GraphSpec]) -> ClipProbe:
    """Return the clip in ``PROBE_BOX``, or in the fixed box of the graphs.

    The clip has no more frames than the fixed memory of the graphs.
    """
    memories = [axis.maximum for spec in graphs.values() for axis in spec.axes if axis.name == "M"]
    frames = probe_clip(min([PROBE_FRAMES, *memories]))
    fixed = fixed_box(graphs)
    box = fixed or PROBE_BOX
    display = (frames.shape[1], frames.shape[2])
    return ClipProbe(frames, box, network.geometry(display, StreamSettings(size=box), fixed))
