"""Do the work between the graphs on PyTorch's tensors where they are, without a host round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from rvos_deploy.graph_io.tensors import DType, Indices, Tensor
from rvos_deploy.runtime.backends.host_ops import HostOps


@dataclass(frozen=True)
class TorchTensor:
    """A tensor of PyTorch, as the runtime's ``Tensor``."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Its type, in NumPy's terms."""
        return np.dtype(str(self.tensor.dtype).removeprefix("torch."))

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.tensor.nbytes

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.tensor.cpu().numpy()
        return array if dtype is None else array.astype(dtype, copy=False)


class TorchOps(HostOps):
    """Gather, write and resize tensors on a device. The host resizes frames, and gets the masks.

    Args:
        device: PyTorch's name of it.
    """

    def __init__(self, device: str) -> None:
        self._device = device

    def tensor(self, value: Tensor) -> torch.Tensor:
        """Return a tensor on the device; arrays of the host are uploaded."""
        if isinstance(value, TorchTensor):
            return value.tensor
        # PyTorch has no read-only tensors, and warns of arrays as Pillow gives them.
        array = np.require(value, requirements=("C", "W"))
        return torch.from_numpy(array).to(self._device)

    def _index(self, index: Indices) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(index, np.int64)).to(self._device)

    def gather(self, value: Tensor, index: Indices) -> Tensor:
        """Return rows in another order, or the tensor itself where the order does not change."""
        if index.ndim == 1 and np.array_equal(index, np.arange(value.shape[0])):
            return value
        rows, chosen = self.tensor(value), self._index(index)
        if index.ndim == 1:
            return TorchTensor(rows[chosen])
        first = torch.arange(len(index), device=self._device)[:, None]
        return TorchTensor(rows[first, chosen])

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """Return a new tensor of zeros."""
        kind = getattr(torch, np.dtype(dtype).name)
        return TorchTensor(torch.zeros(shape, dtype=kind, device=self._device))

    def write(self, target: Tensor, positions: Indices, values: Tensor) -> None:
        """Set one position of every row."""
        assert isinstance(target, TorchTensor)
        rows = torch.arange(len(positions), device=self._device)
        target.tensor[rows, self._index(positions)] = self.tensor(values)

    def resized(self, value: Tensor, rows: Indices, columns: int) -> Tensor:
        """Return a new tensor that begins like rows of another."""
        old = self.tensor(value)
        new = old.new_zeros((len(rows), columns, *old.shape[2:]))
        kept, shared = np.flatnonzero(rows >= 0), min(columns, old.shape[1])
        new[self._index(kept), :shared] = old[self._index(rows[kept]), :shared]
        return TorchTensor(new)

    def concatenate(self, values: Sequence[Tensor]) -> Tensor:
        """Return tensors as one tensor."""
        return TorchTensor(torch.cat([self.tensor(value) for value in values]))
