"""A result that is still on its way from the device."""

from __future__ import annotations

import threading

from rvos_deploy.runtime.backends.base import Fetched, Fetching, Value
from rvos_deploy.runtime.finite import MapCheck


class Coming:
    """One value, waited for by whoever asks first, in whatever thread; from then on just there."""

    def __init__(self, fetching: Fetching, check: MapCheck | None = None) -> None:
        """``fetching``: of one value; ``check``: asked before it is given."""
        self._fetching: Fetching | None = fetching
        self._check = check
        self._value: Value = None
        self._lock = threading.Lock()

    def get(self) -> Value:
        """The value; waits until it is there.

        Raises BackendError when the device fails, or the value was made of what is no number.
        """
        if self._check is not None:
            self._check.require()
        with self._lock:
            if self._fetching is not None:
                (self._value,) = self._fetching.arrays()
                self._fetching = None
            return self._value

    def __reduce__(self) -> tuple[type[Coming], tuple[Fetching]]:
        """Results may be sent to other processes: the value goes, once it is there."""
        return Coming, (Fetched([self.get()]),)
