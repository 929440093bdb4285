"""Define the shapes in which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

StepProgress: TypeAlias = Callable[[str], None]
"""Called with the name of the step that begins."""

CountProgress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with a phase, the number done in it, and the expected number (None: unknown)."""

ShareProgress: TypeAlias = Callable[[str, str, float, float | None], None]
"""Called with a task, its phase, the share done (0 to 1), and the seconds that remain (None:
unknown). For work that has no equal steps: TensorRT's builder."""


def ignore_steps(step: str) -> None:
    """Report no steps."""


def ignore_counts(phase: str, done: int, total: int | None) -> None:
    """Report no counts."""


def ignore_shares(task: str, phase: str, share: float, remaining: float | None) -> None:
    """Report no shares."""
