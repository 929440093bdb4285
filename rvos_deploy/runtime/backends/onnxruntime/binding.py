"""Bind inputs and outputs of ONNX Runtime on the device, so that outputs stay where they are
computed.

The tests run this on the CPU, where the calls are the same and the memory is the host's. NOT RUN on
a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rvos_deploy.graph_io.graph_spec import TensorSpec
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.onnxruntime.device_arrays import CudaArray


class OrtTensor:
    """A tensor in ONNX Runtime's memory. The next graph reads it there; ``numpy.asarray`` copies
    it.
    """

    def __init__(self, value: Any, dtype: str) -> None:
        """Wrap an ``onnxruntime.OrtValue``; ``dtype`` is its type in NumPy's terms."""
        self.value, self.dtype = value, np.dtype(dtype)
        self.shape: tuple[int, ...] = tuple(value.shape())

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        array: NDArray[Any] = self.value.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        where = self.value.device_name()
        return f"OrtTensor(shape={self.shape}, dtype={self.dtype}, on={where})"


def run_bound(
    session: Any,
    place: tuple[str, int],
    inputs: Mapping[str, Tensor],
    outputs: Sequence[TensorSpec],
) -> dict[str, Tensor]:
    """Run a session with inputs and outputs on its device.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        place: ``cuda`` or ``cpu``, as ONNX Runtime names it, and the number of the device.
        inputs: by name. NumPy arrays are copied to the device; an :class:`OrtTensor` and a
            :class:`CudaArray` are there already.
        outputs: contracts of the outputs to compute.

    Returns:
        An :class:`OrtTensor` by name.
    """
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, array in inputs.items():
        if isinstance(array, CudaArray):
            binding.bind_input(name, *place, array.dtype, list(array.shape), array.address)
            continue
        value = array.value if isinstance(array, OrtTensor) else None
        if value is None:
            value = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *place)
        binding.bind_ortvalue_input(name, value)
    for tensor in outputs:
        binding.bind_output(tensor.name, *place)
    session.run_with_iobinding(binding)
    found = binding.get_outputs()
    return {
        tensor.name: OrtTensor(value, tensor.dtype)
        for tensor, value in zip(outputs, found, strict=True)
    }
