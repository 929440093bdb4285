"""Masks at the displayed size, made on the GPU: one bilinear step, thresholded, packed to bits.

The numbers are ``geometry.display_logits``'s, bit by bit: the same weights, of which the host makes
a table once a geometry, and the same roundings. An eighth of a byte a pixel comes down.

NOT RUN: it needs a GPU (see cuda_kernels.py).
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from rvos_deploy.runtime.backends.base import HostArray
from rvos_deploy.runtime.backends.cuda_device import CudaDevice
from rvos_deploy.runtime.backends.cuda_kernels import Argument
from rvos_deploy.runtime.backends.device_tensor import DeviceTensor, Fetch, send
from rvos_deploy.runtime.geometry import FrameGeometry, display_taps
from rvos_deploy.runtime.resampling import Taps

_KEPT = 8
"""Geometries whose tables stay on the device: a stream has one, threads may have several."""


class MaskDisplay:
    """Displays masks on one device. A runner's own; keeps the tables of a few geometries there."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._tables: OrderedDict[tuple[tuple[int, int], FrameGeometry], _Tables] = OrderedDict()

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
        kernels = device.kernels()
        with device.lock, device.current():
            count, map_height, map_width = logits.shape
            nbytes = int(np.prod(shape))
            room = device.allocate(max(1, nbytes))
            if nbytes:
                tables = self._tables_of((map_height, map_width), geometry)
                arguments = [
                    _pointer(logits.address),
                    *map(_number, (count, map_height, map_width)),
                    *tables.rows.arguments(),
                    *tables.columns.arguments(),
                    *map(_number, geometry.display),
                    _pointer(room.address),
                ]
                kernels.launch(kernel, nbytes, arguments, int(device.compute.handle))
            return DeviceTensor(device, shape, dtype, room, device.event(device.compute))

    def _tables_of(self, logits: tuple[int, int], geometry: FrameGeometry) -> _Tables:
        key = (logits, geometry)
        if key not in self._tables:
            rows, columns = display_taps(logits, geometry)
            sent = _Tables(_Table.of(self._device, rows), _Table.of(self._device, columns))
            self._tables[key] = sent
            if len(self._tables) > _KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]


class PackedFetch:
    """Packed masks on their way to the host."""

    def __init__(self, fetch: Fetch, width: int) -> None:
        self._fetch, self._width = fetch, width

    def arrays(self) -> list[HostArray]:
        """One array, bool [E,H,W]; waits. Once only."""
        (packed,) = self._fetch.arrays()
        return [np.unpackbits(packed, axis=-1, count=self._width).view(np.bool_)]


@dataclass(frozen=True)
class _Table:
    """Taps of an axis on the device."""

    first: DeviceTensor
    count: DeviceTensor
    weights: DeviceTensor

    @staticmethod
    def of(device: CudaDevice, taps: Taps) -> _Table:
        return _Table(*(send(device, x) for x in (taps.first, taps.count, taps.weights)))

    def arguments(self) -> list[Argument]:
        """As the kernels take them."""
        pointers = [_pointer(x.address) for x in (self.first, self.count, self.weights)]
        return [*pointers, _number(self.weights.shape[1])]


@dataclass(frozen=True)
class _Tables:
    rows: _Table
    columns: _Table


def _pointer(address: int) -> Argument:
    return address, ctypes.c_void_p


def _number(number: int) -> Argument:
    return number, ctypes.c_int
