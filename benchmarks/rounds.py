"""Run contenders in turn, round after round, so that a change of the machine meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeVar

from rvos_deploy.errors import RvosError, one_line

MINIMUM_ROUNDS = 3
"""From fewer rounds, no spread can be told."""

_Contender = TypeVar("_Contender")


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the names in the order of a round: another one begins each time."""
    first = turn % len(names) if names else 0
    return [*names[first:], *names[:first]]


def in_turn(
    contenders: Mapping[str, _Contender],
    rounds: int,
    measure: Callable[[_Contender, int], Any],
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Measure every contender once a round.

    A contender that fails drops out, and the others go on.

    Args:
        contenders: what is measured, by name.
        rounds: how many, at least ``MINIMUM_ROUNDS``.
        measure: measures one contender in the round of this number.

    Returns:
        The measurements of all rounds, and why a contender dropped out, by name.
    """
    assert rounds >= MINIMUM_ROUNDS, rounds
    found: dict[str, list[Any]] = {name: [] for name in contenders}
    failed: dict[str, str] = {}
    for turn in range(rounds):
        for name in rotated(list(contenders), turn):
            if name in failed:
                continue
            with _recording(name, failed):
                found[name].append(measure(contenders[name], turn))
    return {name: rows for name, rows in found.items() if name not in failed}, failed


def make_each(
    makers: Mapping[str, Callable[[], _Contender]],
) -> tuple[dict[str, _Contender], dict[str, str]]:
    """Make every contender, and record why one cannot be made; the others are made all the same."""
    made: dict[str, _Contender] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        with _recording(name, failed):
            made[name] = make()
    return made, failed


@contextmanager
def _recording(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Record a failure of a contender, whatever library raised it."""
    try:
        yield
    except Exception as error:  # an error of any library must not stop the others
        failed[name] = why(error)


def why(error: Exception) -> str:
    """Return an error as one line: its own words, or its type and its first line."""
    if isinstance(error, RvosError):
        return str(error)
    if isinstance(error, ImportError):
        return f"{error.name or one_line(error)} is not installed"
    return f"{type(error).__name__}: {one_line(error) or 'no message'}"


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Return the median of the rounds, each round, and their spread: the range over the median."""
    middle = median(values)
    return {
        "p50": middle,
        "rounds": list(values),
        "spread": (max(values) - min(values)) / middle if middle else 0.0,
    }
