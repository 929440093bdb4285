"""Tables of Pillow's weights on the GPU: made by the host once a geometry, and sent once.

NOT RUN: it needs a GPU (see cuda_kernels.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, ParamSpec

from rvos_deploy.graph_io.resampling import Taps
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.kernels import Argument, number, pointer
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, send

_KEPT = 8
"""Geometries whose tables stay on the device: a stream has one, threads may have several."""

Sizes = ParamSpec("Sizes")


class TapTables(Generic[Sizes]):
    """Tables of rows and columns, of the geometries asked for last.

    Args:
        device: where they lie.
        make: the rows' taps and the columns', from what may stand in a key.
    """

    def __init__(self, device: CudaDevice, make: Callable[Sizes, tuple[Taps, Taps]]) -> None:
        self._device, self._make = device, make
        self._kept: OrderedDict[object, tuple[_Table, _Table]] = OrderedDict()

    def arguments(self, *sizes: Sizes.args, **named: Sizes.kwargs) -> list[Argument]:
        """The tables as kernels take them, rows first; hold the device's lock.

        Raises:
            BackendError: the device's memory is short.
        """
        key = (sizes, *named.items())
        if key not in self._kept:
            rows, columns = self._make(*sizes, **named)
            self._kept[key] = _Table.of(self._device, rows), _Table.of(self._device, columns)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return [argument for table in self._kept[key] for argument in table.arguments()]


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
        pointers = [pointer(x.address) for x in (self.first, self.count, self.weights)]
        return [*pointers, number(self.weights.shape[1])]
