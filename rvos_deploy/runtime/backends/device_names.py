"""Read the names of devices: ``cpu``, ``cuda``, ``cuda:N`` (as PyTorch writes them), and UUIDs."""

from __future__ import annotations

import re

from rvos_deploy.errors import InputError
from rvos_deploy.runtime.backends.gpu import find_gpu, gpu_count, gpu_of_uuid

KNOWN_GPUS = (
    "cuda, cuda:N (N counts the GPUs that CUDA_VISIBLE_DEVICES shows, from 0), and UUIDs as "
    "nvidia-smi -L lists them, GPU-... or MIG-..."
)
KNOWN_DEVICES = f"auto, cpu, {KNOWN_GPUS}"

_HEX = r"[0-9a-fA-F]"
_UUID = re.compile(rf"(?:GPU|MIG)-{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}")


def cuda_ordinal(device: str) -> int | None:
    """Return the number of a GPU: 0 for ``cuda``, 1 for ``cuda:1``; None for another device.

    CUDA counts the GPUs that it shows to this process. ``CUDA_VISIBLE_DEVICES`` chooses them, by
    number or by UUID; a MIG instance is shown by its UUID alone. The driver finds the number of a
    UUID.

    Raises:
        InputError: CUDA shows no GPU of this UUID.
    """
    if _UUID.fullmatch(device):
        return gpu_of_uuid(device)
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", device, re.ASCII)
    return int(found[1] or 0) if found else None


def cuda_name(ordinal: int) -> str:
    """Return the name of a GPU: ``cuda`` for 0, ``cuda:1`` for 1."""
    return f"cuda:{ordinal}" if ordinal else "cuda"


def plain_device(device: str) -> str:
    """Return ``cuda`` or ``cuda:N`` in place of a UUID, and other names unchanged.

    Raises:
        InputError: CUDA shows no GPU of this UUID.
    """
    return cuda_name(gpu_of_uuid(device)) if _UUID.fullmatch(device) else device


def check_device(device: str) -> str:
    """Return a device's name for the command line, without a UUID.

    Raises:
        InputError: there is no such name, or CUDA shows no GPU of this UUID.
    """
    if device not in ("auto", "cpu") and cuda_ordinal(device) is None:
        raise InputError(f"--device '{device}' is unknown; known: {KNOWN_DEVICES}")
    return plain_device(device)


def check_gpu(device: str) -> str:
    """Return the name of a GPU for the command line, without a UUID.

    Raises:
        InputError: this is no GPU's name, or CUDA shows no such GPU, but others. Where CUDA shows
            none, a first GPU is no error yet: some targets need none.
    """
    ordinal = cuda_ordinal(device)
    if ordinal is None:
        raise InputError(f"--device '{device}' is no GPU; known: {KNOWN_GPUS}")
    if ordinal > 0 and find_gpu(ordinal) is None:
        count = gpu_count()
        shown = f"only cuda:0 to cuda:{count - 1}" if count > 1 else "only cuda:0"
        raise InputError(
            f"--device '{device}': CUDA shows {shown if count else 'no GPU'} to this process; "
            "nvidia-smi -L lists the GPUs, CUDA_VISIBLE_DEVICES chooses among them"
        )
    return cuda_name(ordinal)
