"""Exchange objects between the processes of a run.

Work that is divided by videos, or done by one process, may take long. The other processes wait in a
separate group with a limit of a day. The group of the gradients keeps its limit of half an hour, so
a process that hangs is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch.distributed
from lightning_fabric import Fabric

from rvos_deploy.errors import RvosError

LONGEST_WAIT = timedelta(days=1)

_Made = TypeVar("_Made")


def gather(fabric: Fabric, make: Callable[[], _Made]) -> list[_Made]:
    """Call ``make`` in every process, and return all results, ordered by rank.

    All processes must make the same call, and each waits for the last one.

    Args:
        fabric: launched.
        make: returns an object that can be pickled.

    Raises:
        RvosError: the error of the lowest rank whose ``make`` raised one, in every process, so no
            process waits for a failed one. Or another process has ended.
    """
    if fabric.world_size == 1:
        return [make()]
    mine: _Made | RvosError
    try:
        mine = make()
    except RvosError as error:
        mine = error
    everyone: list[Any] = [None] * fabric.world_size
    try:
        torch.distributed.all_gather_object(everyone, mine, group=_waiting_group())
    except RuntimeError as error:
        raise RvosError(
            "another process of the run has ended, or was not heard of for "
            f"{LONGEST_WAIT.days} day; its own last lines say why. Go on with --resume"
        ) from error
    for found in everyone:
        if isinstance(found, RvosError):
            raise found
    return everyone


def on_first(fabric: Fabric, make: Callable[[], _Made]) -> _Made:
    """Call ``make`` in process 0 only, and return its result in every process.

    Raises:
        RvosError: the error of ``make``, in every process.
    """
    found: list[Any] = gather(fabric, lambda: make() if fabric.global_rank == 0 else None)
    made: _Made = found[0]
    return made


@lru_cache(maxsize=1)
def _waiting_group() -> Any:
    """Return a group of all processes over gloo, which needs no GPU memory and does not spin."""
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
