"""Show a batch while it runs, on a terminal only."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rvos_deploy.batch.schedule import Running, Show
from rvos_deploy.batch.status_file import State, VideoStatus
from rvos_deploy.redaction import redact

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_RUNNING = 16
_MOST_FAILED = 4
_STATES: tuple[State, ...] = ("done", "damaged", "failed", "running", "waiting")


@contextmanager
def live_table(statuses: Callable[[], Sequence[VideoStatus]]) -> Iterator[Show | None]:
    """Show counts, running videos and the last failures on standard error.

    Yields the function that takes the running videos; None without a terminal. ``statuses``
    returns the state of every video.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False, redirect_stdout=False) as live:
        yield lambda running: live.update(draw(statuses(), running), refresh=True)


def draw(statuses: Sequence[VideoStatus], running: Sequence[Running]) -> RenderableType:
    """Return the counts, a row for each running video, and the last failures."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("video", no_wrap=True, overflow="ellipsis", max_width=40)
    table.add_column("phase")
    for title in ("frames", "fps", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in running[:_MOST_RUNNING]:
        total = "?" if one.total is None or one.done > one.total else str(one.total)
        rate = f"{one.done / one.seconds:.1f}" if one.done and one.seconds else ""
        frames = f"{one.done}/{total}" if one.done else ""
        table.add_row(Text(one.name), one.phase, frames, rate, f"{one.seconds:.0f} s")
    more = len(running) - _MOST_RUNNING
    if more > 0:
        table.add_row(f"and {more} more")
    failed = [one for one in statuses if one.state in ("damaged", "failed")][-_MOST_FAILED:]
    lines = [Text(failure_line(one), no_wrap=True, overflow="ellipsis") for one in failed]
    return Group(Text(count_line(statuses)), *([table] if running else []), *lines)


def count_line(statuses: Sequence[VideoStatus]) -> str:
    """Return the counts of all states that occur: ``20 videos: 18 done, 1 damaged, 1 failed``."""
    counts = Counter(one.state for one in statuses)
    parts = [f"{counts[state]} {state}" for state in _STATES if counts[state]]
    noun = "video" if len(statuses) == 1 else "videos"
    return f"{len(statuses)} {noun}: " + ", ".join(parts)


def failure_line(one: VideoStatus) -> str:
    """Say in one line why a video is damaged or failed; most errors name it themselves."""
    video, error = redact(one.video), one.error or "unknown"
    return f"{one.state}: {error if video in error else f'{video}: {error}'}"
