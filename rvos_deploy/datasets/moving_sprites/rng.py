"""Draw random values that are equal in every NumPy release.

All draws use ``Generator.random`` alone. PCG64 fixes its bit stream, whereas NumPy may change the
algorithms behind ``choice``, ``shuffle`` or ``normal``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from rvos_deploy.errors import InputError

T = TypeVar("T")


def stream(*key: int) -> np.random.Generator:
    """Return the random stream of ``key``, a sequence of non-negative integers.

    Raises InputError: a number is negative.
    """
    if any(part < 0 for part in key):
        raise InputError(f"seeds and indices must be 0 or more, found {key}")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between ``low`` and ``high``."""
    return low + (high - low) * float(rng.random())


def below(rng: np.random.Generator, count: int) -> int:
    """Draw an integer from 0 to ``count`` - 1."""
    return min(count - 1, int(rng.random() * count))


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw an integer from ``low`` to ``high``, both included."""
    return low + below(rng, high - low + 1)


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Return True with probability ``probability``."""
    return float(rng.random()) < probability


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Draw one of ``items``."""
    return items[below(rng, len(items))]


def weighted(rng: np.random.Generator, items: Sequence[T], weights: Sequence[float]) -> T:
    """Draw one of ``items`` in proportion to ``weights``."""
    point = float(rng.random()) * sum(weights)
    for item, weight in zip(items, weights, strict=True):
        point -= weight
        if point < 0:
            return item
    return items[-1]


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """Return ``items`` in random order."""
    order = np.argsort(rng.random(len(items)), kind="stable")
    return [items[int(i)] for i in order]
