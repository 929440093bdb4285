"""Mask features that wait for the end of the clip: in memory up to a budget, then on disk."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError

Array = NDArray[Any]
DEFAULT_BUDGET = 2**30
"""Bytes of mask features kept in memory."""


@dataclass(frozen=True)
class _Spilled:
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class MaskFeatureStore:
    """Arrays by number, in memory up to ``budget`` bytes, beyond it memory-mapped from a file.

    The file is a nameless temporary one (``tempfile.TemporaryFile``): the system removes it when
    it is closed or the process ends, however that happens.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self._budget = budget
        self._held: dict[int, Array | _Spilled] = {}
        self._next = 0
        self._file: IO[bytes] | None = None
        self._end = 0
        self.bytes_in_memory = 0

    @property
    def bytes_on_disk(self) -> int:
        """Size of the spill file."""
        return self._end

    def put(self, array: Array) -> int:
        """Keep an array; returns its number.

        Raises:
            InputError: when the disk is full; says how much is needed and what else to do.
        """
        number, self._next = self._next, self._next + 1
        if self.bytes_in_memory + array.nbytes <= self._budget:
            self.bytes_in_memory += array.nbytes
            self._held[number] = array
        else:
            self._held[number] = self._spill(array)
        return number

    def take(self, number: int) -> Array:
        """Return an array and forget it."""
        held = self._held.pop(number)
        if isinstance(held, _Spilled):
            return np.array(self._map(held, "r"))
        self.bytes_in_memory -= held.nbytes
        return held

    def close(self) -> None:
        """Forget everything and remove the file."""
        self._held.clear()
        self.bytes_in_memory = 0
        if self._file is not None:
            self._file.close()
            self._file = None
            self._end = 0

    def _spill(self, array: Array) -> _Spilled:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if free < array.nbytes + 2**26:
            raise InputError(
                f"offline mode needs {array.nbytes / 2**20:.0f} MiB a frame for mask features and "
                f"{folder} has {free / 2**20:.0f} MiB left; set TMPDIR to a larger disk, use "
                "--mode online (with --lookahead), or fewer frames (--max-frames)"
            )
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="rvos-deploy-")  # noqa: SIM115
        record = _Spilled(self._end, array.shape, array.dtype)
        self._end += array.nbytes
        self._file.truncate(self._end)
        mapped = self._map(record, "r+")
        mapped[...] = array
        mapped.flush()
        return record

    def _map(self, record: _Spilled, mode: Any) -> np.memmap[Any, Any]:
        assert self._file is not None
        return np.memmap(self._file, record.dtype, mode, record.offset, record.shape)

    def __enter__(self) -> MaskFeatureStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
