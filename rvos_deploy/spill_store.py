"""Store arrays until the end of the clip: in memory up to a budget, then on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np

from rvos_deploy.closeable import Closeable
from rvos_deploy.environment import usable_memory_bytes
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.tensors import Scalar, Tensor

MAXIMUM_DEFAULT = 2**30
SHARE_OF_MEMORY = 8

_SPARE_DISK = 2**26
_MORE_DISK = "set TMPDIR to a larger disk, use --mode online, or fewer frames (--max-frames)"


def default_mask_budget() -> int:
    """Return the default budget in bytes: an eighth of the usable memory, at most 1 GiB."""
    memory = usable_memory_bytes()
    return min(MAXIMUM_DEFAULT, memory // SHARE_OF_MEMORY) if memory else MAXIMUM_DEFAULT


@dataclass(frozen=True)
class _Spilled:
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Scalar]
    nbytes: int


class SpillStore(Closeable):
    """Store arrays by number, in memory up to ``budget`` bytes, then in a memory-mapped file.

    The file is a nameless temporary file (``tempfile.TemporaryFile``): the system removes it when
    it is closed or the process ends, even by a crash. Freed space in it is reused.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: dict[int, Tensor | _Spilled] = {}
        self._next = 0
        self._file: IO[bytes] | None = None
        self._free: dict[int, list[int]] = {}
        self.bytes_in_memory = 0
        self.bytes_on_disk = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, array: Tensor) -> int:
        """Store a tensor, and return its number. On disk it becomes a NumPy array.

        Raises:
            InputError: the disk is full; the message says how much is needed and what else to do.
        """
        number, self._next = self._next, self._next + 1
        if self.bytes_in_memory + array.nbytes <= self._budget:
            self.bytes_in_memory += array.nbytes
            self._held[number] = array
        else:
            self._held[number] = self._spill(array)
        return number

    def pop(self, number: int) -> Tensor:
        """Return a tensor, and remove it from the store."""
        held = self._held.pop(number)
        if isinstance(held, _Spilled):
            self._free.setdefault(held.nbytes, []).append(held.offset)
            return np.array(self._map(held, "r"))
        self.bytes_in_memory -= held.nbytes
        return held

    def close(self) -> None:
        """Remove all tensors and the file."""
        self._held.clear()
        self._free.clear()
        self.bytes_in_memory = self.bytes_on_disk = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self, tensor: Tensor) -> _Spilled:
        array = np.asarray(tensor)
        if self._file is None:
            try:
                self._file = tempfile.TemporaryFile(prefix="rvos-deploy-")  # noqa: SIM115
            except OSError as error:
                raise InputError(
                    f"{_disk_needed(array.nbytes)}: {error.strerror}; {_MORE_DISK}"
                ) from error
        record = _Spilled(self._allocate(array.nbytes), array.shape, array.dtype, array.nbytes)
        mapped = self._map(record, "r+")
        mapped[...] = array
        mapped.flush()
        return record

    def _allocate(self, nbytes: int) -> int:
        """Return the offset of a freed piece of the file, or of a new piece at its end."""
        assert self._file is not None
        if self._free.get(nbytes):
            return self._free[nbytes].pop()
        self._require_disk(nbytes)
        offset = self.bytes_on_disk
        try:
            if hasattr(os, "posix_fallocate"):
                # Reserved now, because writing a mapped page to a full disk kills the process.
                os.posix_fallocate(self._file.fileno(), offset, nbytes)
            else:
                self._file.truncate(offset + nbytes)
        except OSError as error:
            raise InputError(f"{_disk_needed(nbytes)}: {error.strerror}; {_MORE_DISK}") from error
        self.bytes_on_disk += nbytes
        return offset

    def _require_disk(self, nbytes: int) -> None:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if free < nbytes + _SPARE_DISK:
            raise InputError(
                f"{_disk_needed(nbytes)}, and {folder} has {free / 2**20:.0f} MiB left; "
                f"{_MORE_DISK}"
            )

    def _map(
        self, record: _Spilled, mode: Literal["r", "r+"]
    ) -> np.memmap[tuple[int, ...], np.dtype[Scalar]]:
        assert self._file is not None
        return np.memmap(self._file, record.dtype, mode, record.offset, record.shape)


def _disk_needed(nbytes: int) -> str:
    return f"waiting for the end of the clip takes {nbytes / 2**20:.1f} MiB per frame"
