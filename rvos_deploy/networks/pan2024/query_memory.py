"""Store the aligned frame queries that the video decoder reads: a ring buffer, and anchors.

The memory is one tensor [E,M,N,C], which the back end owns. A frame is written into one place of
every row. The decoder accepts frames in any order, because each place has an age and empty places
are masked. Online, M is the window plus the anchors from the first frame on. So neither the shape
nor the address of the tensor changes while the expressions stay the same. Offline, the tensor
doubles. The decoder then reads a copy without spare places, because its engine may allow only a few
more frames than the clip has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import AxisSpec
from rvos_deploy.graph_io.tensors import Tensor, TensorOps

FIRST_CAPACITY = 8
"""Initial number of places of a memory that grows."""


def token_bytes(
    frames: int, expressions: int, num_queries: int, dim: int, itemsize: int = 4
) -> int:
    """Return the bytes of the frame queries of ``frames`` remembered frames.

    Offline without ``memory``, every frame of the clip is remembered, for any ``mask_budget``. A
    frame and expression need 10 KiB in float32 for the network ``tiny`` (20 queries of 128
    numbers), 20 KiB for ``large`` (20 of 256), and half of that in float16 (``itemsize`` 2). The
    capacity doubles, so up to twice as many bytes are allocated, and three times during growth.
    """
    return frames * expressions * num_queries * dim * itemsize


class FramePlaces:
    """Assign the frames of one expression to places: a window, and anchors.

    The last ``window`` frames are kept, and up to ``anchors`` older ones. The anchors are spread
    evenly over the frames that left the window: every s-th frame, and s doubles when there are too
    many. With ``window`` None every frame is kept.
    """

    def __init__(self, window: int | None, anchors: int = 0) -> None:
        self._window, self._anchors = window, anchors
        self._anchor_stride = 1
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._places)

    def append(self) -> int:
        """Return the place of the newest frame; the places of forgotten frames are reused."""
        newest, self._count = self._count, self._count + 1
        if self._window is not None:
            self._retire(newest - self._window)
        place = self._free.pop() if self._free else len(self._places)
        self._places[newest] = place
        return place

    def ages(self, capacity: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return ages in frames, float32 [capacity] (0: the newest), and empty, bool [capacity]."""
        ages, empty = np.zeros(capacity, np.float32), np.ones(capacity, np.bool_)
        for index, place in self._places.items():
            ages[place], empty[place] = self._count - 1 - index, False
        return ages, empty

    def _retire(self, index: int) -> None:
        """Turn a frame that leaves the window into an anchor, or forget the frame."""
        if index < 0:
            return
        if not self._anchors or index % self._anchor_stride:
            self._forget(index)
            return
        older = [i for i in self._places if i <= index]
        while len(older) > self._anchors:
            self._anchor_stride *= 2
            for i in [i for i in older if i % self._anchor_stride]:
                self._forget(i)
            older = [i for i in older if not i % self._anchor_stride]

    def _forget(self, index: int) -> None:
        self._free.append(self._places.pop(index))


class QueryMemory:
    """Store frame queries of all expressions of a stream in a tensor of the back end."""

    def __init__(
        self, ops: TensorOps, axis: AxisSpec, window: int | None, anchors: int = 0
    ) -> None:
        """Limit the capacity by the bounds of ``axis``, the video decoder's axis of frames, M.

        So a graph with a fixed size receives that size.
        """
        self._ops, self._axis = ops, axis
        self._window, self._anchors = window, anchors
        self._tensor: Tensor | None = None
        self._rows: tuple[int, ...] = ()
        self._places: dict[int, FramePlaces] = {}

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the expressions that have seen a frame."""
        return tuple(self._places)

    def append(self, numbers: Sequence[int], queries: Tensor) -> None:
        """Write the aligned queries [E,N,C] of the newest frame, for these expressions.

        Raises InputError: the video decoder cannot read that many frames.
        """
        for number in numbers:
            if number not in self._places:
                self._places[number] = FramePlaces(self._window, self._anchors)
        self._places = {number: self._places[number] for number in numbers}
        positions = np.array([places.append() for places in self._places.values()])
        if self._tensor is None:
            shape = (len(numbers), self._capacity(positions), *queries.shape[1:])
            self._tensor, self._rows = self._ops.zeros(shape, queries.dtype), tuple(numbers)
        self._fit(self._capacity(positions))
        self._ops.write(self._tensor, positions, queries)

    def remove(self, number: int) -> None:
        """Forget an expression; without expressions the tensor is freed."""
        self._places.pop(number, None)
        if not self._places:
            self._tensor, self._rows = None, ()

    def read(self) -> dict[str, Tensor]:
        """Return the inputs of the video decoder by name.

        These are memory [E,M,N,C], memory_ages float32 [E,M] in frames, and memory_empty bool
        [E,M].
        """
        assert self._tensor is not None
        self._fit(self._tensor.shape[1])
        tensor, capacity = self._tensor, self._tensor.shape[1]
        if self._window is None:
            frames = max(map(len, self._places.values()))
            capacity = min(max(frames, self._axis.minimum), capacity)
            tensor = self._ops.resized(tensor, np.arange(len(self._places)), capacity)
        state = [places.ages(capacity) for places in self._places.values()]
        return {
            "memory": tensor,
            "memory_ages": np.stack([ages for ages, _ in state]),
            "memory_empty": np.stack([empty for _, empty in state]),
        }

    def _fit(self, capacity: int) -> None:
        """Resize the tensor to one row for each expression, in order, and ``capacity`` places."""
        assert self._tensor is not None
        numbers = tuple(self._places)
        if numbers == self._rows and capacity <= self._tensor.shape[1]:
            return
        row_of = {number: row for row, number in enumerate(self._rows)}
        rows = np.array([row_of.get(number, -1) for number in numbers])
        self._tensor = self._ops.resized(self._tensor, rows, capacity)
        self._rows = numbers

    def _capacity(self, positions: NDArray[np.int64]) -> int:
        """Return the number of places that the tensor needs."""
        needed, limit = int(positions.max()) + 1, self._axis.maximum
        if needed > limit:
            raise InputError(
                f"frame {needed} is one more than the {limit} that this bundle can remember; use "
                f"--memory {limit} (in Python, StreamSettings(memory={limit}))"
            )
        if self._window is not None:
            return max(needed, self._window + self._anchors, self._axis.minimum)
        held = 0 if self._tensor is None else self._tensor.shape[1]
        if needed <= held:
            return held
        doubled = min(max(2 * held, FIRST_CAPACITY, self._axis.minimum), self._axis.maximum)
        return max(needed, doubled)
