"""What a command needs beyond the base install, and what it settles before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rvos_deploy.errors import InputError


@contextmanager
def needs_extra(what: str, extras: str) -> Iterator[None]:
    """Turn a package that this block lacks into one line with the pip command."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("rvos_deploy"):
            raise  # our own fault, which no package mends
        raise InputError(
            f"{what} needs '{error.name}', which is not installed; "
            f"pip install 'rvos-deploy[{extras}]'"
        ) from error


def let_threads_sleep() -> None:
    """Keep OpenMP's threads from spinning while they wait; call it before torch is imported.

    Spinning threads make PyTorch several times slower as soon as anything else uses a core.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_hub_offline() -> None:
    """Keep open_clip's hub off the network; call it before open_clip is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
