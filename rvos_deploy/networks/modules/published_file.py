"""Read a published checkpoint without unpickling it."""

from __future__ import annotations

import pickle
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from rvos_deploy.errors import InputError
from rvos_deploy.networks.modules.safetensors_file import read_safetensors

_ZIP, _LEGACY, _PICKLE = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80"
"""First bytes of files by ``torch.save``, by ``torch.save`` before 1.6, and by plain pickle."""

CONVERT = (
    "import sys, pickle, torch, safetensors.torch as s; f = sys.argv[1]; "
    "d = {load}; d = d.get('model', d); "
    "s.save_file({{k: torch.as_tensor(v).clone() for k, v in d.items()}}, sys.argv[2])"
)
"""Program that converts a pickle, read by ``load``, to safetensors. It runs code in the pickle."""
LOAD_PICKLE = "pickle.load(open(f, 'rb'), encoding='latin1')"
LOAD_TORCH = "torch.load(f, 'cpu', weights_only=False)"


def read_published(file: Path, option: str, allowed: tuple[type[Any], ...] = ()) -> dict[str, Any]:
    """Return the weights in a file, whose content decides its format; no code in it runs.

    Args:
        file: a published file.
        option: the option by which the user named it, for errors.
        allowed: classes that a ``torch.save`` file may hold beside tensors and plain values.

    Raises:
        InputError: the file is missing, unreadable or damaged, or has a format that could run code;
            then the message has a command that converts it.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist; {option} needs a .safetensors or .pth file")
    try:
        with file.open("rb") as stream:
            head = stream.read(len(_LEGACY))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    if head.startswith((_ZIP, _LEGACY)):
        return _read_torch(file, head.startswith(_ZIP), allowed)
    if head.startswith(_PICKLE):
        raise InputError(_convert(file, "is a pickle, as in Mask2Former's model zoo,", LOAD_PICKLE))
    try:
        return read_safetensors(file)
    except InputError as error:
        raise InputError(
            f"{file} is neither a safetensors nor a torch.save file, or is damaged "
            f"({error.__cause__ or error}); get it again"
        ) from error


def _read_torch(file: Path, zipped: bool, allowed: tuple[type[Any], ...]) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([*allowed]):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise InputError(_convert(file, "holds more than tensors,", LOAD_TORCH)) from error
    except Exception as error:  # torch raises many kinds of errors on damaged files
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{file} cannot be read, it may be damaged ({cause}); get it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict):
        raise InputError(f"{file} holds a {type(state).__name__}, not a dictionary of weights")
    return state


def _convert(file: Path, what: str, load: str) -> str:
    return (
        f"{file} {what} and loading it could run code; if you trust where it is from, convert it: "
        f'python -c "{CONVERT.format(load=load)}" '
        f"{quote(str(file))} {quote(str(file.with_suffix('.safetensors')))}"
    )
