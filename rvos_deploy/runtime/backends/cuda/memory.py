"""Pools of GPU memory and of page-locked host memory, recycled by size.

The callers hold ``CudaDevice.lock`` and have the device's context current.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.driver_calls import Handle

if TYPE_CHECKING:
    from rvos_deploy.runtime.backends.cuda.driver import Driver

_MINIMUM_SIZE = 512
_LARGE = 2**21
_MOST_UNKNOWN = 8
"""Returned blocks with unknown readers for which the host waits, all at once."""


class Allocation(Protocol):
    """Memory that the driver allocated on the GPU."""

    def __int__(self) -> int:
        """Return the device address."""

    def free(self) -> None:
        """Free the memory."""


@dataclass(eq=False)
class Block:
    """An allocation of the driver.

    Args:
        memory: None after it was freed.
        address: on the device.
        size: in bytes.
        readers: events behind other libraries' work that reads the block, by stream handle.
        unknown_readers: whether other libraries may read the block on unknown streams.
    """

    memory: Allocation | None
    address: int
    size: int
    readers: dict[int, Handle] = field(default_factory=dict)
    unknown_readers: bool = False

    def free(self) -> None:
        """Return the memory to the driver."""
        memory, self.memory = self.memory, None
        if memory is not None:
            memory.free()


class DeviceBuffer:
    """Memory on the GPU. The pool recycles the buffer once nothing references it."""

    def __init__(self, block: Block, returned: deque[Block]) -> None:
        self.block, self._returned = block, returned

    @property
    def address(self) -> int:
        """The device address. Raises BackendError: the device was closed."""
        if self.block.memory is None:
            raise BackendError(
                "this result lay on the GPU and was freed with its segmenter; take it to the host "
                "(numpy.asarray) or copy it before the segmenter is closed"
            )
        return self.block.address

    def __del__(self) -> None:
        # Any thread may run this at any moment, so it neither calls CUDA nor takes a lock.
        self._returned.append(self.block)


class ReaderWaits(Protocol):
    """Waits for other libraries' work that reads blocks (see ``readers.py``)."""

    def let_wait(self, stream: int, block: Block) -> None:
        """Make work queued on a stream from now on wait for a block's readers."""

    def wait(self, blocks: Sequence[Block]) -> None:
        """Wait on the host until nothing reads the blocks any more."""


class DevicePool:
    """GPU memory, allocated by the driver and recycled by size.

    Args:
        driver: allocates and frees.
        synchronize: waits for all queued work; called before idle memory is freed.
        readers: waits for other libraries' work.
        compute: returns the handle of the stream whose work writes into new buffers.
    """

    def __init__(
        self,
        driver: Driver,
        synchronize: Callable[[], None],
        readers: ReaderWaits,
        compute: Callable[[], int],
    ) -> None:
        self.driver, self._synchronize = driver, synchronize
        self._readers, self._compute = readers, compute
        self._unknown: list[Block] = []
        self._blocks: list[Block] = []
        self._idle: dict[int, list[Block]] = {}
        self._returned: deque[Block] = deque()

    @property
    def allocated_bytes(self) -> int:
        """The GPU memory that the pool holds, in use or idle."""
        return sum(block.size for block in self._blocks)

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Return a buffer of at least ``nbytes`` bytes.

        Raises:
            BackendError: the GPU is out of memory.
        """
        size = rounded_size(nbytes)
        self._collect()
        idle = self._idle.get(size)
        if not idle and len(self._unknown) >= _MOST_UNKNOWN:
            self._wait_for_unknown()
            idle = self._idle.get(size)
        return DeviceBuffer(self._reused(idle) if idle else self._new_block(size), self._returned)

    def free(self) -> None:
        """Free all memory, also where freeing one block fails."""
        blocks, self._blocks = self._blocks, []
        with ExitStack() as stack:
            for block in blocks:
                stack.callback(block.free)
            self._idle.clear()
            self._unknown.clear()
            self._returned.clear()
            self._readers.wait(blocks)

    def _reused(self, idle: list[Block]) -> Block:
        """Take the newest idle block that nothing reads, else the oldest one."""
        block = next((block for block in reversed(idle) if not block.readers), idle[0])
        idle.remove(block)
        self._readers.let_wait(self._compute(), block)
        return block

    def _wait_for_unknown(self) -> None:
        """Wait until all returned blocks can be used again."""
        self._readers.wait(self._unknown)
        for block in self._unknown:
            self._idle.setdefault(block.size, []).append(block)
        self._unknown.clear()

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            if block.unknown_readers:
                self._unknown.append(block)
                continue
            self._idle.setdefault(block.size, []).append(block)

    def _new_block(self, size: int) -> Block:
        for attempt in range(2):
            try:
                memory = self.driver.mem_alloc(size)
            except self.driver.MemoryError:
                if attempt == 0:
                    self._free_idle()
                continue
            block = Block(memory, int(memory), size)
            self._blocks.append(block)
            return block
        free, total = self.driver.mem_get_info()
        raise BackendError(
            f"GPU memory is short: {size / 2**20:.0f} MiB are needed, {free / 2**20:.0f} of "
            f"{total / 2**20:.0f} MiB are free; use a smaller --size, fewer expressions at once, "
            "--mode online, or end other programs on the GPU (nvidia-smi lists them)"
        )

    def _free_idle(self) -> None:
        """Free idle blocks after all queued work has finished."""
        self._synchronize()
        self._collect()
        self._wait_for_unknown()
        idle = [block for blocks in self._idle.values() for block in blocks]
        self._readers.wait(idle)
        for block in idle:
            self._blocks.remove(block)
            block.free()
        self._idle.clear()


class PinnedPool:
    """Page-locked host memory, allocated by the driver and recycled by size."""

    def __init__(self, driver: Driver) -> None:
        """``driver``: allocates and frees."""
        self.driver = driver
        self._arrays: list[NDArray[np.uint8]] = []
        self._idle: dict[int, list[NDArray[np.uint8]]] = {}

    def acquire(self, nbytes: int) -> NDArray[np.uint8]:
        """Return a page-locked array uint8 of at least ``nbytes`` bytes."""
        size = rounded_size(nbytes)
        idle = self._idle.get(size)
        if idle:
            return idle.pop()
        array = self.driver.pagelocked_empty(size, np.uint8)
        self._arrays.append(array)
        return array

    def release(self, array: NDArray[np.uint8]) -> None:
        """Recycle an array that no queued work touches any more."""
        self._idle.setdefault(len(array), []).append(array)

    def free(self) -> None:
        """Free all arrays, also where freeing one of them fails."""
        with ExitStack() as stack:
            for array in self._arrays:
                stack.callback(array.base.free)  # type: ignore[union-attr]
            self._arrays.clear()
            self._idle.clear()


def rounded_size(nbytes: int) -> int:
    """Round up to a size that the pools keep: a power of two, or multiples of 2 MiB above that."""
    if nbytes > _LARGE:
        return -(-nbytes // _LARGE) * _LARGE
    return max(_MINIMUM_SIZE, 1 << (max(1, nbytes) - 1).bit_length())
