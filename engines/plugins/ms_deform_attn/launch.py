"""Launch the plugin's PTX from Python on arrays that are on the GPU already.

NOT RUN: the development machine has no GPU. For tests and the benchmark; an engine launches the
kernel itself. The tests call it with the real cuda.bindings over a C library for a driver.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.engines.plugins.ms_deform_attn.compile import compile_ptx, device_arch
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    KERNEL_NAME,
    DType,
    KernelSpec,
    LayerSizes,
    Tactic,
    block_shape,
    check_value_bytes,
    grid_shape,
)
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.driver_calls import Handle, call
from rvos_deploy.runtime.backends.cuda.libraries import import_cuda
from rvos_deploy.runtime.backends.cuda.tensor import to_device

_DEFAULT_STREAM = 0
_ARGUMENTS = (*[ctypes.c_void_p] * 5, *[ctypes.c_int] * 2, ctypes.c_void_p)
"""Of the kernel: five inputs, pixels and queries, the output."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the inputs' axes, as in ``ms_deform_attn``."""

    batch: int
    pixels: int
    queries: int
    layer: LayerSizes


@dataclass(frozen=True)
class _Kernel:
    bindings: ModuleType
    module: Handle
    function: Handle


_kernels: dict[tuple[tuple[DType, DType, DType], LayerSizes, Tactic], _Kernel] = {}
"""The kernels that were loaded into the context of :func:`primary_context`."""


@contextmanager
def primary_context(ordinal: int = 0) -> Iterator[None]:
    """Make the device's primary context, which PyTorch uses too, current for a block. NOT RUN.

    Raises:
        BackendError: cuda-bindings is missing, or there is no such GPU.
    """
    # The device knows how to release a context that is current (``CudaDevice._release_context``).
    device = acquire_device(import_cuda(), ordinal)
    try:
        with device.current():
            try:
                yield
            finally:
                while _kernels:
                    call(device.bindings, "cuModuleUnload", _kernels.popitem()[1].module)
    finally:
        device.release()


def launch(
    types: tuple[DType, DType, DType],
    sizes: Sizes,
    pointers: tuple[int, ...],
    output: int,
    tactic: Tactic,
    *,
    stream: int = _DEFAULT_STREAM,
) -> None:
    """Queue the kernel on a stream, within :func:`primary_context`. NOT RUN.

    Args:
        types: of values and output, sampling offsets, attention logits.
        sizes: of the inputs.
        pointers: device addresses of values, level shapes, reference points, offsets and logits.
        output: device address of [B,Q,heads*D].
        tactic: how to compile and launch.
        stream: the handle of a stream; nothing on the default one can be captured.
    """
    layer = sizes.layer
    check_value_bytes(types[0], sizes.pixels, layer)
    block_x, block_y = block_shape(types[0], layer.head_width, tactic)
    kernel = _kernels.get((types, layer, tactic)) or _load(types, layer, tactic)
    call(
        kernel.bindings,
        "cuLaunchKernel",
        kernel.function,
        *grid_shape(sizes.batch, sizes.queries, layer.heads, block_y),
        *(block_x, block_y, 1),
        0,
        kernel.bindings.CUstream(stream),
        ((*pointers, sizes.pixels, sizes.queries, output), _ARGUMENTS),
        0,
    )


def _load(types: tuple[DType, DType, DType], layer: LayerSizes, tactic: Tactic) -> _Kernel:
    bindings = import_cuda().bindings
    ptx = compile_ptx(KernelSpec(device_arch(), *types, layer, tactic))
    # The driver reads the PTX up to the first zero byte.
    module = call(bindings, "cuModuleLoadData", ptx.encode() + b"\0")
    function = call(bindings, "cuModuleGetFunction", module, KERNEL_NAME.encode())
    kernel = _kernels[types, layer, tactic] = _Kernel(bindings, module, function)
    return kernel


def run_on_device(
    types: tuple[DType, DType, DType], arrays: tuple[NDArray[Any], ...], tactic: Tactic
) -> NDArray[Any]:
    """Copy NumPy arrays to the GPU, run, and copy the output back, within ``primary_context``. NOT
    RUN.

    Args:
        types: of values and output, sampling offsets, attention logits.
        arrays: the five inputs; bf16 as ``uint16`` of its bits.
        tactic: how to compile and launch.

    Returns:
        [B,Q,heads*D] in the type of the values.
    """
    batch, pixels, heads, head_width = arrays[0].shape
    queries, _, levels, points, _ = arrays[3].shape[1:]
    sizes = Sizes(batch, pixels, queries, LayerSizes(heads, head_width, levels, points))
    device = acquire_device(import_cuda())
    try:
        inputs = [to_device(device, np.ascontiguousarray(array)) for array in arrays]
        shape = (batch, queries, heads * head_width)
        output = to_device(device, np.zeros(shape, arrays[0].dtype))
        launch(types, sizes, tuple(t.address for t in inputs), output.address, tactic)
        stream = device.bindings.CUstream(_DEFAULT_STREAM)
        call(device.bindings, "cuStreamSynchronize", stream)
        return np.asarray(output)
    finally:
        device.release()
