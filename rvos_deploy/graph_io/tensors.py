"""Define tensors, and the operations on tensors between graphs.

A back end on the host keeps NumPy arrays (``runtime/backends/host_ops.py``); a back end on a GPU
keeps its own tensors there (``runtime/backends/cuda/ops.py``). Callers of graphs pass tensors on,
and use ``TensorOps`` for everything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry

Scalar: TypeAlias = "np.generic[object]"
"""Any type of NumPy's."""
HostArray: TypeAlias = "NDArray[np.generic[object]]"
DType: TypeAlias = "np.dtype[np.generic[object]] | type[np.generic[object]] | str"
"""A type: a dtype, NumPy's class of it, or its name."""
Indices: TypeAlias = NDArray[np.int64]


class Tensor(Protocol):
    """Describe a tensor on the host or on a device. NumPy arrays fulfil this protocol."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""

    @property
    def dtype(self) -> np.dtype[Scalar]:
        """Return the type in NumPy's terms."""

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""


class HostCopy(Protocol):
    """Describe a queued copy to the host."""

    def arrays(self) -> list[HostArray]:
        """Wait for the copy, and return its arrays in order. Call this once."""


class FinishedCopy:
    """Hold arrays that are on the host already."""

    def __init__(self, arrays: Sequence[HostArray]) -> None:
        self._arrays = list(arrays)

    def arrays(self) -> list[HostArray]:
        """Return the arrays."""
        return self._arrays


class TensorOps(ABC):
    """Define the operations between the graphs of a session, where the back end keeps its tensors.

    Every method accepts NumPy arrays beside the back end's own tensors. The methods queue work;
    only ``HostCopy.arrays`` waits.
    """

    @abstractmethod
    def from_dlpack(self, array: object) -> Tensor:
        """Return another library's array as a tensor, without a copy where possible.

        Args:
            array: has ``__dlpack__`` or ``__cuda_array_interface__``.

        Raises:
            InputError: this back end cannot read the array. The message says how to pass it.
        """

    @abstractmethod
    def preprocess(self, frame: Tensor, geometry: FrameGeometry) -> Tensor:
        """Resize and pad a frame uint8 [H,W,3]: network input uint8 [1,h,w,3].

        The numbers are those of ``frame_geometry.resize_frame``.
        """

    @abstractmethod
    def gather(self, value: Tensor, index: Indices) -> Tensor:
        """Return rows of a tensor in another order.

        Args:
            value: [R,...], or [E,N,...].
            index: [K] gives ``value[index]``; [E,N] gives ``value[e][index[e]]`` for every e.
        """

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """Return a new tensor of zeros, which ``write`` may change."""

    @abstractmethod
    def write(self, target: Tensor, positions: Indices, values: Tensor) -> None:
        """Set ``target[e, positions[e]] = values[e]`` for every e, in place.

        Args:
            target: [E,M,...], from ``zeros`` or ``resized``.
            positions: [E].
            values: [E,...], of the type of ``target``.
        """

    @abstractmethod
    def resized(self, value: Tensor, rows: Indices, columns: int) -> Tensor:
        """Return a new tensor [len(rows), columns, ...] that begins like rows of another.

        Args:
            value: [E,M,...].
            rows: [R], rows of ``value``; -1 stands for a row of zeros.
            columns: at least one. Columns beyond M are zeros.
        """

    @abstractmethod
    def concatenate(self, values: Sequence[Tensor]) -> Tensor:
        """Return tensors of one type [R,...], which differ in R alone, as one."""

    @abstractmethod
    def to_host(self, values: Sequence[Tensor]) -> HostCopy:
        """Queue copies of tensors to the host.

        Do not change a tensor by ``write`` before ``HostCopy.arrays`` has returned.
        """

    @abstractmethod
    def upsample_masks(self, logits: Tensor, geometry: FrameGeometry) -> HostCopy:
        """Queue masks of a frame at its displayed size, and their copy to the host.

        Args:
            logits: float32 [E, padded height/4, padded width/4].
            geometry: of the frame.

        Returns:
            A copy of one array, bool [E,H,W]; the numbers are those of
            ``frame_geometry.upsample_masks``.
        """

    @abstractmethod
    def finite_maps(self, logits: Tensor) -> HostCopy:
        """Queue a check of mask logits float32 [E,h,w].

        Returns:
            A copy of one array, bool [E]: False where a map holds NaN or plus infinity. Minus
            infinity passes: it hides a pixel for certain.
        """

    def require_device_masks(self) -> None:
        """Make sure that ``upsample_masks_on_device`` can be called.

        Raises:
            InputError: this back end returns NumPy arrays.
            BackendError: a library is not installed.
        """
        raise InputError(
            "masks='device' needs a back end whose tensors stay on the GPU (backend='tensorrt'); "
            "this one gives NumPy arrays: leave masks out"
        )

    def upsample_masks_on_device(self, logits: Tensor, geometry: FrameGeometry) -> Tensor:
        """Return the masks of ``upsample_masks`` as a tensor bool [E,H,W] on the device.

        Raises:
            InputError, BackendError: as ``require_device_masks``.
        """
        self.require_device_masks()
        raise NotImplementedError
