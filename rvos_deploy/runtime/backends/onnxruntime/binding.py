"""ONNX Runtime's I/O binding: what a graph gives stays where it was computed.

Run by the tests on the CPU, where binding changes nothing but the way. On a GPU: NOT RUN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rvos_deploy.graph_io.graph_spec import TensorSpec
from rvos_deploy.runtime.backends.base import Value
from rvos_deploy.runtime.backends.onnxruntime.device_arrays import BorrowedArray


class OrtTensor:
    """A tensor in ONNX Runtime's memory: the next graph's input, or ``numpy.asarray`` of it."""

    def __init__(self, value: Any, dtype: str) -> None:
        """``value``: an ``onnxruntime.OrtValue``."""
        self.value, self.dtype = value, np.dtype(dtype)
        self.shape: tuple[int, ...] = tuple(value.shape())

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        array: NDArray[Any] = self.value.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        where = self.value.device_name()
        return f"OrtTensor(shape={self.shape}, dtype={self.dtype}, on={where})"


def run_bound(
    session: Any, device: str, inputs: Mapping[str, Value], outputs: Sequence[TensorSpec]
) -> dict[str, Value]:
    """Run a session with inputs and outputs on its device.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        device: ``cuda`` or ``cpu``, as ONNX Runtime names it.
        inputs: NumPy arrays, which are copied there; :class:`OrtTensor` and arrays of other
            libraries on that device (:class:`BorrowedArray`), which are not.
        outputs: contracts of those wanted.

    Returns:
        An :class:`OrtTensor` by name.
    """
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, array in inputs.items():
        if isinstance(array, BorrowedArray):
            binding.bind_input(name, device, 0, array.dtype, list(array.shape), array.address)
            continue
        value = array.value if isinstance(array, OrtTensor) else None
        if value is None:
            value = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
        binding.bind_ortvalue_input(name, value)
    for tensor in outputs:
        binding.bind_output(tensor.name, device, 0)
    session.run_with_iobinding(binding)
    found = binding.get_outputs()
    return {
        tensor.name: OrtTensor(value, tensor.dtype)
        for tensor, value in zip(outputs, found, strict=True)
    }
