"""Resize and pad frames on the GPU.

The output equals ``frame_geometry.resize_frame`` byte by byte. The kernel uses Pillow's fixed-point
weights, which the host computes once a geometry, and resizes columns before rows.

NOT RUN: it needs a GPU (see kernels.py).
"""

from __future__ import annotations

import math

import numpy as np

from rvos_deploy.graph_io.frame_geometry import PADDING, FrameGeometry, resize_weights
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.kernels import number, pointer
from rvos_deploy.runtime.backends.cuda.resample_weights import ResampleWeights
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, run_kernel

_COLOUR = PADDING[0] << 16 | PADDING[1] << 8 | PADDING[2]


class FrameResizer:
    """Resizes frames on one device; keeps the weights of a few geometries there."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._weights = ResampleWeights(device, resize_weights)

    def resize(self, frame: DeviceTensor, geometry: FrameGeometry) -> DeviceTensor:
        """Queue the resizing and padding of a frame.

        Args:
            frame: uint8 [H,W,3].
            geometry: of the frame.

        Returns:
            Network input, uint8 [1, padded height, padded width, 3].

        Raises:
            BackendError: the kernels are not available (says why), or the GPU is out of memory.
        """
        device = self._device
        with device.lock, device.current():
            arguments = [
                pointer(frame.address),
                number(frame.shape[1]),
                *self._weights.arguments(geometry),
                *map(number, (*geometry.content, *geometry.padded, _COLOUR)),
            ]
            pixels, shape = math.prod(geometry.padded), (1, *geometry.padded, 3)
            resized = run_kernel(device, "rvos_preprocess", pixels, arguments, shape, np.uint8)
            if frame.foreign:
                device.keep_alive(frame)
            return resized
