"""Claims about motion and place, judged on measured facts: True, False, or None where a person
might doubt.

An expression is kept only where its claim is True of what it means and False of all else, so None
is the margin between the two.
"""

from __future__ import annotations

from collections.abc import Callable

from rvos_deploy.datasets.moving_sprites.measurements import Facts

Verdict = bool | None

HEADINGS = {"left": "right", "right": "left", "up": "down", "down": "up"}
"""The four directions, each with its opposite."""


def every(*verdicts: Verdict) -> Verdict:
    """Return False if any is False, else None if any is None, else True."""
    if any(v is False for v in verdicts):
        return False
    return None if any(v is None for v in verdicts) else True


def some(*verdicts: Verdict) -> Verdict:
    """Return True if any is True, else None if any is None, else False."""
    if any(verdicts):
        return True
    return None if any(v is None for v in verdicts) else False


def _band(value: float, false_below: float, true_above: float) -> Verdict:
    return True if value >= true_above else (False if value <= false_below else None)


def is_still(f: Facts) -> Verdict:
    """Judge whether an object stands still and keeps its size."""
    if f.extent >= 0.25:
        return False
    return True if f.extent <= 0.1 and 0.89 <= f.growth <= 1.12 else None


def _moving(f: Facts) -> Verdict:
    if is_still(f):
        return False
    return True if f.extent >= 0.3 and f.share >= 0.75 else None


def _turns(f: Facts) -> int:
    return max(len(f.legs_x), len(f.legs_y)) - 1


def _circling(f: Facts) -> Verdict:
    if f.roundness <= 0.3 or abs(f.winding) <= 140:
        return False
    return True if abs(f.winding) >= 300 and f.roundness >= 0.5 else None


def _bounces(f: Facts) -> Verdict:
    if len(f.legs_y) >= 4 and min(map(abs, f.legs_y)) >= 0.25 and f.spans[0] <= 0.12:
        return True
    return False if len(f.legs_y) <= 1 or _circling(f) or f.spans[1] <= 0.15 else None


def _shakes(f: Facts) -> Verdict:
    inner = f.legs_x[1:-1]
    if len(f.legs_x) >= 4 and min(map(abs, inner)) >= 0.2 and f.spans[1] <= 0.15:
        return True
    return False if len(f.legs_x) <= 1 or _circling(f) or f.spans[0] <= 0.12 else None


def goes_nowhere(f: Facts) -> bool:
    """Tell whether the motion comes and goes, so that nobody would give it a direction."""
    return bool(_circling(f) or _bounces(f) or _shakes(f))


def _directed(direction: str) -> Callable[[Facts], Verdict]:
    axis = 0 if direction in ("left", "right") else 1

    def judge(f: Facts) -> Verdict:
        if f.runs[direction] <= 0.12 or goes_nowhere(f):
            return False
        straight = f.runs[HEADINGS[direction]] <= 0.05 and f.spans[1 - axis] <= 0.2
        straight = straight and _turns(f) <= 0  # a narrow zigzag is not straight
        return True if f.runs[direction] >= 0.3 and straight and f.share >= 0.75 else None

    return judge


def _diagonal(vertical: str, horizontal: str) -> Callable[[Facts], Verdict]:
    def judge(f: Facts) -> Verdict:
        if min(f.runs[vertical], f.runs[horizontal]) <= 0.1 or goes_nowhere(f):
            return False
        back = max(f.runs[HEADINGS[vertical]], f.runs[HEADINGS[horizontal]])
        far = min(f.runs[vertical], f.runs[horizontal]) >= 0.27
        return True if far and back <= 0.05 and f.share >= 0.75 else None

    return judge


def _zigzags(f: Facts) -> Verdict:
    if _turns(f) <= 1 or goes_nowhere(f):
        return False
    across = abs(f.net[0]) >= 0.35 and len(f.legs_x) == 1 and len(f.legs_y) >= 4
    along = abs(f.net[1]) >= 0.38 and len(f.legs_y) == 1 and len(f.legs_x) >= 4
    return True if across or along else None


def _turns_back(f: Facts) -> Verdict:
    if _turns(f) <= 0 or _circling(f) or _zigzags(f):
        return False
    for legs, side in ((f.legs_x, f.spans[1]), (f.legs_y, f.spans[0])):
        if len(legs) == 2 and min(map(abs, legs)) >= 0.28 and side <= 0.15 and f.share >= 0.8:
            return True
    return None


def _stops(f: Facts) -> Verdict:
    if f.tail <= 0.15 or f.extent <= 0.1:
        return False
    steady = f.head <= 0.17 and _turns(f) <= 0 and f.extent >= 0.28
    return True if 0.38 <= f.tail <= 0.66 and steady and f.inside[-1] >= 0.9 else None


def _starts(f: Facts) -> Verdict:
    if f.head <= 0.15 or f.extent <= 0.1:
        return False
    steady = f.tail <= 0.17 and _turns(f) <= 0 and f.extent >= 0.28
    return True if 0.38 <= f.head <= 0.66 and steady and f.inside[0] >= 0.9 else None


def _straight(f: Facts) -> bool:
    return f.share >= 0.75 and _turns(f) <= 0 and not _circling(f)


def _fast(f: Facts) -> Verdict:
    if f.rate <= 0.6:
        return False
    return True if f.rate >= 0.93 and _straight(f) else None


def _slow(f: Facts) -> Verdict:
    if f.extent <= 0.1 or f.rate >= 0.93:
        return False
    return True if 0.25 <= f.rate <= 0.57 and _straight(f) and f.extent >= 0.25 else None


def _crossed(f: Facts, border: str, entering: bool) -> Verdict:
    order = 1 if entering else -1
    inside, seen, centres = f.inside[::order], f.seen[::order], f.centres[::order]
    if inside[0] >= 0.9:
        return False
    away = int(seen.argmax()) / len(seen)  # part of the clip spent outside
    if inside[0] > 0 or away < 0.08 or inside[-1] < 0.95:
        return None
    # The border is the one that the path points away from.
    step = centres[-1] - centres[0]
    if abs(step[0]) > abs(step[1]):
        return border == ("left" if step[0] > 0 else "right")
    return border == ("top" if step[1] > 0 else "bottom")


_BORDERS = ("left", "right", "top", "bottom")


def _any_border(entering: bool) -> Callable[[Facts], Verdict]:
    return lambda f: some(*(_crossed(f, border, entering) for border in _BORDERS))


def _border(border: str, entering: bool) -> Callable[[Facts], Verdict]:
    return lambda f: _crossed(f, border, entering)


CLAIMS: dict[str, Callable[[Facts], Verdict]] = {
    "still": is_still,
    "moving": _moving,
    "left": _directed("left"),
    "right": _directed("right"),
    "up": _directed("up"),
    "down": _directed("down"),
    "up_left": _diagonal("up", "left"),
    "up_right": _diagonal("up", "right"),
    "down_left": _diagonal("down", "left"),
    "down_right": _diagonal("down", "right"),
    "fast": _fast,
    "slow": _slow,
    "circling": _circling,
    "clockwise": lambda f: every(_circling(f), f.winding > 0),
    "counterclockwise": lambda f: every(_circling(f), f.winding < 0),
    "zigzag": _zigzags,
    "bounce": _bounces,
    "shake": _shakes,
    "stop": _stops,
    "start": _starts,
    "turn_back": _turns_back,
    "grow": lambda f: _band(f.growth, 1.12, 1.5),
    "shrink": lambda f: _band(1 / f.growth, 1.12, 1.5),
    "enter": _any_border(True),
    "leave": _any_border(False),
    **{f"enter_{border}": _border(border, True) for border in _BORDERS},
    **{f"leave_{border}": _border(border, False) for border in _BORDERS},
}
"""Claims about one object's motion: its name, and the judgement of measured facts."""

OPPOSITES: dict[str, str] = {
    "left": "right", "up": "down", "up_left": "down_right", "up_right": "down_left", "fast": "slow",
    "clockwise": "counterclockwise", "stop": "start", "grow": "shrink", "enter": "leave",
    "enter_left": "enter_right", "enter_top": "enter_bottom", "leave_left": "leave_right",
    "leave_top": "leave_bottom", "still": "moving", "toward": "away", "bounce": "shake",
    "left_of": "right_of", "above": "below", "leftmost": "rightmost", "highest": "lowest",
}  # fmt: skip
OPPOSITES.update({b: a for a, b in list(OPPOSITES.items())})
