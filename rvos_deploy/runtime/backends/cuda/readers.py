"""Wait for other libraries' work that reads memory of the pool, before the memory is used again.

A consumer may drop a tensor while its kernels that read the tensor are still queued on a stream of
its own. Only work on ``CudaDevice.compute`` is ordered by itself. So:

* An export by DLPack keeps the consumer's stream. When the consumer releases the export, an event
  is recorded on that stream, and the next user of the memory on ``compute`` waits for the event.
* Where the stream is unknown, the memory is used again only after the host has waited for the whole
  GPU. The stream is unknown for the CUDA array interface, which never says when a consumer is done;
  for DLPack's -1 (the consumer synchronises); and for 2, the calling thread's own stream, because
  another thread may release the export. The host waits once for many blocks (``memory.py``).

A consumer must keep its stream until it has released its tensors.

NOT RUN: it needs a GPU (see device.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.driver_calls import LEGACY_DEFAULT_STREAM, Handle, call
from rvos_deploy.runtime.backends.cuda.memory import Block, DeviceBuffer

NO_WAIT = -1
"""DLPack: the consumer synchronises; nothing waits."""
_PER_THREAD_STREAM = 2


def stream_handle(stream: int | None) -> int:
    """Return the handle of the stream that a consumer names to ``__dlpack__``.

    None and 0 mean CUDA's legacy default stream, whose handle is 1.
    """
    return stream or LEGACY_DEFAULT_STREAM


class Export:
    """The owner of exported memory: exists until the consumer releases the export."""

    def __init__(self, driver: ModuleType, memory: DeviceBuffer, stream: int | None) -> None:
        """Keep the memory.

        Args:
            driver: ``cuda.bindings.driver``, with the device's context current.
            memory: of the pool.
            stream: as the consumer names it to ``__dlpack__``.
        """
        self._driver, self._memory = driver, memory
        self._stream = stream_handle(stream)
        self._context = call(driver, "cuCtxGetCurrent")

    def __del__(self) -> None:
        # The consumer's thread runs this, or any thread that collects garbage. It takes no lock.
        block = self._memory.block
        if block.memory is None:
            return  # the device was closed
        if self._stream in (NO_WAIT, _PER_THREAD_STREAM) or not self._record(block):
            block.unknown_readers = True

    def _record(self, block: Block) -> bool:
        """Record the end of the consumer's queued work; tell whether that could be done."""
        driver = self._driver
        try:
            call(driver, "cuCtxPushCurrent", self._context)
            try:
                if int(call(driver, "cuStreamIsCapturing", driver.CUstream(self._stream))):
                    return False  # a stream that waits for an event of a capture joins it
                event = block.readers.get(self._stream)
                if event is None:
                    flags = int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
                    event = block.readers[self._stream] = call(driver, "cuEventCreate", flags)
                call(driver, "cuEventRecord", event, driver.CUstream(self._stream))
            finally:
                call(driver, "cuCtxPopCurrent")
        except BackendError:
            return False
        return True


class Readers:
    """Waits for other libraries' work on blocks. The device's context must be current."""

    def __init__(self, driver: ModuleType) -> None:
        """``driver``: ``cuda.bindings.driver``."""
        self._driver = driver

    def let_wait(self, stream: int, block: Block) -> None:
        """Make work queued on a stream from now on wait for a block's readers."""
        for event in self._events(block):
            call(self._driver, "cuStreamWaitEvent", self._driver.CUstream(stream), event, 0)
            call(self._driver, "cuEventDestroy", event)  # CUDA keeps it until it has passed

    def wait(self, blocks: Sequence[Block]) -> None:
        """Wait on the host until nothing reads the blocks any more.

        Raises BackendError: CUDA failed.
        """
        if any(block.unknown_readers for block in blocks):
            call(self._driver, "cuCtxSynchronize")
        for block in blocks:
            block.unknown_readers = False
            for event in self._events(block):
                call(self._driver, "cuEventSynchronize", event)
                call(self._driver, "cuEventDestroy", event)

    def _events(self, block: Block) -> list[Handle]:
        events = list(block.readers.values())
        block.readers.clear()
        return events
