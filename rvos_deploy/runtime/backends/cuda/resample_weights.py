"""Keep Pillow's resampling weights on the GPU; the host computes and uploads them once a geometry.

NOT RUN: it needs a GPU (see kernels.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, ParamSpec

from rvos_deploy.graph_io.resampling import AxisWeights
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.kernels import Argument, number, pointer
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, to_device

_KEPT = 8
"""Geometries whose weights stay on the GPU. A stream has one geometry, several threads have
several.
"""

Sizes = ParamSpec("Sizes")


class ResampleWeights(Generic[Sizes]):
    """Weights of rows and columns for the geometries that were used last.

    Args:
        device: where the weights are kept.
        make: computes the weights of the rows and of the columns; its arguments must be hashable.
    """

    def __init__(
        self, device: CudaDevice, make: Callable[Sizes, tuple[AxisWeights, AxisWeights]]
    ) -> None:
        self._device, self._make = device, make
        self._kept: OrderedDict[object, tuple[_OnDevice, _OnDevice]] = OrderedDict()

    def arguments(self, *sizes: Sizes.args, **named: Sizes.kwargs) -> list[Argument]:
        """Return the weights as kernel arguments, rows first. Hold the device's lock.

        Raises:
            BackendError: the GPU is out of memory.
        """
        key = (sizes, *named.items())
        if key not in self._kept:
            rows, columns = self._make(*sizes, **named)
            device = self._device
            self._kept[key] = (
                _OnDevice.of(device, rows),
                _OnDevice.of(device, columns),
            )
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return [argument for weights in self._kept[key] for argument in weights.arguments()]


@dataclass(frozen=True)
class _OnDevice:
    """Weights along one axis, on the GPU."""

    first: DeviceTensor
    count: DeviceTensor
    weights: DeviceTensor

    @staticmethod
    def of(device: CudaDevice, host: AxisWeights) -> _OnDevice:
        return _OnDevice(*(to_device(device, x) for x in (host.first, host.count, host.weights)))

    def arguments(self) -> list[Argument]:
        """Return the kernel arguments."""
        pointers = [pointer(x.address) for x in (self.first, self.count, self.weights)]
        return [*pointers, number(self.weights.shape[1])]
