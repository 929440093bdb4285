"""Masks at the displayed size, made on the GPU: one bilinear step, thresholded, packed to bits.

The numbers are ``geometry.display_logits``'s, bit by bit: the same weights, of which the host makes
a table once a geometry, and the same roundings. An eighth of a byte a pixel comes down.

NOT RUN: it needs a GPU (see cuda_kernels.py).
"""

from __future__ import annotations

import math

import numpy as np

from rvos_deploy.graph_io.frame_geometry import FrameGeometry, display_taps
from rvos_deploy.runtime.backends.base import HostArray
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.kernels import number, pointer
from rvos_deploy.runtime.backends.cuda.resample_weights import TapTables
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, Fetch, compute


class MaskDisplay:
    """Displays masks on one device. A runner's own; keeps the tables of a few geometries there."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._tables = TapTables(device, display_taps)

    def show(self, logits: DeviceTensor, geometry: FrameGeometry) -> DeviceTensor:
        """Masks bool [E,H,W] on the device of logits float32 [E,h,w]; queued.

        Raises:
            BackendError: there are no kernels (says why), or memory is short.
        """
        shape = (logits.shape[0], *geometry.display)
        return self._launch("rvos_show_masks", logits, geometry, shape, np.dtype(np.bool_))

    def fetch(self, logits: DeviceTensor, geometry: FrameGeometry) -> PackedFetch:
        """The same masks on their way to the host, packed.

        Raises:
            BackendError: as :meth:`show`.
        """
        height, width = geometry.display
        shape = (logits.shape[0], height, -(-width // 8))
        packed = self._launch("rvos_pack_masks", logits, geometry, shape, np.dtype(np.uint8))
        return PackedFetch(Fetch([packed]), width)

    def finite(self, logits: DeviceTensor) -> FiniteFetch:
        """Whether each map of logits float32 [E,h,w] holds numbers, on its way to the host.

        Raises:
            BackendError: as :meth:`show`.
        """
        device = self._device
        with device.lock, device.current():
            count, height, width = logits.shape
            arguments = [pointer(logits.address), number(count * height), number(width)]
            flags = compute(
                device,
                "rvos_flag_rows",
                count * height,
                arguments,
                (count, height),
                np.dtype(np.uint8),
            )
            return FiniteFetch(Fetch([flags]))

    def _launch(
        self,
        kernel: str,
        logits: DeviceTensor,
        geometry: FrameGeometry,
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic],
    ) -> DeviceTensor:
        """Every byte of the output is a thread's."""
        device = self._device
        with device.lock, device.current():
            count, map_height, map_width = logits.shape
            arguments = []
            if count:
                arguments = [
                    pointer(logits.address),
                    *map(number, (count, map_height, map_width)),
                    *self._tables.arguments((map_height, map_width), geometry),
                    *map(number, geometry.display),
                ]
            return compute(device, kernel, math.prod(shape), arguments, shape, dtype)


class FiniteFetch:
    """Flags of rows that hold what is not a number, on their way to the host."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def arrays(self) -> list[HostArray]:
        """One array, bool [E]: whether a map holds none; waits. Once only."""
        (flags,) = self._fetch.arrays()
        return [np.asarray(~flags.any(axis=1))]


class PackedFetch:
    """Packed masks on their way to the host."""

    def __init__(self, fetch: Fetch, width: int) -> None:
        self._fetch, self._width = fetch, width

    def arrays(self) -> list[HostArray]:
        """One array, bool [E,H,W]; waits. Once only."""
        (packed,) = self._fetch.arrays()
        return [np.unpackbits(packed, axis=-1, count=self._width).view(np.bool_)]
