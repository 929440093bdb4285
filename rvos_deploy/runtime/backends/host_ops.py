"""Do the work between the graphs on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry, resize_frame, upsample_masks
from rvos_deploy.graph_io.tensors import (
    DType,
    FinishedCopy,
    HostArray,
    HostCopy,
    Indices,
    Tensor,
    TensorOps,
)


class HostOps(TensorOps):
    """Tensor operations on the host. Tensors on a device are copied to the host first."""

    def from_dlpack(self, array: object) -> Tensor:
        """Return an array on the host as a NumPy array."""
        try:
            return np.from_dlpack(array)  # type: ignore[arg-type]
        except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
            raise InputError(
                f"a {type(array).__name__} cannot be read on the host, where this back end takes "
                "its inputs; pass a NumPy array (PyTorch: frame.cpu().numpy(), CuPy: frame.get()), "
                "or use --backend tensorrt for frames on the GPU"
            ) from None

    def preprocess(self, frame: Tensor, geometry: FrameGeometry) -> Tensor:
        """Resize and pad a frame."""
        return resize_frame(np.asarray(frame), geometry)

    def gather(self, value: Tensor, index: Indices) -> Tensor:
        """Return rows in another order, or the tensor itself where the order does not change."""
        if index.ndim == 1 and np.array_equal(index, np.arange(value.shape[0])):
            return value
        rows: HostArray = np.asarray(value)
        gathered: HostArray = (
            rows[index] if index.ndim == 1 else rows[np.arange(len(index))[:, None], index]
        )
        return gathered

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """Return a new array of zeros."""
        return np.zeros(shape, dtype)

    def write(self, target: Tensor, positions: Indices, values: Tensor) -> None:
        """Set one position of every row."""
        assert isinstance(target, np.ndarray)
        target[np.arange(len(positions)), positions] = np.asarray(values)

    def resized(self, value: Tensor, rows: Indices, columns: int) -> Tensor:
        """Return a new array that begins like rows of another."""
        old = np.asarray(value)
        new = np.zeros((len(rows), columns, *old.shape[2:]), old.dtype)
        kept, shared = rows >= 0, min(columns, old.shape[1])
        new[kept, :shared] = old[rows[kept], :shared]
        return new

    def concatenate(self, values: Sequence[Tensor]) -> Tensor:
        """Return arrays as one array."""
        return np.concatenate([np.asarray(value) for value in values])

    def to_host(self, values: Sequence[Tensor]) -> HostCopy:
        """Return the arrays; nothing is queued."""
        return FinishedCopy([np.asarray(value) for value in values])

    def upsample_masks(self, logits: Tensor, geometry: FrameGeometry) -> HostCopy:
        """Return masks at the displayed size."""
        return FinishedCopy([upsample_masks(np.asarray(logits), geometry)])

    def finite_maps(self, logits: Tensor) -> HostCopy:
        """Return which maps are finite."""
        return FinishedCopy([np.asarray(logits).max(axis=(1, 2), initial=-np.inf) < np.inf])
