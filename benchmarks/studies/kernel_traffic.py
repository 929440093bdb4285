"""Model the bytes that deformable attention must move: to the GPU's memory, and from L2 to L1.

Memory: every input and the output once. L2 to L1: every sector that a block touches once, however
often its threads read it; blocks share nothing. Both are bounds from below for the caches named: a
small L1 reads sectors again, and a large one keeps some from block to block.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.engines.plugins.ms_deform_attn.spec import ITEM_BYTES, DType, LayerSizes

SECTOR = 32
"""Bytes of a sector, the unit in which L1 reads from L2."""
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """A self-attention over a pyramid: every pixel is a query.

    Args:
        shapes: (height, width) of the levels, in the order of the network.
        heads: of the attention.
        head_width: channels of a head.
        points: of a head on each level.
    """

    shapes: tuple[tuple[int, int], ...]
    heads: int
    head_width: int
    points: int = 4

    @property
    def sizes(self) -> LayerSizes:
        """The constants of its kernel."""
        return LayerSizes(self.heads, self.head_width, len(self.shapes), self.points)

    @property
    def queries(self) -> int:
        """Queries, which are pixels too."""
        return sum(height * width for height, width in self.shapes)

    @property
    def samples(self) -> int:
        """Sampling points of a query and head."""
        return len(self.shapes) * self.points

    @property
    def outputs(self) -> int:
        """Numbers of the output."""
        return self.queries * self.heads * self.head_width


WORKLOADS: dict[str, Workload] = {
    "large, 480x864": Workload(((15, 27), (30, 54), (60, 108)), 8, 32),
    "onlinerefer-r50, 384x640": Workload(((48, 80), (24, 40), (12, 20), (6, 10)), 8, 32),
    "tiny, 256x448": Workload(((8, 14), (16, 28), (32, 56)), 8, 16),
}
"""One encoder layer of each network, for one expression."""

OFFSETS = ("start of training", "random")
"""Where the points are: one direction a head, at 1, 2, ... pixels, as a network begins; or around
the query at random with a deviation of 3 pixels. Trained networks lie between them: neighbouring
queries look at similar places."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that a layer moves.

    Args:
        requested: by the threads, of values inside the maps.
        from_l2: to the L1 caches, inputs of every kind.
        memory: every input and the output once.
    """

    requested: int
    from_l2: int
    memory: int


def memory_bytes(work: Workload, kind: DType) -> int:
    """Return the bytes of every input and of the output, once; all are of one type."""
    item = ITEM_BYTES[kind]
    rows = work.queries * work.heads
    values = work.queries * work.heads * work.head_width
    geometry = 4 * 2 * (work.queries + len(work.shapes))
    return item * (2 * values + 3 * rows * work.samples) + geometry


@functools.cache
def traffic(
    work: Workload, kind: DType, offsets: str, queries_of_block: int, heads_of_block: int = 1
) -> Traffic:
    """Count the bytes of one layer.

    Args:
        work: the layer.
        kind: of values, offsets, logits and output.
        offsets: of :data:`OFFSETS`.
        queries_of_block: neighbouring queries of a block.
        heads_of_block: heads of a block; 1 as the kernel is launched.
    """
    item = ITEM_BYTES[kind]
    pixel_bytes = item * work.head_width
    pixels = _sampled_pixels(work, _offsets(work, offsets))
    inside = pixels >= 0
    blocks = np.arange(work.queries) // queries_of_block
    # Values: heads are whole sectors, or several heads lie in one.
    heads_of_sector = max(1, SECTOR // pixel_bytes)
    place = pixels * work.heads + np.arange(work.heads)[None, :, None]
    of_block = blocks[:, None, None] * work.heads + (
        np.arange(work.heads)[None, :, None] // heads_of_block
    )
    code = of_block * (work.queries * work.heads) + place // heads_of_sector
    touched = len(np.unique(code[inside])) * math.ceil(pixel_bytes / SECTOR) * SECTOR
    small = sum(
        _row_bytes(work, blocks, heads_of_block, count * item)
        for count in (2 * work.samples, work.samples)
    )
    return Traffic(
        requested=int(inside.sum()) * pixel_bytes,
        from_l2=touched + small,
        memory=memory_bytes(work, kind),
    )


def _row_bytes(work: Workload, blocks: Int64, heads_of_block: int, row_bytes: int) -> int:
    """Count the bytes of the sectors that blocks touch in a tensor of [Q,heads,row_bytes]."""
    rows = np.arange(work.queries * work.heads)
    groups = work.heads // heads_of_block
    block = np.repeat(blocks, work.heads) * groups + rows % work.heads // heads_of_block
    first, last = rows * row_bytes // SECTOR, (rows * row_bytes + row_bytes - 1) // SECTOR
    span = int((last - first).max()) + 1
    sectors = first[:, None] + np.arange(span)
    code = block[:, None] * (work.queries * work.heads * row_bytes) + sectors
    return len(np.unique(code[sectors <= last[:, None]])) * SECTOR


def _offsets(work: Workload, kind: str) -> NDArray[np.float64]:
    """Return sampling offsets [Q,heads,levels,points,2] in pixels of their level."""
    shape = (work.queries, work.heads, len(work.shapes), work.points, 2)
    if kind == "random":
        return 3 * np.random.default_rng(0).standard_normal(shape)
    angles = np.arange(work.heads) * (2 * math.pi / work.heads)
    directions = np.stack((np.cos(angles), np.sin(angles)), -1)
    directions /= np.abs(directions).max(-1, keepdims=True)
    steps = np.arange(1, work.points + 1)
    return np.broadcast_to(directions[:, None, None] * steps[:, None], shape)


def _sampled_pixels(work: Workload, offsets: NDArray[np.float64]) -> Int64:
    """Return the pixels of all corners, [Q,heads,4*samples]; -1 where they are outside."""
    references = np.concatenate(
        [
            np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1)
            for h, w in work.shapes
        ],
        axis=None,
    ).reshape(-1, 2)
    corners = []
    start = 0
    for level, (height, width) in enumerate(work.shapes):
        places = references[:, None, None] * [width, height] + offsets[:, :, level] - 0.5
        first = np.floor(places).astype(np.int64)
        for right, below in np.ndindex(2, 2):
            x, y = first[..., 0] + right, first[..., 1] + below
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            corners.append(np.where(inside, start + y * width + x, -1))
        start += height * width
    return np.concatenate(corners, -1)
