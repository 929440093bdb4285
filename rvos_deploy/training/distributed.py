"""What the processes of a run tell each other besides gradients.

Work that is shared by videos, or done by one process alone, takes as long as its data ask for. So
the others wait in a group of their own, whose limit is a day; the group of the gradients keeps its
half an hour, after which a process that hangs is noticed.
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
    """Call ``make`` in every process and give all results to all, in the order of the ranks.

    All processes must call it alike; none goes on before the last has finished.

    Args:
        fabric: launched.
        make: gives something that can be pickled.

    Raises:
        RvosError: that of the lowest rank whose ``make`` raised one; in every process, so that
            none waits for one that has given up. Or a process has ended without a word.
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
    """Call ``make`` in process 0 alone and give its result to all; they wait for it.

    Raises:
        RvosError: that of ``make``, in every process.
    """
    found: list[Any] = gather(fabric, lambda: make() if fabric.global_rank == 0 else None)
    made: _Made = found[0]
    return made


@lru_cache(maxsize=1)
def _waiting_group() -> Any:
    """Of all processes, over gloo: it needs no memory of a GPU, and waits without spinning."""
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
