"""Define the contract of a CUDA driver: contexts, streams, events, memory and copies.

The contract is the part of ``pycuda.driver`` that this package uses, with pycuda's names. So pycuda
follows the contract as it is, and ``bindings_driver.py`` gives the same by ``cuda.bindings``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tensors import HostArray
from rvos_deploy.runtime.backends.cuda.memory import Allocation
from rvos_deploy.runtime.backends.cuda.staging import DriverEvent, DriverStream

DISABLE_TIMING = 2
"""CU_EVENT_DISABLE_TIMING: the flag of an event that only orders work, which is faster."""


class PrimaryContext(Protocol):
    """A reference to a GPU's primary context."""

    def push(self) -> object:
        """Make the context current in this thread."""

    def detach(self) -> object:
        """Give the reference back; the context must not be current any more."""


class CurrentContext(Protocol):
    """The stack of contexts of the calling thread."""

    def pop(self) -> object:
        """Take the current context off the stack."""


class DriverDevice(Protocol):
    """A GPU."""

    def name(self) -> str:
        """Return its name."""

    def compute_capability(self) -> tuple[int, int]:
        """Return the major and minor number."""

    def retain_primary_context(self) -> PrimaryContext:
        """Take a reference to the GPU's primary context."""


class Driver(Protocol):
    """A CUDA driver as ``pycuda.driver`` shows it. All but ``init`` and ``Device`` need a current
    context.

    Attributes:
        Error: what every call raises where CUDA fails.
        MemoryError: the kind of ``Error`` that ``mem_alloc`` raises where memory is short.
        Context: the calling thread's stack of contexts.
        Device: opens a GPU by its ordinal.
        Stream: makes a stream, of CUDA's flags.
        Event: makes an event, of CUDA's flags.
    """

    Error: type[Exception]
    MemoryError: type[Exception]
    Context: CurrentContext
    Device: Callable[[int], DriverDevice]
    Stream: Callable[[int], DriverStream]
    Event: Callable[[int], DriverEvent]

    def init(self) -> object:
        """Load and initialise the driver."""

    def mem_alloc(self, nbytes: int) -> Allocation:
        """Allocate memory on the GPU."""

    def mem_get_info(self) -> tuple[int, int]:
        """Return the free and the total memory of the GPU in bytes."""

    def pagelocked_empty(self, shape: int, dtype: type[np.uint8]) -> NDArray[np.uint8]:
        """Return a page-locked array, whose ``base`` frees the memory by ``free()``."""

    def memcpy_htod_async(self, dest: int, src: HostArray, stream: DriverStream) -> object:
        """Queue a copy of a page-locked array to the GPU."""

    def memcpy_dtoh_async(self, dest: HostArray, src: int, stream: DriverStream) -> object:
        """Queue a copy from the GPU into a page-locked array."""

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: DriverStream) -> object:
        """Queue a copy on the GPU."""
