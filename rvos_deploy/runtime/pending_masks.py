"""Hold masks of a frame that a device may still be computing or copying."""

from __future__ import annotations

import threading

from rvos_deploy.graph_io.tensors import FinishedCopy, HostArray, HostCopy
from rvos_deploy.runtime.finite import MapCheck


class PendingMasks:
    """Hold one array that is being copied to the host. The first caller, in any thread, waits."""

    def __init__(self, copy: HostCopy, check: MapCheck | None = None) -> None:
        """``copy``: the copy of one array; ``check``: runs before the array is returned."""
        self._copy: HostCopy | None = copy
        self._check = check
        self._array: HostArray | None = None
        self._lock = threading.Lock()

    def get(self) -> HostArray:
        """Wait for the array, and return it.

        Raises BackendError: the device failed, or the mask logits hold NaN or infinity.
        """
        if self._check is not None:
            self._check.require()
        with self._lock:
            if self._copy is not None:
                (self._array,) = self._copy.arrays()
                self._copy = None
            assert self._array is not None
            return self._array

    def __reduce__(self) -> tuple[type[PendingMasks], tuple[FinishedCopy]]:
        """Wait for the array and pickle it, so that results can be sent to other processes."""
        return PendingMasks, (FinishedCopy([self.get()]),)
