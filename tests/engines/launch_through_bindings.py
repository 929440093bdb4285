"""Run by a test in a process of its own: the plugin's launch through the real cuda.bindings."""

from __future__ import annotations

import ctypes

import numpy as np

from rvos_deploy.engines.plugins.ms_deform_attn import launch
from rvos_deploy.engines.plugins.ms_deform_attn.spec import TACTICS, LayerSizes

KINDS = ("contexts", "streams", "events", "device memory", "pinned memory", "modules")

# NVRTC looks for the driver too, and falls over ours.
launch.compile_ptx = lambda spec: "the PTX"  # type: ignore[assignment]
launch.device_arch = lambda: 86
batch, pixels, queries, heads, width, levels, points = 3, 50, 70, 8, 32, 2, 4
arrays = (
    np.full((batch, pixels, heads, width), 1.5, np.float32),
    np.array([[5, 8], [5, 2]], np.int32),
    np.full((queries, 2), 0.25, np.float32),
    np.full((batch, queries, heads, levels, points, 2), 3.5, np.float32),
    np.full((batch, queries, heads, levels * points), 4.5, np.float32),
)
with launch.primary_context():
    for _ in range(2):
        output = launch.run_on_device(("fp32", "fp32", "fp32"), arrays, TACTICS[1])
    # Addresses of this driver are those of the host.
    elsewhere = np.zeros(14, np.float32)
    launch.launch(
        ("fp32", "fp32", "fp32"),
        launch.Sizes(batch, pixels, queries, LayerSizes(heads, width, levels, points)),
        tuple(array.ctypes.data for array in arrays),
        elsewhere.ctypes.data,
        TACTICS[1],
        stream=0x77,
    )
assert (output.shape, output.dtype) == ((batch, queries, heads * width), np.float32)
found = output.ravel()[:16]
assert output.ravel()[13] == 0, "the default stream"
assert elsewhere[13] == 0x77, "the stream that is named"
# 64 threads: 8 of a row, 8 queries.
sizes = [pixels, queries, -(-queries // 8), heads, batch, 8, 8, 1]
assert found[5:13].tolist() == sizes, found
first = arrays[1].view(np.float32).ravel()[0]
assert found[:5].tolist() == [1.5, first, 0.25, 3.5, 4.5], found
library = ctypes.CDLL("libcuda.so.1")
living = {kind: library.rvos_living(number) for number, kind in enumerate(KINDS)}
assert not any(living.values()), living
print("the launch has its arguments")
