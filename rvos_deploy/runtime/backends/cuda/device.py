"""One GPU: its primary context, streams, events, memory and page-locked buffers.

Only this module creates and frees them. Contexts of pycuda's own are the usual cause of "invalid
resource handle" beside other users of CUDA. So everything lives in the device's *primary* context,
which PyTorch, CuPy and TensorRT use too. A block of code pushes that context and pops it at its
end, so every thread keeps the context that it had.

pycuda drives CUDA where it is installed, else ``cuda.bindings`` (see driver.py).

NOT RUN: it needs a GPU. Recording stand-ins of ``pycuda.driver`` and ``cuda.bindings.driver`` test
order, lifetimes and error paths; their streams run as late as they may.
"""

from __future__ import annotations

import atexit
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.driver import DISABLE_TIMING
from rvos_deploy.runtime.backends.cuda.driver_calls import call
from rvos_deploy.runtime.backends.cuda.kernels import Kernels
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries
from rvos_deploy.runtime.backends.cuda.memory import (
    DeviceBuffer,
    DevicePool,
    PinnedPool,
    rounded_size,
)
from rvos_deploy.runtime.backends.cuda.readers import Readers
from rvos_deploy.runtime.backends.cuda.staging import (
    DeviceEvent,
    DriverEvent,
    DriverStream,
    Staging,
)

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: other users' work on the default stream does not delay ours."""
_RELEASED = "the GPU was released with its segmenter; load the bundle again"


class CudaDevice:
    """A GPU of this process. Get it from :func:`acquire_device`, and end with ``release``.

    Threads share the streams. Hold ``lock`` while you queue work: otherwise work of one thread
    could become part of another thread's capture. Waiting needs no lock.
    """

    def __init__(self, libraries: CudaLibraries, ordinal: int = 0) -> None:
        """Raises BackendError: there is no such GPU."""
        self.driver, self.bindings, self.ordinal = libraries.driver, libraries.bindings, ordinal
        self.lock = threading.RLock()
        self._references = 0
        self._closed = False
        self._memory = DevicePool(
            self.driver,
            self._synchronize,
            Readers(self.bindings),
            lambda: int(self.compute.handle),
        )
        self._pinned = PinnedPool(self.driver)
        self._idle_staging: dict[int, list[Staging]] = {}
        self._events: list[list[DriverEvent]] = []
        self._idle_events: deque[list[DriverEvent]] = deque()
        self._kept_alive: deque[tuple[DeviceEvent, object]] = deque()
        self._kernels: Kernels | None = None
        self._no_kernels: str | None = None
        try:
            self.driver.init()
            device = self.driver.Device(ordinal)
            self.name: str = device.name()
            self.compute_capability = ".".join(map(str, device.compute_capability()))
            self._context = device.retain_primary_context()
        except self.driver.Error as error:
            raise BackendError(
                f"there is no NVIDIA GPU {ordinal} that CUDA can use ({error}); check the driver "
                "with nvidia-smi, or run with --backend onnxruntime"
            ) from None
        self._streams: list[DriverStream] = []
        try:
            with self.current():
                self._streams += [self.driver.Stream(_NON_BLOCKING) for _ in range(3)]
        except BaseException:
            self._close()
            raise

    @property
    def compute(self) -> DriverStream:
        """The stream of all computation: graphs run one after the other."""
        return self._stream(0)

    @property
    def upload(self) -> DriverStream:
        """The stream of copies to the GPU."""
        return self._stream(1)

    @property
    def download(self) -> DriverStream:
        """The stream of copies to the host."""
        return self._stream(2)

    def _stream(self, index: int) -> DriverStream:
        if self._closed:
            raise BackendError(_RELEASED)
        return self._streams[index]

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current in this thread for a block. Blocks may be nested.

        Every call that touches the device needs such a block, which turns CUDA's errors into
        BackendErrors.

        Raises:
            BackendError: the device was closed, or CUDA failed within the block.
        """
        if self._closed:
            raise BackendError(_RELEASED)
        self._context.push()
        try:
            with self._backend_errors():
                yield
        finally:
            self.driver.Context.pop()

    @contextmanager
    def _backend_errors(self) -> Iterator[None]:
        try:
            yield
        except self.driver.Error as error:
            raise BackendError(
                f"CUDA failed on GPU {self.ordinal} ({self.name}): {error}; check it with "
                "nvidia-smi, and load the bundle again"
            ) from error

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Return a buffer of at least ``nbytes`` bytes, for work on ``compute``.

        Work that is queued there may still read what a recycled buffer held before, so only work on
        ``compute`` may write into it without waiting.

        Raises:
            BackendError: the GPU is out of memory.
        """
        with self.lock, self.current():
            return self._memory.allocate(nbytes)

    def acquire_staging(self, nbytes: int) -> Staging:
        """Return a buffer for an input of ``nbytes`` bytes; end with :meth:`release_staging`.

        Raises:
            BackendError: the GPU is out of memory.
        """
        size = rounded_size(nbytes)
        with self.lock, self.current():
            idle = self._idle_staging.get(size)
            if idle:
                return idle.pop()
            return Staging(self, self._memory.allocate(size), size)

    def release_staging(self, staging: Staging) -> None:
        """Recycle the buffer of an input."""
        with self.lock:
            self._idle_staging.setdefault(staging.size, []).append(staging)

    def acquire_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Return a page-locked uint8 array of at least ``nbytes``; see :meth:`release_pinned`."""
        with self.lock, self.current():
            return self._pinned.acquire(nbytes)

    def release_pinned(self, pinned: NDArray[np.uint8]) -> None:
        """Recycle page-locked memory that no queued work touches any more."""
        with self.lock:
            self._pinned.release(pinned)

    def event(self, stream: DriverStream | None = None) -> DeviceEvent:
        """Return an event, recorded on the stream where one is given."""
        with self.lock, self.current():
            try:
                raw = self._idle_events.popleft()
            except IndexError:
                raw = [self.driver.Event(DISABLE_TIMING)]
                self._events.append(raw)
            event = DeviceEvent(raw, self._idle_events)
            if stream is not None:
                event.record(stream)
            return event

    def kernels(self) -> Kernels:
        """Return this package's kernels; the first call compiles and loads them.

        Raises:
            BackendError: they cannot be compiled or loaded. Later calls give the same reason.
        """
        with self.lock, self.current():
            if self._kernels is None and self._no_kernels is None:
                try:
                    self._kernels = Kernels(self.bindings, self.compute_capability)
                except BackendError as error:
                    self._no_kernels = str(error)
            if self._kernels is None:
                raise BackendError(self._no_kernels)
            return self._kernels

    def has_kernels(self) -> bool:
        """Tell whether there are :meth:`kernels`; one warning says why there are none."""
        tried = self._no_kernels is not None
        try:
            self.kernels()
        except BackendError as error:
            if not tried:
                warnings.warn(
                    f"the host does the work between the graphs, which is somewhat slower: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return False
        return True

    def keep_alive(self, owner: object) -> None:
        """Keep another library's memory alive until the work queued on ``compute`` has finished."""
        with self.lock, self.current():
            while self._kept_alive and self._kept_alive[0][0].query():
                self._kept_alive.popleft()
            self._kept_alive.append((self.event(self.compute), owner))

    def allocated_bytes(self) -> int:
        """Return the GPU memory that this object holds, in use or idle."""
        with self.lock:
            return self._memory.allocated_bytes

    def release(self) -> None:
        """End one :func:`acquire_device`; the last one frees everything.

        Raises:
            BackendError: CUDA failed; everything was freed all the same.
        """
        with _devices_lock:
            self._references -= 1
            if self._references == 0:
                del _devices[self.ordinal]
                self._close()

    def _synchronize(self) -> None:
        for stream in self._streams:
            stream.synchronize()

    def _close(self) -> None:
        """Wait, then free buffers, events and streams, and release the context last."""
        with self.lock, self._backend_errors(), ExitStack() as stack:
            self._closed = True
            self._context.push()
            # The stack runs from its end, and runs every step whatever the others raise.
            stack.callback(self._release_context)
            stack.callback(self._streams.clear)
            stack.callback(self._clear_events)
            stack.callback(self._memory.free)
            stack.callback(self._pinned.free)
            stack.callback(self._idle_staging.clear)
            stack.callback(self._free_kernels)
            stack.callback(self._kept_alive.clear)
            try:
                self._synchronize()
            except BaseException as error:
                # The frames of the error would keep streams beyond the context.
                traceback.clear_frames(error.__traceback__)
                raise

    def _free_kernels(self) -> None:
        kernels, self._kernels = self._kernels, None
        if kernels is not None:
            kernels.free()

    def _clear_events(self) -> None:
        for raw in self._events:
            raw.clear()
        self._events.clear()
        self._idle_events.clear()

    def _release_context(self) -> None:
        # pycuda's detach releases a primary context without popping it: CUDA would keep a dead
        # context current in this thread, and the next user of CUDA here would fail. CUDA pops it
        # first; pycuda still counts it as current and detaches it. Both stacks end as they were.
        call(self.bindings, "cuCtxPopCurrent")
        self._context.detach()


_devices: dict[int, CudaDevice] = {}
_devices_lock = threading.RLock()


def acquire_device(libraries: CudaLibraries, ordinal: int = 0) -> CudaDevice:
    """Return the process's one object for a GPU; end with ``release``.

    Raises:
        BackendError: there is no such GPU.
    """
    with _devices_lock:
        device = _devices.get(ordinal)
        if device is None:
            device = _devices[ordinal] = CudaDevice(libraries, ordinal)
        device._references += 1
        return device


@atexit.register
def _close_all() -> None:
    # pycuda ends the process with an error when its objects outlive it.
    while _devices:
        _devices.popitem()[1]._close()
