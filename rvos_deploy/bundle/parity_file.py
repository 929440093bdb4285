"""Read ``parity.npz``: arrays in a zip file, whose sizes are checked before allocation."""

from __future__ import annotations

import math
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from rvos_deploy.errors import BundleError, one_line

MAXIMUM_ARRAYS = 4096
MAXIMUM_BYTES = 256 << 20
"""Limit of all unpacked arrays together. Those of the ``large`` preset have 25 MB."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# bz2 and lzma unpack whole chunks, whatever size the entry states.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_arrays(content: bytes, path: Path) -> dict[str, NDArray[Any]]:
    """Read arrays of an ``.npz`` file by name: numbers and truth values, nothing pickled.

    Args:
        content: the bytes of the file, already hashed.
        path: path of the file, for messages.

    Raises:
        BundleError: the file is damaged, or larger than any export writes it.
    """
    try:
        return _read(content)
    except Exception as error:
        # zipfile, zlib and NumPy's header parser raise a dozen kinds of errors, MemoryError
        # included.
        reason = one_line(error) or type(error).__name__
        raise BundleError(
            f"{path} is damaged ({reason}); copy the bundle again, or export again"
        ) from error


def _read(content: bytes) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        entries = archive.infolist()
        if len(entries) > MAXIMUM_ARRAYS:
            raise ValueError(f"{len(entries)} arrays, at most {MAXIMUM_ARRAYS}")
        total = sum(entry.file_size for entry in entries)
        if total > MAXIMUM_BYTES:
            raise ValueError(f"{total} bytes unpacked, at most {MAXIMUM_BYTES}")
        arrays: dict[str, NDArray[Any]] = {}
        for entry in entries:
            if entry.compress_type not in _COMPRESSIONS:
                raise ValueError(f"{entry.filename} is compressed by method {entry.compress_type}")
            name = entry.filename.removesuffix(".npy")
            arrays[name] = _array(archive.read(entry), name)
        return arrays


def _array(content: bytes, name: str) -> NDArray[Any]:
    file = BytesIO(content)
    read_header = _HEADERS.get(npy.read_magic(file))
    if read_header is None:
        raise ValueError(f"{name} has an unknown version of NumPy's format")
    shape, by_columns, dtype = read_header(file)
    if dtype.kind not in "biuf" or dtype.subdtype is not None:
        raise ValueError(f"{name} holds {dtype}, not numbers")
    start = file.tell()
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"{name} has {len(content) - start} bytes, not those of {list(shape)}")
    flat = np.frombuffer(content, dtype, offset=start)
    return flat.reshape(shape, order="F" if by_columns else "C")
