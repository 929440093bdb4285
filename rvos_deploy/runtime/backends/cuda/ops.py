"""What lies between the graphs, on a GPU.

Without our kernels (NVRTC is missing, or the driver refuses its PTX) the host does their work.

NOT RUN: it needs a GPU (see kernels.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.tensors import HostCopy, Tensor, TensorOps
from rvos_deploy.runtime.backends.cuda import pieces
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.foreign_arrays import borrow, is_device_array
from rvos_deploy.runtime.backends.cuda.frames import FrameFitter
from rvos_deploy.runtime.backends.cuda.masks import MaskDisplay
from rvos_deploy.runtime.backends.cuda.tensor import DeviceCopy, DeviceTensor, send
from rvos_deploy.runtime.backends.host_ops import HostOps


class CudaOps(TensorOps):
    """Tensor operations on one GPU. NumPy arrays are worked on by the host."""

    def __init__(self, device: CudaDevice) -> None:
        self._device, self._host = device, HostOps()
        self._frames = self._masks = None
        if device.has_kernels():
            self._frames, self._masks = FrameFitter(device), MaskDisplay(device)

    def from_dlpack(self, array: object) -> Tensor:
        """Return an array on this GPU as it is; one on the host as a NumPy array."""
        if is_device_array(array):
            return borrow(self._device, array)
        return self._host.from_dlpack(array)

    def preprocess(self, frame: Tensor, geometry: FrameGeometry) -> Tensor:
        """Resize and pad a frame where it is.

        Host frames are resized on the host, because that uploads fewer bytes.
        """
        if isinstance(frame, DeviceTensor):
            if geometry.content == geometry.padded == frame.shape[:2]:
                return frame.reshape(1, *frame.shape)
            if self._frames is not None:
                return self._frames.fit(frame, geometry)
        return self._host.preprocess(frame, geometry)

    def gather(self, value: Tensor, index: NDArray[np.integer]) -> Tensor:
        """Return rows in another order."""
        if not self._on_device(value) or _is_own_order(value, index):
            return self._host.gather(value, index)
        assert isinstance(value, DeviceTensor)
        return pieces.gather(value, index)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        """Return a new tensor of zeros."""
        if self._masks is None:
            return self._host.zeros(shape, dtype)
        return pieces.zeros(self._device, shape, dtype)

    def write(self, target: Tensor, positions: NDArray[np.integer], values: Tensor) -> None:
        """Set one position of every row, by one copy on the device for each."""
        if not isinstance(target, DeviceTensor):
            self._host.write(target, positions, values)
            return
        there = values if isinstance(values, DeviceTensor) else self._send(values)
        pieces.write(target, positions, there)

    def resized(self, value: Tensor, rows: NDArray[np.integer], columns: int) -> Tensor:
        """Return a new tensor that begins like rows of another."""
        if not self._on_device(value):
            return self._host.resized(value, rows, columns)
        assert isinstance(value, DeviceTensor)
        return pieces.resized(value, rows, columns)

    def concatenate(self, values: Sequence[Tensor]) -> Tensor:
        """Return tensors as one."""
        tensors = [value for value in values if isinstance(value, DeviceTensor)]
        if self._masks is None or len(tensors) < len(values):
            return self._host.concatenate(values)
        return pieces.concatenate(tensors)

    def to_host(self, values: Sequence[Tensor]) -> HostCopy:
        """Queue the downloads, each as soon as its tensor is there; one wait for all of them."""
        tensors = [value for value in values if isinstance(value, DeviceTensor)]
        if not tensors or len(tensors) < len(values):
            return self._host.to_host(values)
        return DeviceCopy(tensors)

    def upsample_masks(self, logits: Tensor, geometry: FrameGeometry) -> HostCopy:
        """Resize, threshold and pack masks on the device, and queue their download."""
        if self._masks is None or not isinstance(logits, DeviceTensor):
            return self._host.upsample_masks(logits, geometry)
        return self._masks.fetch(logits, geometry)

    def finite_maps(self, logits: Tensor) -> HostCopy:
        """Check logits on the device; a byte a row comes down."""
        if self._masks is None or not isinstance(logits, DeviceTensor):
            return self._host.finite_maps(logits)
        return self._masks.finite(logits)

    def require_device_masks(self) -> None:
        """Raise BackendError where our kernels could not be compiled or loaded; says why."""
        self._device.kernels()

    def upsample_masks_on_device(self, logits: Tensor, geometry: FrameGeometry) -> DeviceTensor:
        """Queue masks bool [E,H,W] on the device."""
        self.require_device_masks()
        assert self._masks is not None
        there = logits if isinstance(logits, DeviceTensor) else self._send(logits)
        return self._masks.show(there, geometry)

    def _on_device(self, value: Tensor) -> bool:
        return self._masks is not None and isinstance(value, DeviceTensor)

    def _send(self, value: Tensor) -> DeviceTensor:
        return send(self._device, np.asarray(value))


def _is_own_order(value: Tensor, index: NDArray[np.integer]) -> bool:
    return index.ndim == 1 and np.array_equal(index, np.arange(value.shape[0]))
