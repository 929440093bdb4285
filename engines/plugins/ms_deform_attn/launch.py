"""Launch the plugin's PTX from Python on arrays that are on the GPU already.

NOT RUN: the development machine has no GPU. For tests and the benchmark; an engine launches the
kernel itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.engines.plugins.ms_deform_attn.compile import compile_ptx, device_arch
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    KERNEL_NAME,
    DType,
    KernelSpec,
    Tactic,
    block_shape,
)
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.libraries import import_cuda


@dataclass(frozen=True)
class Sizes:
    """The sizes of the inputs' axes, as in ``ms_deform_attn``."""

    batch: int
    pixels: int
    queries: int
    heads: int
    head_width: int
    levels: int
    points: int


@contextmanager
def primary_context(ordinal: int = 0) -> Iterator[None]:
    """Make the device's primary context, which PyTorch uses too, current for a block. NOT RUN.

    Raises:
        BackendError: pycuda or cuda-bindings is missing, or there is no such GPU.
    """
    # The device knows how to release a context that is current (``CudaDevice._release_context``).
    device = acquire_device(import_cuda(), ordinal)
    try:
        with device.current():
            try:
                yield
            finally:
                _kernel.cache_clear()  # the functions belong to a context that may be destroyed
    finally:
        device.release()


def launch(
    types: tuple[DType, DType, DType],
    sizes: Sizes,
    pointers: tuple[int, ...],
    output: int,
    tactic: Tactic,
) -> None:
    """Queue the kernel on the default stream. NOT RUN.

    Args:
        types: of values and output, sampling offsets, attention logits.
        sizes: of the inputs.
        pointers: device addresses of values, level shapes, reference points, offsets and logits.
        output: device address of [B,Q,heads*D].
        tactic: how to compile and launch.
    """
    block_x, block_y = block_shape(types[0], sizes.head_width, tactic)
    scalars = (sizes.pixels, sizes.queries, sizes.heads, sizes.levels, sizes.points)
    _kernel(types, tactic)(
        *map(np.uint64, pointers),
        *map(np.int32, scalars),
        np.uint64(output),
        block=(block_x, block_y, 1),
        grid=(-(-sizes.queries * sizes.heads // block_y), sizes.batch, 1),
    )


@functools.cache
def _kernel(types: tuple[DType, DType, DType], tactic: Tactic) -> Any:
    import pycuda.driver as cuda

    spec = KernelSpec(device_arch(), *types, tactic=tactic)
    return cuda.module_from_buffer(compile_ptx(spec).encode()).get_function(KERNEL_NAME)


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
    import pycuda.driver as cuda

    batch, pixels, heads, head_width = arrays[0].shape
    queries, _, levels, points, _ = arrays[3].shape[1:]
    sizes = Sizes(batch, pixels, queries, heads, head_width, levels, points)
    inputs = [cuda.to_device(np.ascontiguousarray(array)) for array in arrays]
    output = np.empty((batch, queries, heads * head_width), arrays[0].dtype)
    device_output = cuda.mem_alloc(output.nbytes)
    launch(types, sizes, tuple(map(int, inputs)), int(device_output), tactic)
    cuda.memcpy_dtoh(output, device_output)
    return output
