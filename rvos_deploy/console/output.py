"""Print progress on a terminal, tables, counts and sizes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvos_deploy.progress import CountProgress, StepProgress, ignore_counts, ignore_steps

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rvos_deploy.graph_io.precision_hint import PrecisionHint
    from rvos_deploy.video.live import LiveReport

# Seconds behind a live source that are told.
_NOTICEABLE = 1.0

PIPE_WIDTH = 120
"""Columns of a table in a pipe or file, where Rich would limit it to 80."""


def frame_progress() -> AbstractContextManager[CountProgress]:
    """Show a bar of frames for each phase, on a terminal only."""
    return count_progress("frames", "fps")


@contextmanager
def count_progress(unit: str, rate_unit: str) -> Iterator[CountProgress]:
    """Show a bar with its rate for each phase, on a terminal only."""
    if not _on_terminal():
        yield ignore_counts
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:>6}"),
        BarColumn(),
        TextColumn(f"{{task.completed}}/{{task.fields[known]}} {unit}"),
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
            rate = f"{done / task.elapsed:.1f} {rate_unit}" if task.elapsed else ""
            # A video's header may state too few frames, so an exceeded total is dropped.
            valid = total if total is not None and done <= total else None
            bar.update(task.id, completed=done, total=valid, known=valid or "?", rate=rate)

        yield update


@contextmanager
def byte_progress() -> Iterator[CountProgress]:
    """Show a bar of bytes for each file that is fetched, on a terminal only."""
    if not _on_terminal():
        yield ignore_counts
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        tasks: dict[str, Any] = {}

        def update(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                # Bytes of an earlier transfer must not count towards the speed.
                tasks[name] = bar.add_task(name, total=total, completed=done)
            bar.update(tasks[name], completed=done, total=total)

        yield update


@contextmanager
def step_progress() -> Iterator[StepProgress]:
    """Show a spinner with the name of the running step, on a terminal only."""
    if not _on_terminal():
        yield ignore_steps
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


def _on_terminal() -> bool:
    """Tell whether standard error is a terminal, without Rich, which is slow to import."""
    return sys.stderr is not None and sys.stderr.isatty()


def result_console() -> Console:
    """Open a console for tables: as wide as the terminal, or ``PIPE_WIDTH`` elsewhere."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def number_table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    """Make an empty table without lines: columns of names, then right-aligned numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in names:
        table.add_column(title, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: ``1 frame``, ``2 frames``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def in_precision(described: Mapping[str, str]) -> str:
    """Return `` in bf16`` of a back end's description; "" if it computes as the bundle states."""
    return f" in {described['precision']}" if "precision" in described else ""


def note_precision_hint(hint: PrecisionHint | None, bundle: Path) -> None:
    """Say on standard error if J&F with this hint was not measured for a bundle."""
    import typer

    from rvos_deploy.bundle.folder import find_bundle, packaged_bundles

    if hint is None or find_bundle(bundle) in packaged_bundles().values():
        return
    typer.echo(
        f"note: J&F with --precision-hint {hint} is compared with fp32 for the packaged bundle "
        "only; compare yours: rvos-deploy evaluate BUNDLE --data DIR, with the hint and without",
        err=True,
    )


def overlaps_line(settings: Mapping[str, Any]) -> str:
    """Describe from a report's settings how an evaluation resolved overlaps of objects."""
    done = "argmax of mask logits, as published"
    if settings["overlaps"] == "keep":
        held = ", which a folder of masks does not hold" if "predictions" in settings else ""
        done = f"kept (published: argmax of mask logits{held})"
    return f"overlaps of an annotator's objects: {done}"


def choice_lines(described: Mapping[str, str] | None) -> list[str]:
    """Say which back end ``auto`` chose, and why; nothing where the user named the back end.

    ``described``: from ``Segmenter.describe_backend``; None: the back end is unknown.
    """
    if described is None or "auto" not in described:
        return []
    return [f"--backend auto: {described['name']}; {described['auto']}"]


def live_lines(live: LiveReport | None) -> list[str]:
    """Say how a live source was read: what was dropped, how late it was, and lost connections."""
    if live is None:
        return []
    lines = []
    if live.policy == "latest":
        lines.append(
            f"--policy latest: {counted(live.dropped, 'frame')} dropped, because newer ones had "
            "come; frames keep their numbers and times"
        )
    elif live.behind_seconds >= _NOTICEABLE:
        lines.append(
            f"--policy every: {live.behind_seconds:.1f} s behind the source's clock at the end; "
            "for a live source, --policy latest drops frames to keep up"
        )
    if live.reconnects:
        lines.append(f"the connection was lost and made again {counted(live.reconnects, 'time')}")
    return lines


def mebibytes(count: float) -> str:
    """Format a number of bytes: ``13.2 MiB``, ``1.50 GiB``."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.1f} MiB"
