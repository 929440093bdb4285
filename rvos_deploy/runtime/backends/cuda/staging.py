"""Events of CUDA streams, and the buffers through which a graph's inputs reach fixed addresses."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tensors import HostArray
from rvos_deploy.runtime.backends.cuda.memory import DeviceBuffer

if TYPE_CHECKING:
    from rvos_deploy.runtime.backends.cuda.device import CudaDevice


class DriverEvent(Protocol):
    """An event of either driver; pycuda has no types."""

    def record(self, stream: DriverStream) -> object:
        """Move the event to the end of the work that is queued on the stream now."""

    def synchronize(self) -> object:
        """Block this thread until the event has passed."""

    def query(self) -> bool:
        """Tell whether the event has passed."""


class DriverStream(Protocol):
    """A stream of either driver; pycuda has no types."""

    @property
    def handle(self) -> int:
        """CUDA's handle of the stream."""

    def synchronize(self) -> object:
        """Block this thread until the stream's work has finished."""

    def wait_for_event(self, event: DriverEvent) -> object:
        """Make work that is queued from now on wait for the event."""


class DeviceEvent:
    """A point in a stream. The device recycles the CUDA event once nothing references it.

    The methods are named after those of ``torch.cuda.Event``. All of them need the device's context
    current.
    """

    def __init__(self, raw: list[DriverEvent], idle: deque[list[DriverEvent]]) -> None:
        """``raw``: a list of one pycuda event, which is empty after the device was closed."""
        self._raw, self._idle = raw, idle

    def record(self, stream: DriverStream) -> None:
        """Move the event to the end of the work that is queued on the stream now."""
        self._raw[0].record(stream)

    def wait(self, stream: DriverStream) -> None:
        """Make all work that is queued on the stream from now on wait for the event."""
        stream.wait_for_event(self._raw[0])

    def synchronize(self) -> None:
        """Block this thread until the event has passed; other threads go on."""
        self._raw[0].synchronize()

    def query(self) -> bool:
        """Tell whether the event has passed."""
        return not self._raw or bool(self._raw[0].query())

    def __del__(self) -> None:
        self._idle.append(self._raw)


class Staging:
    """A buffer on the GPU for one input of a computation. It is filled from the host or on the GPU.

    It is filled again after the computation has read it. Host arrays pass through a page-locked
    buffer, which is made for the first of them and reused after the copy has left it.
    """

    def __init__(self, device: CudaDevice, buffer: DeviceBuffer, size: int) -> None:
        """``size``: the capacity in bytes."""
        self.size = size
        self._device, self._buffer = device, buffer
        self._pinned: NDArray[np.uint8] | None = None
        self._copied: DeviceEvent | None = None
        # Queued work may still read what the recycled buffer held before.
        self._read = device.event(device.compute)

    @property
    def address(self) -> int:
        """The device address of the uploaded array."""
        return self._buffer.address

    def upload(self, array: HostArray) -> None:
        """Queue the upload; work queued on ``device.compute`` from now on sees the array."""
        device = self._device
        if self._pinned is None:
            self._pinned = device.acquire_pinned(self.size)
        if self._copied is not None:
            self._copied.synchronize()
        else:
            self._copied = device.event()
        pinned = self._pinned[: array.nbytes]
        np.copyto(pinned.view(array.dtype).reshape(array.shape), array)
        self._read.wait(device.upload)
        device.driver.memcpy_htod_async(self.address, pinned, device.upload)
        self._copied.record(device.upload)
        self._copied.wait(device.compute)

    def copy(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Queue copies on the GPU, one piece behind the other, on ``device.compute``.

        ``pieces``: device address and bytes of each one. Whatever reads or writes the buffer is
        queued on ``compute``, or is awaited there, so nothing else waits.
        """
        device, target = self._device, self.address
        for address, nbytes in pieces:
            device.driver.memcpy_dtod_async(target, address, nbytes, device.compute)
            target += nbytes
        # An upload after a run that failed in between waits for these copies too.
        self._read.record(device.compute)

    def mark_read(self) -> None:
        """Say that everything that reads the array is queued; the next upload waits for it."""
        self._read.record(self._device.compute)
