"""What commands print: progress on a terminal, tables, JSON files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 120
"""Columns of a table in a pipe or file, where Rich would cut it to 80."""


@contextmanager
def frame_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar with frames per second, on a terminal only; takes phase, frames done and total."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:>6}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.fields[known]} frames"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        tasks: dict[str, Any] = {}

        def update(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, known="?", rate="")
            task = bar.tasks[tasks[phase]]
            rate = f"{done / task.elapsed:.1f} fps" if task.elapsed else ""
            # Headers lie: a total that was passed is no total.
            honest = total if total is not None and done <= total else None
            bar.update(task.id, completed=done, total=honest, known=honest or "?", rate=rate)

        yield update


@contextmanager
def step_progress() -> Iterator[Callable[[str], None]]:
    """A spinner naming the step under way, on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: None
        return
    with console.status("starting") as status:
        yield status.update


def result_console() -> Console:
    """Where tables go: as wide as the terminal, or as wide as they need in a pipe or file."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def counted(count: int, noun: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def mebibytes(count: float) -> str:
    """Bytes for a person: ``13.2 MiB``, ``1.50 GiB``."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.1f} MiB"
