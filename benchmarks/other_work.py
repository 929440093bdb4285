"""Measure how much of the machine other processes use, because their work makes times longer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)
"""Columns of idle time, and of waiting for a disk."""

DISTURBING = 0.2
"""Cores of other work from which times are marked as disturbed."""


@contextmanager
def other_work() -> Iterator[dict[str, float | None]]:
    """Yield a record that gets ``other_cores`` at the end of the block.

    It is the number of cores that other processes kept busy, on average; None where the system does
    not tell. Child processes of this one count as its own once they have ended.
    """
    found: dict[str, float | None] = {"other_cores": None}
    started, busy, own = time.perf_counter(), _busy_seconds(), _own_seconds()
    yield found
    seconds = time.perf_counter() - started
    now = _busy_seconds()
    if busy is not None and now is not None and seconds > 0:
        others = (now - busy) - (_own_seconds() - own)
        found["other_cores"] = max(0.0, others / seconds)


def _busy_seconds() -> float | None:
    """Return the seconds that all cores together have worked since the start of the system."""
    if not _STAT.is_file():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice.
    ticks = [
        int(value) for value in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    ]
    worked = sum(value for column, value in enumerate(ticks) if column not in _IDLE)
    return worked / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
