"""Keep models as ONNX Runtime optimised them, so that the next process opens them faster.

A model lies in the user's cache folder. Its name holds the key of the original and the hash of its
own bytes. Only bytes with that hash are parsed, from a file that no other user can have written. So
what is trusted is what this user computed from a bundle's hashed bytes. Whatever is wrong with the
cache, the original is opened instead.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rvos_deploy.cache_folder import cache_folder
from rvos_deploy.files import (
    create_temporary,
    discard,
    put_in_place,
    read_regular_file,
    sha256_file,
)

FOLDER = "onnxruntime-models"
MAXIMUM_MODEL_BYTES = 256 << 20
"""A larger model is not kept: to read and hash it takes about as long as to optimise it."""
MAXIMUM_BYTES = 1 << 30
"""Models beyond this sum are removed, the least recently used first."""


class OptimisedModel:
    """Find or keep the optimised form of one model."""

    def __init__(self, *key: str) -> None:
        """``key``: everything that the optimised form depends on."""
        self._key = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]

    def read(self) -> bytes | None:
        """Return the kept model; None if there is none that may be used."""
        for file in self._files():
            with suppress(OSError):
                content = read_regular_file(file, MAXIMUM_MODEL_BYTES, private=True)
                if file.name == self._name(hashlib.sha256(content).hexdigest()):
                    with suppress(OSError):  # a read-only cache may be used
                        os.utime(file)  # _remove_oldest reads the time of the last use
                    return content
        return None

    def remove(self) -> None:
        """Remove what is kept of the model, as far as possible. Raises nothing."""
        for file in self._files():
            with suppress(OSError):
                file.unlink()

    def _files(self) -> list[Path]:
        with suppress(OSError, RuntimeError):
            return sorted(_folder().glob(f"{self._key}.*.onnx"))
        return []

    @contextmanager
    def keeping(self) -> Iterator[Path | None]:
        """Yield a file to write the optimised model into, which is kept if the block succeeds.

        None: this machine keeps no models, or the folder cannot be written.
        """
        temporary = self._temporary()
        if temporary is None:
            yield None
            return
        try:
            yield temporary
            with suppress(OSError):
                if 0 < temporary.stat().st_size <= MAXIMUM_MODEL_BYTES:
                    self.remove()  # what could not be used
                    put_in_place(temporary, temporary.with_name(self._name(sha256_file(temporary))))
                    _remove_oldest(temporary.parent)
        finally:
            discard(temporary)

    def _temporary(self) -> Path | None:
        if not hasattr(os, "geteuid"):
            return None  # nothing says who wrote a file
        try:
            folder = _folder()
            folder.mkdir(parents=True, exist_ok=True)
            temporary = create_temporary(folder / f"{self._key}.onnx")
        except (OSError, RuntimeError):
            return None
        with suppress(OSError):
            temporary.chmod(0o600)
        return temporary

    def _name(self, digest: str) -> str:
        return f"{self._key}.{digest}.onnx"


def _folder() -> Path:
    return cache_folder() / FOLDER


def _remove_oldest(folder: Path) -> None:
    """Remove the least recently used models beyond ``MAXIMUM_BYTES``."""
    found = []
    for file in folder.iterdir():  # also what killed processes left
        with suppress(OSError):
            status = file.lstat()
            found.append((status.st_mtime, status.st_size, file))
    kept = 0
    for _, size, file in sorted(found, reverse=True):
        kept += size
        if kept > MAXIMUM_BYTES:
            with suppress(OSError):
                file.unlink()
