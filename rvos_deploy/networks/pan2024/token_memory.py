"""The memory of aligned frame queries that the video decoder reads: a window, and anchors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.runtime.backends.base import Value


def token_bytes(
    frames: int, expressions: int, num_queries: int, dim: int, itemsize: int = 4
) -> int:
    """Bytes of frame queries that ``frames`` remembered frames hold, where the back end keeps them.

    Offline without ``memory`` that is every frame of the clip, whatever ``mask_budget`` says: for
    the network ``tiny`` (20 queries of 128 numbers) 10 KiB a frame and expression in float32, for
    ``large`` (20 of 256) 20 KiB; half of that where the graphs give float16 (``itemsize`` 2). The
    video decoder takes them in one piece, so that there are twice as many while it decides. Python
    adds about 1 KiB a frame and 0.4 KiB a frame and expression on the host.
    """
    return frames * expressions * num_queries * dim * itemsize


class TokenMemory:
    """Frame queries [N,C] of the last ``window`` frames, and up to ``anchors`` older ones.

    Anchors are spread evenly over what has left the window: every s-th frame, s doubling whenever
    they become too many. With ``window`` None everything is kept (offline; how much that is:
    :func:`token_bytes`). ``capacity``: frames that the video decoder can read; None: any number.
    """

    def __init__(self, window: int | None, anchors: int = 0, capacity: int | None = None) -> None:
        self._window, self._anchors, self._capacity = window, anchors, capacity
        self._anchor_stride = 1
        self._tokens: dict[int, Value] = {}
        self._count = 0

    def append(self, tokens: Value) -> None:
        """Take the newest frame's aligned queries [N,C], where the back end keeps them.

        Raises InputError when there are more than the video decoder can read.
        """
        self._tokens[self._count] = tokens
        self._count += 1
        if self._window is not None:
            self._retire(self._count - 1 - self._window)
        if self._capacity is not None and len(self._tokens) > self._capacity:
            raise InputError(
                f"frame {self._count} is one more than the {self._capacity} that this bundle can "
                f"remember; use --memory {self._capacity} (in Python, "
                f"StreamSettings(memory={self._capacity}))"
            )

    def _retire(self, index: int) -> None:
        """A frame leaves the window: it becomes an anchor or is forgotten."""
        if index < 0:
            return
        if not self._anchors or index % self._anchor_stride:
            del self._tokens[index]
            return
        older = [i for i in self._tokens if i <= index]
        while len(older) > self._anchors:
            self._anchor_stride *= 2
            for i in [i for i in older if i % self._anchor_stride]:
                del self._tokens[i]
            older = [i for i in older if not i % self._anchor_stride]

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self) -> tuple[list[Value], NDArray[np.float32]]:
        """Tokens [N,C] of M frames, oldest first, and their ages in frames [M] (0: the newest)."""
        newest = self._count - 1
        ages = np.array([newest - index for index in self._tokens], dtype=np.float32)
        return list(self._tokens.values()), ages
