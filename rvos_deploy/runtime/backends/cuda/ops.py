"""Do the work between the graphs on a GPU.

Without this package's kernels (NVRTC is missing, or the driver refuses the PTX) the host does it.

NOT RUN: it needs a GPU (see kernels.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.tensors import DType, HostCopy, Indices, Tensor, TensorOps
from rvos_deploy.runtime.backends.cuda import copies
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.foreign_arrays import from_dlpack, is_device_array
from rvos_deploy.runtime.backends.cuda.frames import FrameResizer
from rvos_deploy.runtime.backends.cuda.masks import MaskUpsampler
from rvos_deploy.runtime.backends.cuda.tensor import DeviceCopy, DeviceTensor, to_device
from rvos_deploy.runtime.backends.host_ops import HostOps


class CudaOps(TensorOps):
    """Tensor operations on one GPU. The host works on NumPy arrays."""

    def __init__(self, device: CudaDevice) -> None:
        self._device, self._host = device, HostOps()
        self._frames = self._masks = None
        if device.has_kernels():
            self._frames, self._masks = FrameResizer(device), MaskUpsampler(device)

    def from_dlpack(self, array: object) -> Tensor:
        """Return an array on this GPU without a copy, and an array on the host as a NumPy array."""
        if is_device_array(array):
            return from_dlpack(self._device, array)
        return self._host.from_dlpack(array)

    def preprocess(self, frame: Tensor, geometry: FrameGeometry) -> Tensor:
        """Resize and pad a frame where it is.

        Host frames are resized on the host, because that uploads fewer bytes.
        """
        if isinstance(frame, DeviceTensor):
            if geometry.content == geometry.padded == frame.shape[:2]:
                return frame.reshape(1, *frame.shape)
            if self._frames is not None:
                return self._frames.resize(frame, geometry)
        return self._host.preprocess(frame, geometry)

    def gather(self, value: Tensor, index: Indices) -> Tensor:
        """Return rows of a tensor in another order."""
        if not self._on_device(value) or _is_identity(value, index):
            return self._host.gather(value, index)
        assert isinstance(value, DeviceTensor)
        return copies.gather(value, index)

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """Return a new tensor of zeros."""
        if self._masks is None:
            return self._host.zeros(shape, dtype)
        return copies.zeros(self._device, shape, dtype)

    def write(self, target: Tensor, positions: Indices, values: Tensor) -> None:
        """Set one position of every row, by one copy on the GPU for each row."""
        if not isinstance(target, DeviceTensor):
            self._host.write(target, positions, values)
            return
        on_device = values if isinstance(values, DeviceTensor) else self._upload(values)
        copies.write(target, positions, on_device)

    def resized(self, value: Tensor, rows: Indices, columns: int) -> Tensor:
        """Return a new tensor that begins like rows of another."""
        if not self._on_device(value):
            return self._host.resized(value, rows, columns)
        assert isinstance(value, DeviceTensor)
        return copies.resized(value, rows, columns)

    def concatenate(self, values: Sequence[Tensor]) -> Tensor:
        """Return tensors as one tensor."""
        tensors = [value for value in values if isinstance(value, DeviceTensor)]
        if self._masks is None or len(tensors) < len(values):
            return self._host.concatenate(values)
        return copies.concatenate(tensors)

    def to_host(self, values: Sequence[Tensor]) -> HostCopy:
        """Queue the downloads; each starts as soon as its tensor is computed, and one wait covers
        all.
        """
        tensors = [value for value in values if isinstance(value, DeviceTensor)]
        if not tensors or len(tensors) < len(values):
            return self._host.to_host(values)
        return DeviceCopy(tensors)

    def upsample_masks(self, logits: Tensor, geometry: FrameGeometry) -> HostCopy:
        """Queue masks at the displayed size, packed on the GPU, and their download."""
        if self._masks is None or not isinstance(logits, DeviceTensor):
            return self._host.upsample_masks(logits, geometry)
        return self._masks.upsample_to_host(logits, geometry)

    def finite_maps(self, logits: Tensor) -> HostCopy:
        """Queue a check of logits on the GPU, and the download of one byte a row."""
        if self._masks is None or not isinstance(logits, DeviceTensor):
            return self._host.finite_maps(logits)
        return self._masks.finite_maps(logits)

    def require_device_masks(self) -> None:
        """Raise BackendError where the kernels could not be compiled or loaded; says why."""
        self._device.kernels()

    def upsample_masks_on_device(self, logits: Tensor, geometry: FrameGeometry) -> DeviceTensor:
        """Queue masks bool [E,H,W] on the GPU."""
        self.require_device_masks()
        assert self._masks is not None
        on_device = logits if isinstance(logits, DeviceTensor) else self._upload(logits)
        return self._masks.upsample(on_device, geometry)

    def _on_device(self, value: Tensor) -> bool:
        return self._masks is not None and isinstance(value, DeviceTensor)

    def _upload(self, value: Tensor) -> DeviceTensor:
        return to_device(self._device, np.asarray(value))


def _is_identity(value: Tensor, index: Indices) -> bool:
    return index.ndim == 1 and np.array_equal(index, np.arange(value.shape[0]))
