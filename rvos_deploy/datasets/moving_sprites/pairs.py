"""Claims about one object and another: place, approach, overtaking. Verdicts as in claims.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rvos_deploy.datasets.moving_sprites.claims import (
    CLAIMS,
    HEADINGS,
    Verdict,
    every,
    goes_nowhere,
    is_still,
    some,
)
from rvos_deploy.datasets.moving_sprites.measurements import Facts


def approaches(mover: Facts, goal: Facts, unit: float) -> Verdict:
    """Judge whether ``mover`` moves straight towards a standing ``goal``; ``unit`` in pixels."""
    both = mover.seen & goal.seen
    if np.count_nonzero(both) < 3 or not is_still(goal):
        return None
    gap = goal.centres[both] - mover.centres[both]
    distance = np.hypot(gap[:, 0], gap[:, 1]) / unit
    if (np.maximum.accumulate(distance) - distance).max() <= 0.08:
        return False
    step = mover.centres[both][-1] - mover.centres[both][0]
    cosine = float(step @ gap[0]) / (float(np.hypot(*step) * np.hypot(*gap[0])) + 1e-9)
    monotone = (distance - np.minimum.accumulate(distance)).max() <= 0.03
    near = (
        distance[0] - distance[-1] >= 0.3 and cosine >= 0.94 and distance[-1] <= 0.55 * distance[0]
    )
    return True if monotone and near and mover.share >= 0.75 else None


def recedes(mover: Facts, goal: Facts, unit: float) -> Verdict:
    """Judge whether ``mover`` moves straight away from a standing ``goal``; ``unit`` in pixels."""
    both = mover.seen & goal.seen
    if np.count_nonzero(both) < 3 or not is_still(goal):
        return None
    gap = goal.centres[both] - mover.centres[both]
    distance = np.hypot(gap[:, 0], gap[:, 1]) / unit
    if (distance - np.minimum.accumulate(distance)).max() <= 0.08:
        return False
    step = mover.centres[both][-1] - mover.centres[both][0]
    cosine = -float(step @ gap[-1]) / (float(np.hypot(*step) * np.hypot(*gap[-1])) + 1e-9)
    monotone = (np.maximum.accumulate(distance) - distance).max() <= 0.03
    far = (
        distance[-1] - distance[0] >= 0.3 and cosine >= 0.94 and distance[0] <= 0.55 * distance[-1]
    )
    return True if monotone and far and mover.share >= 0.75 else None


def overtakes(index: int, facts: Sequence[Facts]) -> Verdict:
    """Judge whether an object overtakes any other that moves in the same direction."""
    mover = facts[index]
    if is_still(mover) or goes_nowhere(mover):
        return False
    verdicts: list[Verdict] = []
    for other in (f for i, f in enumerate(facts) if i != index):
        both = mover.seen & other.seen
        heading = next((d for d in HEADINGS if CLAIMS[d](mover)), None)
        if heading is None or np.count_nonzero(both) < 3:
            verdicts.append(None)
            continue
        axis, sign = int(heading in ("up", "down")), 1 if heading in ("right", "down") else -1
        lead = sign * (mover.centres[both] - other.centres[both])[:, axis]
        size = float(np.ptp(mover.centres[both][:, axis])) + 1e-9
        if lead[0] >= -0.03 * size or lead[-1] <= 0:
            verdicts.append(False if lead[-1] <= 0 or lead[0] > 0.03 * size else None)
        else:
            clear = lead[0] <= -0.12 * size and lead[-1] >= 0.12 * size
            verdicts.append(True if clear and CLAIMS[heading](other) else None)
    return some(*verdicts)


def beside(relation: str, item: Facts, other: Facts, width: int, height: int) -> Verdict:
    """Judge ``left_of``, ``right_of``, ``above`` or ``below`` over all frames that show both."""
    both = item.seen & other.seen
    if np.count_nonzero(both) < 0.6 * len(both):
        return None
    gap = (other.centres[both] - item.centres[both]) / (width, height)
    axis = 0 if relation in ("left_of", "right_of") else 1
    ahead = gap[:, axis] * (1 if relation in ("left_of", "above") else -1)
    pixels = np.abs(gap * (width, height)).mean(axis=0)
    if ahead.max() <= -0.03:
        return False
    margin = 0.09 if axis == 0 else 0.14
    return True if ahead.min() >= margin and pixels[axis] >= 0.7 * pixels[1 - axis] else None


def foremost(
    superlative: str,
    index: int,
    rivals: Sequence[int],
    facts: Sequence[Facts],
    width: int,
    height: int,
) -> Verdict:
    """Judge ``leftmost``, ``rightmost``, ``highest`` or ``lowest`` among ``rivals``, always."""
    axis = 0 if superlative in ("leftmost", "rightmost") else 1
    sign = 1 if superlative in ("leftmost", "highest") else -1
    margin = (0.08 * width, 0.12 * height)[axis]
    verdicts: list[Verdict] = []
    for rival in rivals:
        both = facts[index].seen & facts[rival].seen
        if rival == index:
            continue
        if np.count_nonzero(both) < 0.6 * len(both):
            return None
        gap = sign * (facts[rival].centres[both] - facts[index].centres[both])[:, axis]
        verdicts.append(
            True if gap.min() >= margin else (False if gap.max() <= -margin / 3 else None)
        )
    return every(*verdicts)
