"""One GPU: its primary context, its streams, events, memory and page-locked buffers.

The only module that takes and frees any of these. pycuda's own contexts are the usual source of
"invalid resource handle" beside other users of CUDA, so everything lives on the device's *primary*
context, which PyTorch, CuPy and TensorRT use too; it is pushed for a block and popped at its end,
so that a thread is left as it was found.

NOT RUN: it needs a GPU. Order, lifetimes and error paths are tested against a recording stand-in of
``pycuda.driver`` and ``cuda.bindings.driver``, whose streams run as late as they may; every name
against pycuda's own source (tests/backends).
"""

from __future__ import annotations

import atexit
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.kernels import Kernels
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries, call

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: other users' work on the default stream holds ours up no more."""
_GRAIN = 512
_LARGE = 2**21
_GIVEN_BACK = "the GPU was given back with its segmenter; load the bundle again"


@dataclass(eq=False)
class _Block:
    """Device memory as the driver gave it; ``memory`` is None once it was freed."""

    memory: Any
    address: int
    size: int


class DeviceBuffer:
    """Room on the device. It goes back to the device's pool when nothing refers to it any more."""

    def __init__(self, device: CudaDevice, block: _Block) -> None:
        self._device, self._block = device, block

    @property
    def address(self) -> int:
        """Where it lies. Raises BackendError when the device was closed meanwhile."""
        if self._block.memory is None:
            raise BackendError(
                "this result lay on the GPU and was freed with its segmenter; take it to the host "
                "(numpy.asarray) or copy it before the segmenter is closed"
            )
        return self._block.address

    def __del__(self) -> None:
        # Runs in any thread, at any moment: it may neither call CUDA nor take a lock.
        self._device._returned.append(self._block)


class DeviceEvent:
    """A moment in a stream. Its CUDA event is used again when nothing refers to it any more."""

    def __init__(self, device: CudaDevice, raw: list[Any]) -> None:
        # ``raw`` holds the one event, or nothing once the device was closed.
        self._device, self._raw = device, raw

    def record(self, stream: Any) -> None:
        """The moment when all that was queued on the stream so far is done."""
        self._raw[0].record(stream)

    def hold_up(self, stream: Any) -> None:
        """Let what is queued on the stream from here on wait for the moment."""
        stream.wait_for_event(self._raw[0])

    def wait(self) -> None:
        """Wait for the moment in this thread; other threads go on."""
        self._raw[0].synchronize()

    @property
    def passed(self) -> bool:
        """Whether it lies in the past. Needs the context current, as the others do."""
        return not self._raw or bool(self._raw[0].query())

    def __del__(self) -> None:
        self._device._idle_events.append(self._raw)


class Staging:
    """A page-locked buffer and its room on the device: how a host array gets up.

    Used by one caller at a time; used again only when the copy has left the one, and the arithmetic
    has read the other.
    """

    def __init__(self, device: CudaDevice, buffer: DeviceBuffer, pinned: NDArray[np.uint8]) -> None:
        self._device, self._buffer, self._pinned = device, buffer, pinned
        self._copied: DeviceEvent | None = None
        # What lay in that memory before may still be read by what is queued.
        self._consumed = device.event(device.compute)

    @property
    def address(self) -> int:
        """Of its room on the device."""
        return self._buffer.address

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self._pinned)

    def put(self, array: NDArray[Any]) -> None:
        """Queue the upload; what is queued for computation from here on finds the array there."""
        device = self._device
        if self._copied is not None:
            self._copied.wait()
        else:
            self._copied = device.event()
        room = self._pinned[: array.nbytes]
        np.copyto(room.view(array.dtype).reshape(array.shape), array)
        self._consumed.hold_up(device.upload)
        device.driver.memcpy_htod_async(self.address, room, device.upload)
        self._copied.record(device.upload)
        self._copied.hold_up(device.compute)

    def consumed(self) -> None:
        """All that reads the array has been queued: the next upload waits for it."""
        self._consumed.record(self._device.compute)


class CudaDevice:
    """The GPU as this package uses it. Get it from :func:`hold_device`; give it back by ``let_go``.

    ``lock`` is held while work is queued: threads share the streams, and what one of them queued
    while another captures would become part of that capture. Waiting needs no lock.
    """

    def __init__(self, libraries: CudaLibraries, ordinal: int = 0) -> None:
        """Raises BackendError where there is no such GPU."""
        self.driver, self.bindings, self.ordinal = libraries.pycuda, libraries.driver, ordinal
        self.lock = threading.RLock()
        self._holds = 0
        self._closed = False
        self._blocks: list[_Block] = []
        self._idle: dict[int, list[_Block]] = {}
        self._returned: deque[_Block] = deque()
        self._pinned: list[NDArray[np.uint8]] = []
        self._idle_pinned: dict[int, list[NDArray[np.uint8]]] = {}
        self._idle_staging: dict[int, list[Staging]] = {}
        self._events: list[list[Any]] = []
        self._idle_events: deque[list[Any]] = deque()
        self._kept: deque[tuple[DeviceEvent, object]] = deque()
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
        self._streams: list[Any] = []
        try:
            with self.current():
                self._streams += [self.driver.Stream(_NON_BLOCKING) for _ in range(3)]
        except BaseException:
            self._close()
            raise

    @property
    def compute(self) -> Any:
        """The stream that all arithmetic runs on, one graph after the other."""
        return self._stream(0)

    @property
    def upload(self) -> Any:
        """The stream of copies to the device."""
        return self._stream(1)

    @property
    def download(self) -> Any:
        """The stream of copies to the host."""
        return self._stream(2)

    def _stream(self, index: int) -> Any:
        if self._closed:
            raise BackendError(_GIVEN_BACK)
        return self._streams[index]

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context this thread's for a block; may be nested.

        All that touches the device is done in such a block, and CUDA's errors in it become
        BackendErrors.
        """
        if self._closed:
            raise BackendError(_GIVEN_BACK)
        self._context.push()
        try:
            yield
        except self.driver.Error as error:
            raise BackendError(
                f"CUDA failed on GPU {self.ordinal} ({self.name}): {error}; check it with "
                "nvidia-smi, and load the bundle again"
            ) from error
        finally:
            self.driver.Context.pop()

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Room on the device, from the pool where it has some. For the compute stream: what is
        queued there still may read what lay in that room before.

        Raises:
            BackendError: the device's memory is short.
        """
        size = _rounded(nbytes)
        with self.lock, self.current():
            self._collect()
            idle = self._idle.get(size)
            return DeviceBuffer(self, idle.pop() if idle else self._take(size))

    def staging(self, nbytes: int) -> Staging:
        """Room for one host array on its way up; give it back by :meth:`unstage`."""
        size = _rounded(nbytes)
        with self.lock, self.current():
            idle = self._idle_staging.get(size)
            return idle.pop() if idle else Staging(self, self.allocate(size), self.pinned(size))

    def unstage(self, staging: Staging) -> None:
        """Let others use it."""
        with self.lock:
            self._idle_staging.setdefault(staging.size, []).append(staging)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """A page-locked buffer of at least so many bytes; give it back by :meth:`unpin`."""
        size = _rounded(nbytes)
        with self.lock, self.current():
            idle = self._idle_pinned.get(size)
            if idle:
                return idle.pop()
            pinned: NDArray[np.uint8] = self.driver.pagelocked_empty(size, np.uint8)
            self._pinned.append(pinned)
            return pinned

    def unpin(self, pinned: NDArray[np.uint8]) -> None:
        """Let others use it; nothing that is queued may touch it any more."""
        with self.lock:
            self._idle_pinned.setdefault(len(pinned), []).append(pinned)

    def event(self, stream: Any = None) -> DeviceEvent:
        """An event, recorded on the stream where one is given."""
        with self.lock, self.current():
            try:
                raw = self._idle_events.popleft()
            except IndexError:
                raw = [self.driver.Event(self.driver.event_flags.DISABLE_TIMING)]
                self._events.append(raw)
            event = DeviceEvent(self, raw)
            if stream is not None:
                event.record(stream)
            return event

    def kernels(self) -> Kernels:
        """Our own kernels, compiled and loaded when first asked for.

        Raises:
            BackendError: they cannot be; tried once, and the same reason given from then on.
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
        """Whether there are :meth:`kernels`; why not is said once, as a warning."""
        tried = self._no_kernels is not None
        try:
            self.kernels()
        except BackendError as error:
            if not tried:
                warnings.warn(
                    f"what lies between the graphs is done on the host, somewhat slower: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return False
        return True

    def keep(self, owner: object) -> None:
        """Keep another library's memory until what is queued for computation now is done."""
        with self.lock, self.current():
            while self._kept and self._kept[0][0].passed:
                self._kept.popleft()
            self._kept.append((self.event(self.compute), owner))

    def bytes_taken(self) -> int:
        """Device memory that this object holds, in use or idle."""
        with self.lock:
            return sum(block.size for block in self._blocks)

    def let_go(self) -> None:
        """The end of one hold; the last one frees everything."""
        with _holding:
            self._holds -= 1
            if self._holds == 0:
                del _devices[self.ordinal]
                self._close()

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._idle.setdefault(block.size, []).append(block)

    def _take(self, size: int) -> _Block:
        for attempt in range(2):
            try:
                memory = self.driver.mem_alloc(size)
            except self.driver.MemoryError:
                if attempt == 0:
                    self._trim()
                continue
            block = _Block(memory, int(memory), size)
            self._blocks.append(block)
            return block
        free, total = self.driver.mem_get_info()
        raise BackendError(
            f"GPU memory is short: {size / 2**20:.0f} MiB are needed, {free / 2**20:.0f} of "
            f"{total / 2**20:.0f} MiB are free; use a smaller --size, fewer expressions at once, "
            "--mode online, or end other programs on the GPU (nvidia-smi lists them)"
        )

    def _trim(self) -> None:
        """Free what is idle, once nothing that is queued can touch it."""
        self._synchronize()
        self._collect()
        for block in (block for blocks in self._idle.values() for block in blocks):
            self._blocks.remove(block)
            block.memory.free()
            block.memory = None
        self._idle.clear()

    def _synchronize(self) -> None:
        for stream in self._streams:
            stream.synchronize()

    def _close(self) -> None:
        """Free in order: wait, then buffers, events, streams, and the hold on the context last."""
        with self.lock:
            self._closed = True
            self._context.push()
            try:
                self._synchronize()
                self._kept.clear()
                if self._kernels is not None:
                    self._kernels.free()
                    self._kernels = None
                self._idle_staging.clear()
                for pinned in self._pinned:
                    pinned.base.free()  # type: ignore[union-attr]
                for block in self._blocks:
                    block.memory.free()
                    block.memory = None
                for raw in self._events:
                    raw.clear()
                for gone in (self._pinned, self._blocks, self._events, self._streams):
                    gone.clear()
                for idle in (self._idle, self._idle_pinned):
                    idle.clear()
                self._idle_events.clear()
                self._returned.clear()
            finally:
                # pycuda's detach releases a primary context without popping it: CUDA would keep a
                # dead context current in this thread, and the next user of CUDA here would fail.
                # Popped first, and detached while pycuda still counts it as current, both stacks
                # end as they were.
                call(self.bindings, "cuCtxPopCurrent")
                self._context.detach()


_devices: dict[int, CudaDevice] = {}
_holding = threading.RLock()


def hold_device(libraries: CudaLibraries, ordinal: int = 0) -> CudaDevice:
    """The process's one object for a GPU; end the hold by ``let_go``.

    Raises:
        BackendError: there is no such GPU.
    """
    with _holding:
        device = _devices.get(ordinal)
        if device is None:
            device = _devices[ordinal] = CudaDevice(libraries, ordinal)
        device._holds += 1
        return device


@atexit.register
def _close_all() -> None:
    # pycuda ends the process with an error when its objects outlive it.
    while _devices:
        _devices.popitem()[1]._close()


def _rounded(nbytes: int) -> int:
    """Sizes of which the pool keeps pieces: powers of two, from 2 MiB on multiples of that."""
    if nbytes > _LARGE:
        return -(-nbytes // _LARGE) * _LARGE
    return max(_GRAIN, 1 << (max(1, nbytes) - 1).bit_length())
