"""Run by a test in a process of its own: our launches through the real cuda.bindings."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
from cuda.bindings import driver
from kernel_cases import table_arguments

from rvos_deploy.graph_io.frame_geometry import (
    PADDING,
    letterbox,
    resize_frame,
    resize_weights,
    upsample_masks,
    upsample_weights,
)
from rvos_deploy.runtime.backends.cuda import kernels as cuda_kernels
from rvos_deploy.runtime.backends.cuda import nvrtc
from rvos_deploy.runtime.backends.cuda.driver_calls import call
from rvos_deploy.runtime.backends.cuda.kernels import Kernels, number, pointer

STREAM = 0x77  # what host_driver.cpp wants to see

# NVRTC looks for the driver too, and falls over ours: the PTX was made before.
PTX = Path(sys.argv[1]).read_text()
nvrtc.newest_arch = lambda capability: capability
cuda_kernels.kernel_ptx = lambda arch: PTX  # type: ignore[assignment]

call(driver, "cuInit", 0)
kernels = Kernels(driver, "8.9")
geometry = letterbox((101, 143), (96, 160))
logits = np.random.default_rng(0).standard_normal((3, 24, geometry.padded[1] // 4))
logits = logits.astype(np.float32)
truth = upsample_masks(logits, geometry)
tables = upsample_weights((24, logits.shape[2]), geometry)
for name, shape in {"rvos_pack_masks": (3, 101, 18), "rvos_upsample_masks": truth.shape}.items():
    output = np.zeros(shape, np.uint8)
    arguments = [pointer(logits.ctypes.data), *map(number, logits.shape), *table_arguments(tables)]
    arguments += [*map(number, geometry.display), pointer(output.ctypes.data)]
    kernels.launch(name, output.size, arguments, STREAM)
    found = np.unpackbits(output, axis=-1, count=143) if "pack" in name else output
    assert (found == truth).all(), name
rows = np.zeros((5, 7), np.float32)
rows[1, 6], rows[2, 0], rows[3, 3] = np.nan, np.inf, -np.inf
output = np.full(5, 9, np.uint8)
arguments = [pointer(rows.ctypes.data), number(5), number(7), pointer(output.ctypes.data)]
kernels.launch("rvos_flag_rows", 5, arguments, STREAM)
assert output.tolist() == [0, 1, 1, 0, 0]
frame = np.random.default_rng(1).integers(0, 256, (101, 143, 3), dtype=np.uint8)
output = np.zeros((1, *geometry.padded, 3), np.uint8)
tables = resize_weights(geometry)
arguments = [pointer(frame.ctypes.data), number(143), *table_arguments(tables)]
colour = int.from_bytes(bytes(PADDING), "big")
arguments += map(number, (*geometry.content, *geometry.padded, colour))
arguments.append(pointer(output.ctypes.data))
kernels.launch("rvos_preprocess", output.size // 3, arguments, STREAM)
assert (output == resize_frame(frame, geometry)).all()
for name, word in {"rvos_copy_vectors": 16, "rvos_copy_bytes": 1}.items():
    # NumPy's memory begins at multiples of 16 bytes.
    pieces = [np.arange(48, dtype=np.uint8) + number for number in range(3)]
    table = np.array([pieces[2].ctypes.data, 0, pieces[0].ctypes.data], np.uint64)
    output = np.full(3 * 48, 9, np.uint8)
    words = 48 // word
    kernels.launch(
        name,
        3 * words,
        [
            pointer(table.ctypes.data),
            (words, ctypes.c_longlong),
            (3 * words, ctypes.c_longlong),
            pointer(output.ctypes.data),
        ],
        STREAM,
    )
    assert (output == np.concatenate([pieces[2], np.zeros(48, np.uint8), pieces[0]])).all(), name
kernels.free()
print("arguments arrived")
