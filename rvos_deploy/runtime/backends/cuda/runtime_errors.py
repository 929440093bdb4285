"""Clear the pending error of CUDA's runtime library.

A failed call leaves its error pending in the runtime, for this thread, until somebody asks for the
last error. The next check of another library (PyTorch's after every launch) would then report a
failure that was handled long ago. The driver keeps no such error.

Each copy of the runtime has an error of its own. Statically linked copies (TensorRT-RTX 1.7's and
cuda.bindings' are, as ``readelf`` shows) are beyond reach, and only their owners read them. Shared
copies are found by their names.
"""

from __future__ import annotations

import ctypes
import os

_SHARED_RUNTIMES = ("libcudart.so.12", "libcudart.so.13", "libcudart.so.14")


def clear_runtime_errors() -> list[int]:
    """Clear this thread's pending error in every shared CUDA runtime that the process has loaded.

    Returns:
        The cleared errors, one for each loaded runtime; 0 where none was pending.
    """
    loaded_only: int = getattr(os, "RTLD_NOLOAD", 0)  # Windows has no such flag
    if not loaded_only:
        return []
    cleared = []
    for name in _SHARED_RUNTIMES:
        try:
            runtime = ctypes.CDLL(name, mode=loaded_only | os.RTLD_LAZY)
        except OSError:
            continue
        cleared.append(int(runtime.cudaGetLastError()))
    return cleared
