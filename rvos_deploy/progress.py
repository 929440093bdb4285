"""Define the callbacks through which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

StepProgress: TypeAlias = Callable[[str], None]
"""Called with the name of the step that begins."""

CountProgress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with a phase, the number done in it, and the expected number (None: unknown)."""

ShareProgress: TypeAlias = Callable[[str, str, float, float | None], None]
"""Called with a task, its phase, the share done (0 to 1), and the remaining seconds (None:
unknown). For work without equal steps: TensorRT's builder."""


def ignore_steps(step: str) -> None:
    """Ignore a step."""


def ignore_counts(phase: str, done: int, total: int | None) -> None:
    """Ignore a count."""


def ignore_shares(task: str, phase: str, share: float, remaining: float | None) -> None:
    """Ignore a share."""
