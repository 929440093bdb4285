"""Upsample masks on the GPU: one bilinear step, a threshold, and packing to bits.

The masks equal ``frame_geometry.upsample_masks`` bit by bit: the weights are the same, computed by
the host once a geometry, and the kernel rounds where the host does. One bit a pixel is downloaded.

NOT RUN: it needs a GPU (see kernels.py).
"""

from __future__ import annotations

import math

import numpy as np

from rvos_deploy.graph_io.frame_geometry import FrameGeometry, upsample_weights
from rvos_deploy.graph_io.tensors import HostArray, Scalar
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.kernels import number, pointer
from rvos_deploy.runtime.backends.cuda.resample_weights import ResampleWeights
from rvos_deploy.runtime.backends.cuda.tensor import DeviceCopy, DeviceTensor, run_kernel


class MaskUpsampler:
    """Upsamples masks on one device; keeps the weights of a few geometries there."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._weights = ResampleWeights(device, upsample_weights)

    def upsample(self, logits: DeviceTensor, geometry: FrameGeometry) -> DeviceTensor:
        """Queue the masks of a frame.

        Args:
            logits: float32 [E, padded height/4, padded width/4].
            geometry: of the frame.

        Returns:
            Masks bool [E,H,W] on the GPU.

        Raises:
            BackendError: the kernels are not available (says why), or the GPU is out of memory.
        """
        shape = (logits.shape[0], *geometry.display)
        return self._launch("rvos_upsample_masks", logits, geometry, shape, np.dtype(np.bool_))

    def upsample_to_host(self, logits: DeviceTensor, geometry: FrameGeometry) -> PackedMasksCopy:
        """Queue the masks of :meth:`upsample`, packed, and their copy to the host.

        Raises:
            BackendError: as :meth:`upsample`.
        """
        height, width = geometry.display
        shape = (logits.shape[0], height, -(-width // 8))
        packed = self._launch("rvos_pack_masks", logits, geometry, shape, np.dtype(np.uint8))
        return PackedMasksCopy(DeviceCopy([packed]), width)

    def finite_maps(self, logits: DeviceTensor) -> FiniteMapsCopy:
        """Queue a check of logits float32 [E,h,w] for NaN and infinity, and the copy of its result.

        Raises:
            BackendError: as :meth:`upsample`.
        """
        device = self._device
        with device.lock, device.current():
            count, height, width = logits.shape
            arguments = [pointer(logits.address), number(count * height), number(width)]
            flags = run_kernel(
                device,
                "rvos_flag_rows",
                count * height,
                arguments,
                (count, height),
                np.dtype(np.uint8),
            )
            return FiniteMapsCopy(DeviceCopy([flags]))

    def _launch(
        self,
        kernel: str,
        logits: DeviceTensor,
        geometry: FrameGeometry,
        shape: tuple[int, ...],
        dtype: np.dtype[Scalar],
    ) -> DeviceTensor:
        """Queue a kernel that writes every byte of an output of this shape."""
        device = self._device
        with device.lock, device.current():
            count, map_height, map_width = logits.shape
            arguments = []
            if count:
                arguments = [
                    pointer(logits.address),
                    *map(number, (count, map_height, map_width)),
                    *self._weights.arguments((map_height, map_width), geometry),
                    *map(number, geometry.display),
                ]
            return run_kernel(device, kernel, math.prod(shape), arguments, shape, dtype)


class FiniteMapsCopy:
    """A queued copy of one flag a row of logits: whether the row holds NaN or infinity."""

    def __init__(self, copy: DeviceCopy) -> None:
        self._copy = copy

    def arrays(self) -> list[HostArray]:
        """Wait, and return one array, bool [E]: whether a map is finite. Call this once."""
        (flags,) = self._copy.arrays()
        return [np.asarray(~flags.any(axis=1))]


class PackedMasksCopy:
    """A queued copy of packed masks."""

    def __init__(self, copy: DeviceCopy, width: int) -> None:
        self._copy, self._width = copy, width

    def arrays(self) -> list[HostArray]:
        """Wait, and return one array, bool [E,H,W]. Call this once."""
        (packed,) = self._copy.arrays()
        return [np.unpackbits(packed.view(np.uint8), axis=-1, count=self._width).view(np.bool_)]
