"""Run by a test in a process of its own: our launches through the real cuda.bindings."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
from cuda.bindings import driver

from rvos_deploy.runtime.backends import cuda_kernels, nvrtc
from rvos_deploy.runtime.backends.cuda_kernels import Kernels
from rvos_deploy.runtime.backends.cuda_libraries import call
from rvos_deploy.runtime.geometry import display_masks, display_taps, fit_frame

STREAM = 0x77  # what host_driver.cpp wants to see

# NVRTC looks for the driver too, and falls over ours: the PTX was made before.
PTX = Path(sys.argv[1]).read_text()
nvrtc.newest_arch = lambda capability: capability
cuda_kernels.kernel_ptx = lambda arch: PTX  # type: ignore[assignment]

call(driver, "cuInit", 0)
kernels = Kernels(driver, "8.9")
geometry = fit_frame((101, 143), (96, 160))
logits = np.random.default_rng(0).standard_normal((3, 24, geometry.padded[1] // 4))
logits = logits.astype(np.float32)
truth = display_masks(logits, geometry)
tables = display_taps((24, logits.shape[2]), geometry)
for name, shape in {"rvos_pack_masks": (3, 101, 18), "rvos_show_masks": truth.shape}.items():
    output = np.zeros(shape, np.uint8)
    arguments: list = [(logits.ctypes.data, ctypes.c_void_p)]
    arguments += [(size, ctypes.c_int) for size in logits.shape]
    for taps in tables:
        for array in (taps.first, taps.count, taps.weights):
            arguments.append((array.ctypes.data, ctypes.c_void_p))
        arguments.append((taps.weights.shape[1], ctypes.c_int))
    arguments += [(size, ctypes.c_int) for size in geometry.display]
    arguments.append((output.ctypes.data, ctypes.c_void_p))
    kernels.launch(name, output.size, arguments, STREAM)
    found = np.unpackbits(output, axis=-1, count=143) if "pack" in name else output
    assert (found == truth).all(), name
for name, word in {"rvos_stack_vectors": 16, "rvos_stack_bytes": 1}.items():
    # NumPy's memory begins at multiples of 16 bytes.
    pieces = [np.arange(48, dtype=np.uint8) + number for number in range(3)]
    table = np.array([pieces[2].ctypes.data, 0, pieces[0].ctypes.data], np.uint64)
    output = np.full(3 * 48, 9, np.uint8)
    words = 48 // word
    kernels.launch(
        name,
        3 * words,
        [
            (table.ctypes.data, ctypes.c_void_p),
            (words, ctypes.c_longlong),
            (3 * words, ctypes.c_longlong),
            (output.ctypes.data, ctypes.c_void_p),
        ],
        STREAM,
    )
    assert (output == np.concatenate([pieces[2], np.zeros(48, np.uint8), pieces[0]])).all(), name
kernels.free()
print("arguments arrived")
