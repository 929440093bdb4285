"""Run the plugin's kernel on the CPU: g++ compiles the same source, which is called with NumPy
arrays.

For tests only: it shows what the kernel computes without a GPU, several hundred times slower. bf16
arrays are ``uint16`` arrays of the bits, because NumPy has no bf16.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.engines.plugins.ms_deform_attn.compile import SOURCE, include_folders
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    TACTICS,
    DType,
    PluginError,
    Tactic,
    block_shape,
    check_types,
    grid_shape,
)

HOST_HEADERS = ("cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h", "nv/target")
_HERE = SOURCE.parent
_FILES = ("kernel.cu", "host.cpp", "host_shim.h")
# Without contraction and reassociation the host keeps the kernel's fmaf and its order of sums.
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing")
_MOST_SAMPLES = 128
"""The room of ``RVOS_ROOM`` in kernel.cu."""
_TYPES: dict[np.dtype[np.generic], DType] = {
    np.dtype(np.float32): "fp32",
    np.dtype(np.float16): "fp16",
    np.dtype(np.uint16): "bf16",
}


class _Sizes(ctypes.Structure):
    """``Sizes`` of host.cpp."""

    _fields_: ClassVar = [(n, ctypes.c_int) for n in ("heads", "head_width", "levels", "points")]


class _Launch(ctypes.Structure):
    """``Launch`` of host.cpp."""

    _fields_: ClassVar = [("grid", ctypes.c_int * 3), ("block", ctypes.c_int * 2)]


def to_bf16(numbers: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Round to the nearest bf16, ties to even, and return the bits. NaN is not supported."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the exact float32 numbers of bf16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def host_ms_deform_attn(
    value: NDArray[np.generic],
    level_shapes: NDArray[np.int32],
    reference_points: NDArray[np.float32],
    sampling_offsets: NDArray[np.generic],
    attention_logits: NDArray[np.generic],
    tactic: Tactic = TACTICS[1],
) -> NDArray[np.generic]:
    """Run the kernel warp by warp, with the grid and the blocks that the plugin launches.

    Shapes are those of ``networks/modules/ms_deform_attn.py: ms_deform_attn``; types are fp32, fp16
    or bf16 (as ``uint16``).

    Returns:
        [B,Q,heads*D] in the type of ``value``.

    Raises:
        PluginError: there is no kernel for these types or this head width, no compiler, or no CUDA
            headers.
    """
    batch, pixels, heads, head_width = value.shape
    queries, _, levels, points, _ = sampling_offsets.shape[1:]
    kinds = tuple(_TYPES[a.dtype] for a in (value, sampling_offsets, attention_logits))
    check_types(*kinds)
    block = block_shape(kinds[0], head_width, tactic)
    if levels * points > _MOST_SAMPLES:
        raise PluginError(
            f"the host build got {levels * points} points of a head; it has room for "
            f"{_MOST_SAMPLES}: use fewer levels or points"
        )
    output = np.empty((batch, queries, heads * head_width), value.dtype)
    arrays = [
        np.ascontiguousarray(array)
        for array in (
            value,
            level_shapes.astype(np.int32, copy=False),
            reference_points.astype(np.float32, copy=False),
            sampling_offsets,
            attention_logits,
        )
    ]
    launch = _Launch(grid_shape(batch, queries, heads, block[1]), block)
    getattr(_library(tactic.vectors), f"rvos_{'_'.join(kinds)}")(
        *(ctypes.c_void_p(array.ctypes.data) for array in arrays),
        *(pixels, queries),
        ctypes.c_void_p(output.ctypes.data),
        ctypes.byref(_Sizes(heads, head_width, levels, points)),
        ctypes.byref(launch),
    )
    return output


@functools.cache
def _library(vectors: int) -> ctypes.CDLL:
    """Compile the sources once per process, into a temporary folder."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise PluginError(
            "neither g++ nor clang++ is there, and the host build of the kernel needs one; install "
            "a C++ compiler"
        )
    includes = [f"-I{folder}" for folder in include_folders(HOST_HEADERS)]
    options = [*_FLAGS, f"-DRVOS_VECTORS={vectors}", *includes]
    digest = hashlib.sha256(repr((compiler, options)).encode())
    for name in _FILES:
        digest.update((_HERE / name).read_bytes())
    with tempfile.TemporaryDirectory(prefix=f"rvos-{digest.hexdigest()[:8]}-") as folder:
        library = Path(folder) / "ms_deform_attn.so"
        command = [compiler, *options, str(_HERE / "host.cpp"), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise PluginError(
                f"{Path(compiler).name} could not build {_HERE / 'host.cpp'} "
                f"({(errors or ['no message'])[0]}); the CUDA headers must be of CUDA 13: "
                "pip install 'rvos-deploy[dev]'"
            )
        return ctypes.CDLL(str(library))  # stays mapped after its file is gone
