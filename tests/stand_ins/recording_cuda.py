"""Record calls of ``pycuda.driver`` and ``cuda.bindings.driver``: stand-ins without a GPU or CUDA.

They have the names, the arguments and the rules below from the real modules, and claim nothing else
of a GPU's behaviour.

* Work on a stream runs as late as it may: when the host waits for it, or when other work that must
come
  after it runs. So a forgotten wait reads old bytes, and a buffer that is reused too early loses
  its
  content.
* A call without a current context, memory that is freed twice or used after it was freed, and an
  allocation or a synchronisation during a capture raise AssertionError in the test.
* Our own kernels run as g++ compiled their source for the host (``host_kernels.py``).
* ``log`` records everything in order.
"""

from __future__ import annotations

import ctypes
import enum
import gc
import itertools
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvos_deploy.runtime.backends.cuda.bindings_driver import BindingsDriver
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries

DRIVERS = ("pycuda", "cuda-bindings")
"""The packages that may drive memory, streams and events."""

PRIMARY_CONTEXT = 0xC0
"""CUDA's handle of the primary context."""

Work = Callable[[], None]


def need_ints(*values: object) -> None:
    """Refuse NumPy integers, as Boost.Python's conversion does."""
    assert all(isinstance(value, int) for value in values), values


class Machine:
    """The GPU behind both stand-ins."""

    def __init__(self, memory: int = 2**34, gpus: int = 1) -> None:
        self.memory, self.gpus = memory, gpus
        self.log: list[tuple[Any, ...]] = []
        self.allocations: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: weakref.WeakValueDictionary[int, FakeStream] = weakref.WeakValueDictionary()
        self.living: set[int] = set()
        self.graphs: dict[int, list[Work]] = {}
        self.modules: set[int] = set()
        self.retained = 0
        self.failing: dict[str, int] = {}
        self.copied = {"up": 0, "down": 0}
        self.running = threading.RLock()
        self._next = itertools.count(1)
        self._local = threading.local()

    def number(self) -> int:
        return next(self._next)

    @property
    def stack(self) -> list[Any]:
        """CUDA's stack of contexts of this thread."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        return self._local.stack

    @property
    def pycuda_stack(self) -> list[Any]:
        """pycuda's own stack; only its top is on CUDA's."""
        if not hasattr(self._local, "pycuda"):
            self._local.pycuda = []
        return self._local.pycuda

    def record(self, *entry: Any) -> None:
        self.log.append(entry)

    def need_context(self, what: str) -> None:
        assert self.stack, f"{what}: no current context"
        assert self.retained > 0, f"{what}: the context was released"

    def need_no_capture(self, what: str) -> None:
        capturing = [s.number for s in self.streams.values() if s.captured is not None]
        assert not capturing, f"{what} while stream {capturing} is captured"

    def must_fail(self, what: str) -> bool:
        """Tell whether a test asked for a failure: after ``failing[what]`` more calls."""
        if what in self.failing:
            self.failing[what] -= 1
        return self.failing.get(what, 0) < 0

    def fail_if_asked(self, what: str) -> None:
        """Raise pycuda's error where a test asked for it."""
        if self.must_fail(what):
            raise FakePycuda.Error(f"{what} failed: because the test says so")

    def allocate(self, size: int) -> int | None:
        """Return the address of new memory on the GPU; None where it is out of memory."""
        need_ints(size)
        self.need_context("mem_alloc")
        self.need_no_capture("mem_alloc")
        if sum(map(len, list(self.allocations.values()))) + size > self.memory:
            return None
        address = self.number() << 32
        self.allocations[address] = np.full(size, 0xCD, np.uint8)
        self.record("allocated", size)
        return address

    def free(self, address: int) -> None:
        self.need_context("free")
        self.need_no_capture("free")
        del self.allocations[address]
        self.record("freed", address)

    def free_bytes(self) -> int:
        return self.memory - sum(map(len, list(self.allocations.values())))

    def put_copy(self, kind: str, count: int, stream: FakeStream, copy: Work) -> None:
        """Queue a copy between host and GPU (``up``, ``down``) or on the GPU (``moved``)."""
        self.need_context(kind)
        self.record(kind, count, stream.number)
        if kind in self.copied:
            self.copied[kind] += count
        stream.put(copy)

    def pointer(self, address: int) -> int:
        """Return the host address of device memory, which an allocation must hold."""
        for start, block in list(self.allocations.items()):
            if start <= address < start + len(block):
                return int(block[address - start :].ctypes.data)
        raise AssertionError(f"{address:#x} is not allocated")

    def bytes_at(self, address: int, count: int) -> np.ndarray:
        """Return a view of device memory."""
        # The list is copied, because other threads may allocate meanwhile.
        for start, block in list(self.allocations.items()):
            if start <= address and address + count <= start + len(block):
                return block[address - start : address - start + count]
        raise AssertionError(f"{count} bytes at {address:#x} are not allocated")

    def copy_of(self, dest: int, src: int, size: int) -> Work:
        """Return the work of a copy on the GPU."""

        def work() -> None:
            target, source = self.bytes_at(dest, size), self.bytes_at(src, size)
            assert not np.shares_memory(target, source), "CUDA does not define such a copy"
            target[:] = source

        return work

    def leaks(self) -> dict[str, int]:
        return {
            "device": len(self.allocations),
            "pinned": len(self.pinned),
            "streams": len(self.living),
            "graphs": len(self.graphs),
            "modules": len(self.modules),
            "contexts": self.retained,
        }


class FakeStream:
    """A queue of work, and of waits for other streams."""

    def __init__(self, machine: Machine, flags: int) -> None:
        machine.need_context("Stream")
        machine.need_no_capture("Stream")
        self._machine, self.flags = machine, flags
        self.number = machine.number()
        self.handle = 0x5000 + self.number
        self.queue: deque[tuple[int, Work]] = deque()
        self.queued = self.done = 0
        self.captured: list[Work] | None = None
        machine.streams[self.handle] = self
        machine.living.add(self.handle)
        machine.record("stream", self.number)

    def put(self, work: Work) -> None:
        if self.captured is not None:
            self.captured.append(work)
            return
        self.queued += 1
        self.queue.append((self.queued, work))

    def run_until(self, position: int) -> None:
        with self._machine.running:
            while self.queue and self.queue[0][0] <= position:
                number, work = self.queue.popleft()
                work()
                self.done = number

    def synchronize(self) -> None:
        self._machine.need_context("Stream.synchronize")
        self._machine.need_no_capture("Stream.synchronize")
        try:
            self._machine.fail_if_asked("Stream.synchronize")
        except FakePycuda.Error:
            # After an error that makes a wait fail, CUDA runs nothing that is queued.
            for stream in list(self._machine.streams.values()):
                stream.queue.clear()
            raise
        self.run_until(self.queued)

    def wait_for_event(self, event: FakeEvent) -> None:
        self._machine.need_context("Stream.wait_for_event")
        stream, position = event.stream, event.position
        if stream is not None and stream is not self:
            assert self.captured is None, "a wait for another stream would be captured"
            self.put(lambda: stream.run_until(position))

    def __del__(self) -> None:
        self._machine.living.discard(self.handle)
        self._machine.record("stream freed", self.number)
        if not self._machine.stack:
            self._machine.record("leak", "stream freed without a context")


class FakeEvent:
    """A position in a stream."""

    def __init__(self, machine: Machine, flags: int) -> None:
        machine.need_context("Event")
        self._machine, self.flags = machine, flags
        self.stream: FakeStream | None = None
        self.position = 0

    def record(self, stream: FakeStream) -> FakeEvent:
        self._machine.need_context("Event.record")
        assert stream.captured is None, "an event would be captured"
        self.stream, self.position = stream, stream.queued
        return self

    def synchronize(self) -> FakeEvent:
        self._machine.need_context("Event.synchronize")
        if self.stream is not None:
            self.stream.run_until(self.position)
        return self

    def query(self) -> bool:
        self._machine.need_context("Event.query")
        return self.stream is None or self.stream.done >= self.position

    def __del__(self) -> None:
        if not self._machine.stack:
            self._machine.record("leak", "event freed without a context")


class _DeviceAllocation:
    def __init__(self, machine: Machine, address: int) -> None:
        self._machine, self._address = machine, address
        self._valid = True

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        assert self._valid, "freed twice"
        self._valid = False
        self._machine.free(self._address)

    def __del__(self) -> None:
        if self._valid:
            self._machine.record("leak", "device memory was left to the garbage collector")


class _Context:
    """The primary context, with pycuda's way of keeping stacks (src/cpp/cuda.hpp)."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._valid = machine, True

    def __int__(self) -> int:
        return PRIMARY_CONTEXT

    def push(self) -> None:
        assert self._valid, "a detached context"
        machine = self._machine
        if machine.pycuda_stack:
            machine.stack.pop()
        machine.stack.append(self)
        machine.pycuda_stack.append(self)

    def detach(self) -> None:
        machine = self._machine
        assert self._valid, "detached twice"
        active = bool(machine.pycuda_stack) and machine.pycuda_stack[-1] is self
        if not active:
            # pycuda does this, and leaves a dead context current.
            machine.stack.append(self)
        machine.retained -= 1
        machine.record("context released")
        self._valid = False
        if active:
            machine.pycuda_stack.pop()
            if machine.pycuda_stack:
                machine.stack.append(machine.pycuda_stack[-1])


class FakePycuda:
    """Stands in for ``pycuda.driver``."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        outer = self

        class Context:
            @staticmethod
            def pop() -> None:
                assert machine.pycuda_stack, "nothing to pop"
                machine.stack.pop()
                machine.pycuda_stack.pop()
                if machine.pycuda_stack:
                    machine.stack.append(machine.pycuda_stack[-1])

        class Device:
            def __init__(self, ordinal: int) -> None:
                if ordinal >= machine.gpus:
                    raise outer.Error("cuDeviceGet failed: invalid device ordinal")
                self.ordinal = ordinal

            def name(self) -> str:
                return "stand-in"

            def compute_capability(self) -> tuple[int, int]:
                return (8, 9)

            def retain_primary_context(self) -> _Context:
                machine.retained += 1
                machine.record("context retained", self.ordinal)
                return _Context(machine)

        self.Context, self.Device = Context, Device

    def init(self) -> None:
        if not self._machine.gpus:
            raise self.Error("cuInit failed: no CUDA-capable device is detected")

    def Stream(self, flags: int = 0) -> FakeStream:  # noqa: N802
        self._machine.fail_if_asked("Stream")
        return FakeStream(self._machine, flags)

    def Event(self, flags: int = 0) -> FakeEvent:  # noqa: N802
        return FakeEvent(self._machine, flags)

    def mem_alloc(self, size: int) -> _DeviceAllocation:
        self._machine.fail_if_asked("mem_alloc")
        address = self._machine.allocate(size)
        if address is None:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return _DeviceAllocation(self._machine, address)

    def mem_get_info(self) -> tuple[int, int]:
        return self._machine.free_bytes(), self._machine.memory

    def pagelocked_empty(self, shape: int, dtype: Any) -> np.ndarray:
        machine = self._machine
        machine.need_context("pagelocked_empty")
        machine.need_no_capture("pagelocked_empty")
        number = machine.number()

        memory = np.full(shape, 0xEE, dtype)

        class Base:
            """Stands for the allocation: NumPy keeps it as the array's base."""

            __array_interface__ = memory.__array_interface__

            def free(self) -> None:
                machine.need_context("pagelocked free")
                del machine.pinned[number]

        machine.pinned[number] = memory
        return np.asarray(Base())

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: FakeStream) -> None:
        machine = self._machine
        need_ints(dest)

        def work() -> None:
            machine.bytes_at(dest, src.nbytes)[:] = src.reshape(-1).view(np.uint8)

        machine.put_copy("up", src.nbytes, stream, work)

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: FakeStream) -> None:
        machine = self._machine
        need_ints(src)

        def work() -> None:
            dest.reshape(-1).view(np.uint8)[:] = machine.bytes_at(src, dest.nbytes)
            machine.record("arrived", dest.nbytes)

        machine.put_copy("down", dest.nbytes, stream, work)

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: FakeStream) -> None:
        need_ints(dest, src, size)
        self._machine.put_copy("moved", size, stream, self._machine.copy_of(dest, src, size))


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


class FakeBindings:
    """Stands in for ``cuda.bindings.driver``; functions return (error, result...)."""

    class CUstreamCaptureMode(enum.IntEnum):
        CU_STREAM_CAPTURE_MODE_GLOBAL = 0
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    class CUevent_flags(enum.IntEnum):  # noqa: N801
        CU_EVENT_DISABLE_TIMING = 2

    class CUdevice_attribute(enum.IntEnum):  # noqa: N801
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76

    class CUpointer_attribute(enum.IntEnum):  # noqa: N801
        CU_POINTER_ATTRIBUTE_CONTEXT = 1
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.refusing: set[str] = set()
        self.ordinal_of_pointers = 0
        self.context_of_pointers = PRIMARY_CONTEXT
        self.events = 0
        self._entries: dict[int, list[bytes]] = {}
        self._streams: dict[int, FakeStream] = {}
        self.CUresult = CUresult

    def CUstream(self, handle: int) -> int:  # noqa: N802
        return handle

    def cuGetErrorString(self, error: CUresult) -> tuple[Any, ...]:  # noqa: N802
        texts = {
            CUresult.CUDA_ERROR_NO_DEVICE: b"no CUDA-capable device is detected",
            CUresult.CUDA_ERROR_LAUNCH_FAILED: b"because the test says so",
        }
        return CUresult.CUDA_SUCCESS, texts.get(error, error.name.encode())

    def cuInit(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return (CUresult.CUDA_SUCCESS if self._machine.gpus else CUresult.CUDA_ERROR_NO_DEVICE,)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.record("device", ordinal)
        if ordinal >= self._machine.gpus:
            return CUresult.CUDA_ERROR_INVALID_DEVICE, None
        return CUresult.CUDA_SUCCESS, ordinal

    def cuDeviceGetName(self, length: int, device: int) -> tuple[Any, ...]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, b"stand-in".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Any, ...]:  # noqa: N802
        major = self.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return CUresult.CUDA_SUCCESS, 8 if attribute == major else 9

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.retained += 1
        self._machine.record("context retained")
        return CUresult.CUDA_SUCCESS, PRIMARY_CONTEXT

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.retained -= 1
        self._machine.record("context released")
        current = PRIMARY_CONTEXT in self._machine.stack
        assert self._machine.retained or not current, "a dead context would stay current"
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxPushCurrent(self, context: Any) -> tuple[Any, ...]:  # noqa: N802
        self._machine.stack.append(context)
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamCreate(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        if self._machine.must_fail("Stream"):
            return CUresult.CUDA_ERROR_LAUNCH_FAILED, None
        stream = FakeStream(self._machine, flags)
        self._streams[stream.handle] = stream
        return CUresult.CUDA_SUCCESS, stream.handle

    def cuStreamDestroy(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        del self._streams[stream]
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamSynchronize(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        try:
            self._machine.streams[stream].synchronize()
        except FakePycuda.Error:
            return (CUresult.CUDA_ERROR_LAUNCH_FAILED,)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        if self._machine.must_fail("mem_alloc"):
            return CUresult.CUDA_ERROR_LAUNCH_FAILED, None
        address = self._machine.allocate(size)
        if address is None:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        return CUresult.CUDA_SUCCESS, address

    def cuMemFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.free(address)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, self._machine.free_bytes(), self._machine.memory

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.need_context("cuMemHostAlloc")
        self._machine.need_no_capture("cuMemHostAlloc")
        memory = np.full(size, 0xEE, np.uint8)
        self._machine.pinned[memory.ctypes.data] = memory
        return CUresult.CUDA_SUCCESS, memory.ctypes.data

    def cuMemFreeHost(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.need_context("cuMemFreeHost")
        del self._machine.pinned[address]
        return (CUresult.CUDA_SUCCESS,)

    def cuMemcpyHtoDAsync(  # noqa: N802
        self, to: int, address: int, count: int, stream: int
    ) -> tuple[Any, ...]:
        machine = self._machine
        need_ints(to, address, count)

        def work() -> None:
            ctypes.memmove(machine.bytes_at(to, count).ctypes.data, address, count)

        machine.put_copy("up", count, machine.streams[stream], work)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemcpyDtoHAsync(  # noqa: N802
        self, to: int, address: int, count: int, stream: int
    ) -> tuple[Any, ...]:
        machine = self._machine
        need_ints(to, address, count)

        def work() -> None:
            ctypes.memmove(to, machine.bytes_at(address, count).ctypes.data, count)
            machine.record("arrived", count)

        machine.put_copy("down", count, machine.streams[stream], work)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemcpyDtoDAsync(  # noqa: N802
        self, to: int, address: int, count: int, stream: int
    ) -> tuple[Any, ...]:
        machine = self._machine
        need_ints(to, address, count)
        copy = machine.copy_of(to, address, count)
        machine.put_copy("moved", count, machine.streams[stream], copy)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemcpyDtoH(self, to: int, address: int, count: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.need_context("cuMemcpyDtoH")
        self._machine.copied["down"] += count
        ctypes.memmove(to, self._machine.bytes_at(address, count).ctypes.data, count)
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, self._machine.stack.pop()

    def cuPointerGetAttribute(self, attribute: int, pointer: int) -> tuple[Any, ...]:  # noqa: N802
        if attribute == self.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT:
            return CUresult.CUDA_SUCCESS, self.context_of_pointers
        assert attribute == self.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return CUresult.CUDA_SUCCESS, self.ordinal_of_pointers

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, self._machine.stack[-1]

    def cuEventCreate(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        self.events += 1
        return CUresult.CUDA_SUCCESS, FakeEvent(self._machine, flags)

    def cuEventRecord(self, event: FakeEvent, stream: int) -> tuple[Any, ...]:  # noqa: N802
        event.record(self._machine.streams[stream])
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamWaitEvent(  # noqa: N802
        self, stream: int, event: FakeEvent, flags: int
    ) -> tuple[Any, ...]:
        self._machine.streams[stream].wait_for_event(event)
        return (CUresult.CUDA_SUCCESS,)

    def cuEventSynchronize(self, event: FakeEvent) -> tuple[Any, ...]:  # noqa: N802
        event.synchronize()
        return (CUresult.CUDA_SUCCESS,)

    def cuEventQuery(self, event: FakeEvent) -> tuple[Any, ...]:  # noqa: N802
        passed = event.query()
        return (CUresult.CUDA_SUCCESS if passed else CUresult.CUDA_ERROR_NOT_READY,)

    def cuEventDestroy(self, event: FakeEvent) -> tuple[Any, ...]:  # noqa: N802
        self.events -= 1
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamIsCapturing(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        if stream not in self._machine.streams:
            return CUresult.CUDA_ERROR_INVALID_HANDLE, None
        return CUresult.CUDA_SUCCESS, int(self._machine.streams[stream].captured is not None)

    def cuCtxSynchronize(self) -> tuple[Any, ...]:  # noqa: N802
        self._machine.need_context("cuCtxSynchronize")
        self._machine.record("waited for the whole GPU")
        for stream in list(self._machine.streams.values()):
            stream.synchronize()
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.need_context("cuStreamBeginCapture")
        if "cuStreamBeginCapture" in self.refusing:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        assert mode == self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        assert not self._machine.streams[stream].queue, "the warm-up has not finished"
        assert not gc.isenabled(), "a collected object might call CUDA during the capture"
        self._machine.streams[stream].captured = []
        self._machine.record("capture begins")
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamEndCapture(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        fake = self._machine.streams[stream]
        captured, fake.captured = fake.captured, None
        assert captured is not None
        self._machine.record("capture ends")
        if "cuStreamEndCapture" in self.refusing:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None
        return CUresult.CUDA_SUCCESS, self._graph(captured)

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:  # noqa: N802
        if "cuGraphInstantiate" in self.refusing:
            return CUresult.CUDA_ERROR_INVALID_VALUE, None
        return CUresult.CUDA_SUCCESS, self._graph(self._machine.graphs[graph])

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.need_context("cuGraphLaunch")
        if "cuGraphLaunch" in self.refusing:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        for work in self._machine.graphs[graph]:
            self._machine.streams[stream].put(work)
        captured = tuple(work.__name__ for work in self._machine.graphs[graph])
        self._machine.record("replayed", *captured)
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphDestroy(self, graph: int) -> tuple[Any, ...]:  # noqa: N802
        del self._machine.graphs[graph]
        return (CUresult.CUDA_SUCCESS,)

    cuGraphExecDestroy = cuGraphDestroy  # noqa: N815

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:  # noqa: N802
        self._machine.need_context("cuModuleLoadData")
        self._machine.need_no_capture("cuModuleLoadData")
        assert image.endswith(b"\0"), "the driver would read on behind the PTX"
        if "cuModuleLoadData" in self.refusing:
            return CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, None
        number = self._machine.number()
        self._machine.modules.add(number)
        self._entries[number] = re.findall(rb"\.entry (\w+)\(", image)
        return CUresult.CUDA_SUCCESS, number

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any, ...]:  # noqa: N802
        assert name in self._entries[module], f"{name!r} is not in the PTX"
        return CUresult.CUDA_SUCCESS, (module, name.decode())

    def cuModuleUnload(self, module: int) -> tuple[Any, ...]:  # noqa: N802
        self._machine.need_context("cuModuleUnload")
        self._machine.modules.remove(module)
        return (CUresult.CUDA_SUCCESS,)

    def cuLaunchKernel(  # noqa: N802
        self,
        function: tuple[int, str],
        *sizes: Any,
    ) -> tuple[Any, ...]:
        """Queue the kernel that g++ compiled; pointers are followed when it runs."""
        from host_kernels import launch_on_host

        machine = self._machine
        machine.need_context("cuLaunchKernel")
        *grid_and_block, shared, stream, parameters, extra = sizes
        module, name = function
        assert module in machine.modules, "a kernel of a module that was unloaded"
        assert (*grid_and_block[1:3], *grid_and_block[4:], shared, extra) == (1, 1, 1, 1, 0, 0)
        blocks, threads = grid_and_block[0], grid_and_block[3]
        assert 0 < blocks < 2**31
        assert 0 < threads <= 1024
        values, types = parameters
        machine.record("launched", name, stream)

        def work() -> None:
            real = tuple(
                machine.pointer(value) if kind is ctypes.c_void_p else value
                for value, kind in zip(values, types, strict=True)
            )
            if name.startswith("rvos_copy"):
                # The argument is a table of addresses, which are followed too.
                words, total = real[1:3]
                addresses = machine.bytes_at(values[0], total // words * 8).view(np.uint64)
                followed = np.array([machine.pointer(int(a)) if a else 0 for a in addresses])
                real = (int(followed.ctypes.data), *real[1:])
            launch_on_host(name, blocks, threads, real, types)

        machine.streams[stream].put(work)
        return (CUresult.CUDA_SUCCESS,)

    def _graph(self, work: list[Work]) -> int:
        number = self._machine.number()
        self._machine.graphs[number] = list(work)
        return number


@dataclass(frozen=True)
class Gpu:
    """The stand-ins and their record; ``driver`` is one of ``DRIVERS``."""

    machine: Machine
    pycuda: FakePycuda
    bindings: FakeBindings
    driver: str = "pycuda"

    @property
    def libraries(self) -> CudaLibraries:
        pycuda = self.driver == "pycuda"
        driver = self.pycuda if pycuda else BindingsDriver(self.bindings)
        return CudaLibraries(driver, self.bindings, self.driver)

    def stream(self, handle: int) -> FakeStream:
        """Return the stand-in behind a stream of either driver."""
        return self.machine.streams[handle]

    def check_clean(self) -> None:
        """Check that everything was freed explicitly and within a context."""
        gc.collect()
        assert self.machine.leaks() == dict.fromkeys(self.machine.leaks(), 0)
        assert [entry for entry in self.machine.log if entry[0] == "leak"] == []
        assert self.machine.stack == []
        assert self.machine.pycuda_stack == []
