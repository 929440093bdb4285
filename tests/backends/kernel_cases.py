"""Make frames and mask logits of awkward shapes and sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import FrameGeometry, letterbox
from rvos_deploy.graph_io.resampling import AxisWeights
from rvos_deploy.runtime.backends.cuda.kernels import Argument, number, pointer


def random_case(random: np.random.Generator) -> tuple[NDArray[np.float32], FrameGeometry]:
    """Return mask logits of a frame (see :func:`random_geometry`)."""
    geometry = random_geometry(random)
    shape = (int(random.integers(1, 4)), geometry.padded[0] // 4, geometry.padded[1] // 4)
    logits = random.standard_normal(shape).astype(np.float32) * np.float32(10.0) ** random.integers(
        -3, 4
    ).astype(np.float32)
    if random.random() < 0.3:
        # Exact zeros and sums of opposites are ties, where a rounding error shows.
        logits = np.sign(logits) * np.float32(random.random() < 0.5)
    return np.ascontiguousarray(logits, dtype=np.float32), geometry


def random_frame(random: np.random.Generator) -> tuple[NDArray[np.uint8], FrameGeometry]:
    """Return a frame (see :func:`random_geometry`) of noise, or of extremes, where sums are
    largest.
    """
    geometry = random_geometry(random)
    frame = random.integers(0, 256, (*geometry.display, 3), dtype=np.uint8)
    if random.random() < 0.3:
        frame = np.where(frame < 128, np.uint8(0), np.uint8(255))
    return frame, geometry


def table_arguments(tables: tuple[AxisWeights, AxisWeights]) -> list[Argument]:
    """Return weights in host memory as kernel arguments; keep the weights while these are used."""
    arguments = []
    for taps in tables:
        arguments += [pointer(x.ctypes.data) for x in (taps.first, taps.count, taps.weights)]
        arguments.append(number(taps.weights.shape[1]))
    return arguments


def random_geometry(random: np.random.Generator) -> FrameGeometry:
    """Return a frame's geometry: from one pixel on, much smaller or larger than the network's
    input.
    """
    display = tuple(int(side) for side in random.integers(1, (90, 150)))
    box = tuple(32 * int(side) for side in random.integers(1, 7, 2))
    kind = random.random()
    if kind < 0.2:
        display = (int(random.integers(1, 12)), int(random.integers(200, 400)))
    elif kind < 0.4:
        display = tuple(int(side) for side in random.integers(1, 24, 2))
    elif kind < 0.5:
        # One axis or both keep their size.
        display = (8 * int(random.integers(1, 7)), 8 * int(random.integers(1, 7)))
        box = tuple(4 * side for side in sorted(display))
    return letterbox(display, box)  # type: ignore[arg-type]
