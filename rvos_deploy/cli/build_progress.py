"""Show the progress of ``build-engine`` on a terminal, as :mod:`rvos_deploy.console.output`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rvos_deploy.progress import ShareProgress

if TYPE_CHECKING:
    from rich.console import Console

_PHASE_WIDTH = 36


@contextmanager
def build_progress(console: Console | None = None) -> Iterator[ShareProgress]:
    """Show a bar for each graph, on a terminal only.

    ``console``: the console that shows the bars; None: standard error.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    shown = console or Console(stderr=True)
    with Progress(
        TextColumn("{task.description:>14}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[phase]}"),
        console=shown,
        disable=not shown.is_terminal,
    ) as bar:
        tasks: dict[str, int] = {}

        def update(graph: str, phase: str, share: float, remaining: float | None) -> None:
            if graph not in tasks:
                tasks[graph] = bar.add_task(graph, total=1.0, phase="", left="")
            bar.update(
                bar.task_ids[tasks[graph]],
                completed=share,
                left=time_left(remaining),
                phase=phase[:_PHASE_WIDTH],
            )

        yield update


def time_left(seconds: float | None) -> str:
    """Return ``about 2 min left``; empty if the time is unknown, or nothing remains."""
    if seconds is None or seconds < 0.5:
        return ""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left"
