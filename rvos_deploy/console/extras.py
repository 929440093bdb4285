"""Check extras of the installation, and set environment variables before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rvos_deploy.errors import InputError


@contextmanager
def needs_extra(feature: str, extras: str) -> Iterator[None]:
    """Turn a failed import in this block into an InputError with the pip command."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("rvos_deploy"):
            raise  # a bug of this package, which no installation repairs
        raise InputError(
            f"{feature} needs '{error.name}', which is not installed; "
            f"pip install 'rvos-deploy[{extras}]'"
        ) from error


def let_threads_sleep() -> None:
    """Keep waiting OpenMP threads from spinning. Call this before torch is imported.

    Spinning threads make PyTorch several times slower when another process uses a core.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_hub_offline() -> None:
    """Keep open_clip's hub off the network. Call this before open_clip is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
