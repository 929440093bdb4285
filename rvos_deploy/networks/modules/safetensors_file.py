"""Read safetensors files."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rvos_deploy.errors import InputError


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, mapped into memory.

    Raises:
        InputError: the file is missing, not regular, damaged, or of another format.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist, or is not a regular file")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error})") from error
