"""Masks of a frame that a device may still be computing or sending."""

from __future__ import annotations

import threading

from rvos_deploy.graph_io.tensors import FinishedCopy, HostArray, HostCopy
from rvos_deploy.runtime.finite import MapCheck


class PendingMasks:
    """One array on its way to the host. Whoever asks first waits for it, in any thread."""

    def __init__(self, copy: HostCopy, check: MapCheck | None = None) -> None:
        """``copy``: of one array; ``check``: asked before the array is given."""
        self._copy: HostCopy | None = copy
        self._check = check
        self._array: HostArray | None = None
        self._lock = threading.Lock()

    def get(self) -> HostArray:
        """Wait for the array, and return it.

        Raises BackendError: the device failed, or the masks were made of NaN or infinity.
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
        """Results may be sent to other processes: the array goes, once it is there."""
        return PendingMasks, (FinishedCopy([self.get()]),)
