"""Read the names of devices: ``cpu``, ``cuda`` and ``cuda:N``, as PyTorch writes them."""

from __future__ import annotations

import re

from rvos_deploy.errors import InputError

KNOWN_DEVICES = (
    "auto, cpu, cuda, cuda:N (N counts the GPUs that CUDA_VISIBLE_DEVICES shows, from 0)"
)


def cuda_ordinal(device: str) -> int | None:
    """Return the number of a GPU: 0 for ``cuda``, 1 for ``cuda:1``; None for another device.

    CUDA counts the GPUs that it shows to this process. ``CUDA_VISIBLE_DEVICES`` chooses them, by
    number or by UUID; a MIG instance is shown by its UUID alone.
    """
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", device, re.ASCII)
    return int(found[1] or 0) if found else None


def cuda_name(ordinal: int) -> str:
    """Return the name of a GPU: ``cuda`` for 0, ``cuda:1`` for 1."""
    return f"cuda:{ordinal}" if ordinal else "cuda"


def check_device(device: str) -> str:
    """Return a device's name for the command line. Raises InputError: there is no such name."""
    if device not in ("auto", "cpu") and cuda_ordinal(device) is None:
        raise InputError(f"--device '{device}' is unknown; known: {KNOWN_DEVICES}")
    return device
