"""Call the compiled kernel of deformable attention with NumPy arrays.

The library is optional: the installation builds it where a C++ compiler is (``setup.py``). Nothing
is compiled at run time. ``networks/modules/ms_deform_attn.py`` defines the operator.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import BackendError, InputError

INSTRUCTIONS = ("baseline", "AVX2", "AVX-512")
"""Instruction sets for which the library holds a kernel, the slowest first."""

BUILD_IT = "install a C++ compiler (Debian: apt-get install g++), then reinstall rvos-deploy"
NOT_BUILT = (
    "the CPU kernel of deformable attention was not built when rvos-deploy was installed; "
    f"{BUILD_IT}"
)

_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, np.dtype(np.float16): 2}
_BFLOAT16 = np.dtype(np.uint16)
_TYPES[_BFLOAT16] = 3
_RESULTS = {1: "there is no memory", 3: "this CPU lacks the instruction set"}


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "pixels", "queries", "heads", "channels", "levels", "points")
    ]

    @property
    def output(self) -> tuple[int, int, int]:
        """Shape of the output."""
        return self.batch, self.queries, self.heads * self.channels


@functools.cache
def _library() -> ctypes.CDLL | None:
    path = Path(__file__).with_name(f"ms_deform_attn_kernel{_SUFFIX}")
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def available() -> bool:
    """Return whether the library was built and loads."""
    return _library() is not None


def describe() -> str:
    """Say whether this machine has the kernel, and what follows if not: one line for people."""
    if available():
        return f"built, uses {instructions()}; OpenVINO and PyTorch call it"
    return f"not built, so the function body runs, more slowly; {BUILD_IT}"


def instructions() -> str:
    """Return the best of ``INSTRUCTIONS`` on this CPU. Raises BackendError: no library."""
    return INSTRUCTIONS[_require().rvos_instructions()]


class Inputs(NamedTuple):
    """The operator's inputs. NumPy has no bfloat16: uint16 stands for it.

    Args:
        value: [B,S,heads,D] in float32, float64, float16 or bfloat16.
        level_shapes: int32 [levels,2], (height, width); the areas sum to S.
        reference_points: float32 [Q,2] (float64 where ``value`` is), (x, y) in 0..1.
        sampling_offsets: [B,Q,heads,levels,points,2], (x, y) in pixels of the level, in the type of
            ``value``, or float32 where that is narrower.
        attention_logits: [B,Q,heads,levels*points], in the type of ``sampling_offsets``.
    """

    value: NDArray[Any]
    level_shapes: NDArray[np.int32]
    reference_points: NDArray[Any]
    sampling_offsets: NDArray[Any]
    attention_logits: NDArray[Any]


def ms_deform_attn(
    inputs: Inputs,
    out: NDArray[Any] | None = None,
    threads: int | None = None,
    use: str | None = None,
) -> NDArray[Any]:
    """Sum samples of every level around each query's reference point, with softmax weights.

    Arithmetic is float32 (float64 where ``value`` is).

    Args:
        inputs: see ``Inputs``.
        out: destination, as the result; None: a new array.
        threads: largest number of threads; None: one per usable core.
        use: one of ``INSTRUCTIONS``; None: the best of this CPU.

    Returns:
        [B,Q,heads*D], in the type of ``value``.

    Raises:
        BackendError: there is no library, or this CPU lacks the instruction set.
        InputError: shapes or types do not fit.
    """
    library = _require()
    sizes = _check(inputs)
    kind = inputs.value.dtype
    output = np.empty(sizes.output, kind) if out is None else out
    if output.shape != sizes.output or output.dtype != kind or not output.flags.c_contiguous:
        raise InputError(
            f"out is {output.dtype} {list(output.shape)}; it must be {kind} {list(sizes.output)}, "
            "contiguous"
        )
    given = Inputs(*map(np.ascontiguousarray, inputs))
    _raise_for(
        library.rvos_ms_deform_attn(
            ctypes.byref(sizes),
            _address(given.level_shapes),
            *_addresses(given),
            _address(output),
            _TYPES[kind],
            _TYPES[given.sampling_offsets.dtype],
            threads or usable_cores(),
            library.rvos_instructions() if use is None else INSTRUCTIONS.index(use),
        )
    )
    return output


def ms_deform_attn_backward(
    inputs: Inputs,
    grad_output: NDArray[Any],
    threads: int | None = None,
    use: str | None = None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the gradients of ``value``, ``sampling_offsets`` and ``attention_logits``.

    Args:
        inputs: see ``Inputs``; all arrays but ``level_shapes`` are float32, or all are float64.
        grad_output: [B,Q,heads*D], the gradient of the output.
        threads: as in ``ms_deform_attn``.
        use: as in ``ms_deform_attn``.

    Raises:
        BackendError: there is no library, or this CPU lacks the instruction set.
        InputError: shapes or types do not fit.
    """
    library = _require()
    sizes = _check(inputs)
    kind = inputs.value.dtype
    same = kind == inputs.sampling_offsets.dtype == grad_output.dtype
    if grad_output.shape != sizes.output or not same or kind.itemsize < 4:
        raise InputError(
            f"grad_output is {grad_output.dtype} {list(grad_output.shape)}; it must be "
            f"{list(sizes.output)}, and all arrays float32 or all float64"
        )
    given, grad = Inputs(*map(np.ascontiguousarray, inputs)), np.ascontiguousarray(grad_output)
    found = tuple(
        np.empty_like(array)
        for array in (given.value, given.sampling_offsets, given.attention_logits)
    )
    _raise_for(
        library.rvos_ms_deform_attn_backward(
            ctypes.byref(sizes),
            _address(given.level_shapes),
            *_addresses(given),
            _address(grad),
            *map(_address, found),
            _TYPES[kind],
            threads or usable_cores(),
            library.rvos_instructions() if use is None else INSTRUCTIONS.index(use),
        )
    )
    return found[0], found[1], found[2]


def sum_rows(inputs: Inputs, pixels: NDArray[np.int32], threads: int | None = None) -> NDArray[Any]:
    """Sum the rows of ``value`` at given pixels: a floor for ``ms_deform_attn`` in benchmarks.

    Args:
        inputs: float32, with a multiple of 16 channels; only ``value`` is read.
        pixels: int32 [B,Q,heads,4*levels*points], indices below S.
        threads: as in ``ms_deform_attn``.

    Returns:
        float32 [B,Q,heads*D].

    Raises:
        BackendError: there is no library.
        InputError: shapes, types or indices do not fit.
    """
    library = _require()
    sizes = _check(inputs)
    wanted = (*inputs.attention_logits.shape[:3], 4 * inputs.attention_logits.shape[3])
    if pixels.shape != wanted or pixels.dtype != np.int32 or sizes.channels % 16:
        raise InputError(
            f"pixels are {pixels.dtype} {list(pixels.shape)} with {sizes.channels} channels; they "
            f"must be int32 {list(wanted)}, with a multiple of 16 channels"
        )
    if inputs.value.dtype != np.float32 or pixels.min() < 0 or pixels.max() >= sizes.pixels:
        raise InputError(
            f"value is {inputs.value.dtype} and pixels reach {pixels.max()}; it must be float32, "
            f"with pixels from 0 to {sizes.pixels - 1}"
        )
    output = np.empty(sizes.output, np.float32)
    value, indices = np.ascontiguousarray(inputs.value), np.ascontiguousarray(pixels)
    _raise_for(
        library.rvos_sum_rows(
            ctypes.byref(sizes),
            _address(value),
            _address(indices),
            _address(output),
            threads or usable_cores(),
            library.rvos_instructions(),
        )
    )
    return output


def _require() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise BackendError(NOT_BUILT)
    return library


def _check(inputs: Inputs) -> _Sizes:
    """Return the sizes, and refuse arrays that the kernel would misread."""
    value, level_shapes, reference_points, sampling_offsets, attention_logits = inputs
    if value.ndim != 4 or sampling_offsets.ndim != 6:
        raise InputError(
            f"value has {value.ndim} axes and sampling_offsets {sampling_offsets.ndim}; they must "
            "have 4 and 6"
        )
    batch, pixels, heads, channels = value.shape
    queries, levels, points = (sampling_offsets.shape[axis] for axis in (1, 3, 4))
    found = [level_shapes, reference_points, sampling_offsets, attention_logits]
    wanted = [
        (levels, 2),
        (queries, 2),
        (batch, queries, heads, levels, points, 2),
        (batch, queries, heads, levels * points),
    ]
    if [array.shape for array in found] != wanted:
        raise InputError(
            f"shapes {[list(array.shape) for array in found]} do not fit value "
            f"{list(value.shape)}; they must be {[list(shape) for shape in wanted]}"
        )
    double = value.dtype == np.float64
    kinds = {value.dtype} if double else {value.dtype, np.dtype(np.float32)}
    if (
        value.dtype not in _TYPES
        or level_shapes.dtype != np.int32
        or reference_points.dtype != (np.float64 if double else np.float32)
        or sampling_offsets.dtype not in kinds
        or attention_logits.dtype != sampling_offsets.dtype
    ):
        types = [str(array.dtype) for array in (value, *found)]
        raise InputError(
            f"types {types} have no kernel; value is float32, float64, float16 or bfloat16 "
            "(uint16), level_shapes int32, reference_points float32, and the others as value or "
            "float32"
        )
    areas = level_shapes.astype(np.int64).prod(axis=1)
    if areas.sum() != pixels or (level_shapes < 1).any() or levels * points == 0:
        raise InputError(
            f"level_shapes {level_shapes.tolist()} have {areas.sum()} pixels, value has {pixels}; "
            "they must agree, with sides of at least 1 and at least one sample"
        )
    return _Sizes(batch, pixels, queries, heads, channels, levels, points)


def _addresses(inputs: Inputs) -> tuple[ctypes.c_void_p, ...]:
    """Return the addresses of all inputs but ``level_shapes``, in the order of the C interface."""
    value, _, *others = inputs
    return tuple(map(_address, (value, *others)))


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def _raise_for(result: int) -> None:
    if result:
        raise BackendError(f"deformable attention failed: {_RESULTS.get(result, result)}")
