"""Frames on the GPU made the network's input there: resized and padded.

The numbers are ``geometry.resize_frame``'s, byte by byte: Pillow's weights in fixed point, of which
the host makes a table once a geometry, columns before rows.

NOT RUN: it needs a GPU (see cuda_kernels.py).
"""

from __future__ import annotations

import math

import numpy as np

from rvos_deploy.graph_io.frame_geometry import PADDING, FrameGeometry, frame_taps
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.kernels import number, pointer
from rvos_deploy.runtime.backends.cuda.resample_weights import TapTables
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, compute

_COLOUR = PADDING[0] << 16 | PADDING[1] << 8 | PADDING[2]


class FrameFitter:
    """Fits frames on one device. A runner's own; keeps the tables of a few geometries there."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._tables = TapTables(device, frame_taps)

    def fit(self, frame: DeviceTensor, geometry: FrameGeometry) -> DeviceTensor:
        """Network input uint8 [1,h,w,3] of a frame uint8 [H,W,3]; queued.

        Raises:
            BackendError: there are no kernels (says why), or memory is short.
        """
        device = self._device
        with device.lock, device.current():
            arguments = [
                pointer(frame.address),
                number(frame.shape[1]),
                *self._tables.arguments(geometry),
                *map(number, (*geometry.content, *geometry.padded, _COLOUR)),
            ]
            pixels, shape = math.prod(geometry.padded), (1, *geometry.padded, 3)
            fitted = compute(device, "rvos_fit_frame", pixels, arguments, shape, np.uint8)
            if frame.borrowed:
                device.keep(frame)
            return fitted
