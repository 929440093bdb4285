"""Hold what one check of the installation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["passed", "failed", "absent"]
"""``absent``: something optional is not installed, or does not concern this machine."""


@dataclass(frozen=True)
class Outcome:
    """Hold what one check found.

    Args:
        state: whether it passed.
        found: what was found, in one line.
        fix: the command that changes it, or what to do; "" where there is nothing to do.
    """

    state: State
    found: str
    fix: str = ""


def passed(found: str) -> Outcome:
    """Return that something works."""
    return Outcome("passed", found)


def failed(found: str, fix: str) -> Outcome:
    """Return that something does not work, and how to fix it."""
    return Outcome("failed", found, fix)


def absent(found: str, fix: str = "") -> Outcome:
    """Return that something optional is not there, and how to install it."""
    return Outcome("absent", found, fix)
