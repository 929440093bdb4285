"""Expressions: drawn at random, kept where the measured facts leave no doubt what they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from rvos_deploy.datasets.moving_sprites.claims import CLAIMS, OPPOSITES
from rvos_deploy.datasets.moving_sprites.emoji import EMOJI
from rvos_deploy.datasets.moving_sprites.measurements import Facts
from rvos_deploy.datasets.moving_sprites.palette import COLOURS, Texture, combination_allowed
from rvos_deploy.datasets.moving_sprites.phrases import COUNTS, PLACES, SUPERLATIVES
from rvos_deploy.datasets.moving_sprites.referents import Description, Judge
from rvos_deploy.datasets.moving_sprites.rng import below, between, chance, pick, weighted
from rvos_deploy.datasets.moving_sprites.shapes import SHAPES
from rvos_deploy.datasets.moving_sprites.wording import Noun, motion_words, noun_words
from rvos_deploy.datasets.moving_sprites.world import KINDS, Expression, Kind, SpriteVideo

KIND_WEIGHTS: dict[Kind, float] = {
    "appearance": 0.14,
    "motion": 0.5,
    "relation": 0.14,
    "plural": 0.11,
    "no_target": 0.11,
}
"""How often each kind is tried first; what comes out also depends on what a scene allows."""

_EASY: tuple[Kind, ...] = ("plural", "no_target", "appearance")
"""Kinds that every scene allows; each video takes a few at most, lest they crowd out motion."""

_TRIES = 24  # draws before a kind is given up for a video


def _noun_of(rng: np.random.Generator, judge: Judge, k: int, bare: float) -> Noun:
    """Draw a noun that is true of object ``k``; ``bare``: how often it may be just "the one"."""
    item = judge.video.objects[k]
    if chance(rng, bare):
        return Noun()
    size = item.size if chance(rng, 0.3) else None
    if item.look.is_emoji:
        return Noun(name=item.look.name, size=size)
    texture: Texture | None = None
    texture = item.look.texture if item.look.texture != "plain" and chance(rng, 0.5) else None
    if texture is None and chance(rng, 0.06):
        texture = item.look.texture
    form = below(rng, 10)
    name = None if form == 0 else item.look.name
    colour = None if form in (1, 2, 3) else item.look.colour
    return Noun(name, colour, size, texture)


def _absent_noun(rng: np.random.Generator, judge: Judge) -> Noun:
    """Draw a noun for what is not there, mostly by exchanging one attribute of what is."""
    item = pick(rng, judge.video.objects)
    if judge.video.config.emoji and chance(rng, 0.25):
        return Noun(name=pick(rng, tuple(EMOJI)))
    name = item.look.name if item.look.name in SHAPES else pick(rng, tuple(SHAPES))
    colour = item.look.colour or pick(rng, tuple(COLOURS))
    others = [o.look for o in judge.video.objects if not o.look.is_emoji]
    form = below(rng, 5)
    if form <= 1:  # colour of one object, shape of another: the hard ones
        colour = (pick(rng, others).colour if others and form == 0 else None) or pick(
            rng, tuple(COLOURS)
        )
    elif form == 2:
        name = pick(rng, tuple(SHAPES))
    elif form == 3:
        return Noun(name=pick(rng, tuple(SHAPES)))
    else:
        return Noun(name, colour, "small" if item.size == "large" else "large")
    return Noun(name, colour)


def _speak(
    rng: np.random.Generator, judge: Judge, said: Description, plural: bool, count: int
) -> str | None:
    """Put a description into words; None where what it refers to cannot be named."""
    words = noun_words(said.noun, plural, rng)
    if said.claim in SUPERLATIVES:
        return "the " + pick(rng, SUPERLATIVES[said.claim]).format(words)
    text = f"{_article(rng, plural, count)} {words}"
    if plural and said.claim and said.noun == Noun() and chance(rng, 0.4):
        text, plural = "everything", False
    if said.claim is None:
        return text
    if said.other is None:
        return f"{text} {motion_words(said.claim, plural, rng)}"
    other = _unique_noun(rng, judge, said.other)
    if other is None:
        return None
    goal = f"the {noun_words(other, False, rng)}"
    if said.claim in PLACES:
        link = "" if chance(rng, 0.6) else (" that are" if plural else " that is")
        return f"{text}{link} {pick(rng, PLACES[said.claim])} {goal}"
    return f"{text} {motion_words(said.claim, plural, rng)} {goal}"


def _article(rng: np.random.Generator, plural: bool, count: int) -> str:
    if not plural:
        return "the"
    return weighted(rng, ("all the", f"the {COUNTS[count]}", "the", "all"), (0.4, 0.35, 0.15, 0.1))


def _unique_noun(rng: np.random.Generator, judge: Judge, k: int) -> Noun | None:
    for _ in range(6):
        noun = _noun_of(rng, judge, k, 0.0)
        if noun.name and judge.targets(Description(noun)) == (k,):
            return noun
    return None


def _looks_shared(judge: Judge, noun: Noun, k: int) -> bool:
    """Tell whether ``noun`` also names another object, so that only the claim tells them apart."""
    return any(fit for i, fit in enumerate(judge.fits(noun)) if i != k)


def _draw_appearance(rng: np.random.Generator, judge: Judge) -> Description | None:
    k = below(rng, len(judge.video.objects))
    said = Description(_noun_of(rng, judge, k, 0.0))
    return said if judge.targets(said) == (k,) else None


def _claim_of(rng: np.random.Generator, judge: Judge, k: int) -> tuple[str, int | None] | None:
    """Draw a claim of motion that is true of object ``k``, with what it refers to."""
    item = judge.video.objects[k]
    if item.motion in ("toward", "away") and chance(rng, 0.7):
        goals = [i for i in range(len(judge.facts)) if judge.holds(item.motion, k, i)]
        if goals:
            return item.motion, pick(rng, goals)
    if item.motion == "overtake" and chance(rng, 0.7):
        return ("overtake", None) if judge.holds("overtake", k) else None
    true = [claim for claim in CLAIMS if judge.holds(claim, k)]
    # "the moving star" says little; it is kept for where the rest stands still.
    weights = [0.3 if claim == "moving" else 1.0 for claim in true]
    return (weighted(rng, true, weights), None) if true else None


def _contrasted(judge: Judge, said: Description, k: int) -> bool:
    """Fast and slow are said only where another object of that name shows the contrast."""
    if said.claim not in ("fast", "slow"):
        return True
    fits = judge.fits(said.noun)
    return any(
        fit and judge.holds(OPPOSITES[said.claim], i) for i, fit in enumerate(fits) if i != k
    )


def _draw_motion(rng: np.random.Generator, judge: Judge) -> Description | None:
    k = below(rng, len(judge.video.objects))
    claim = _claim_of(rng, judge, k)
    if claim is None:
        return None
    said = Description(_noun_of(rng, judge, k, 0.12), *claim)
    exact = judge.targets(said) == (k,) and _contrasted(judge, said, k)
    return said if exact and _looks_shared(judge, said.noun, k) else None


def _draw_relation(rng: np.random.Generator, judge: Judge) -> Description | None:
    k = below(rng, len(judge.video.objects))
    noun = _noun_of(rng, judge, k, 0.08)
    if not _looks_shared(judge, noun, k):
        return None
    others = range(len(judge.facts))
    true: list[tuple[str, int | None]] = [
        (place, i) for place in PLACES for i in others if judge.holds(place, k, i)
    ]
    if not true or chance(rng, 0.3):
        true = [(superlative, None) for superlative in SUPERLATIVES]
    said = Description(noun, *pick(rng, true))
    return said if judge.targets(said) == (k,) else None


def _draw_plural(rng: np.random.Generator, judge: Judge) -> Description | None:
    k = below(rng, len(judge.video.objects))
    claim = _claim_of(rng, judge, k) if chance(rng, 0.5) else None
    noun = _noun_of(rng, judge, k, 0.4 if claim else 0.0)
    if claim and claim[0] in ("fast", "slow", "overtake"):
        return None
    said = Description(noun, *(claim or (None, None)))
    targets = judge.targets(said)
    return said if targets and len(targets) >= 2 else None


def _draw_no_target(rng: np.random.Generator, judge: Judge) -> Description | None:
    if chance(rng, 0.5):
        said = Description(_absent_noun(rng, judge))
    else:
        k = below(rng, len(judge.video.objects))
        noun = _noun_of(rng, judge, k, 0.1)
        mine = [c for c in CLAIMS if judge.holds(c, k) and c in OPPOSITES]
        opposite = OPPOSITES[pick(rng, mine)] if mine and chance(rng, 0.6) else None
        said = Description(noun, opposite or pick(rng, tuple(CLAIMS)))
    allowed = combination_allowed(judge.video.split, said.noun.colour, said.noun.name)
    return said if allowed and judge.targets(said) == () else None


_DRAWS: dict[Kind, Callable[[np.random.Generator, Judge], Description | None]] = {
    "appearance": _draw_appearance,
    "motion": _draw_motion,
    "relation": _draw_relation,
    "plural": _draw_plural,
    "no_target": _draw_no_target,
}


def _draw_one(
    rng: np.random.Generator, judge: Judge, kind: Kind, used: Counter[object]
) -> Expression | None:
    for _ in range(_TRIES):
        said = _DRAWS[kind](rng, judge)
        targets = judge.targets(said) if said else None
        if said is None or targets is None:
            continue
        plural = kind == "plural"
        text = _speak(rng, judge, said, plural, len(targets))
        # One sentence must not come twice, and few wordings of a thought are enough.
        thought = (kind, targets, said.claim, said.noun if kind == "no_target" else None)
        if text is None or text in used or used[thought] >= judge.video.config.wordings:
            continue
        used.update((text, thought))
        return Expression(text, kind, targets, said.claim)
    return None


def draw_expressions(
    rng: np.random.Generator, video: SpriteVideo, facts: Sequence[Facts]
) -> tuple[Expression, ...]:
    """Draw the expressions of a video: about half of them motion, each exact; () where too few are
    found.
    """
    judge = Judge(video, facts)
    low, high = video.config.expressions
    wanted = between(rng, low, high)
    left, room = dict(KIND_WEIGHTS), dict.fromkeys(_EASY, 1 + wanted // 6)
    used: Counter[object] = Counter()
    found: list[Expression] = []
    while len(found) < wanted and left:
        kinds = [kind for kind in KINDS if kind in left]
        kind = weighted(rng, kinds, [left[k] for k in kinds])
        expression = _draw_one(rng, judge, kind, used)
        room[kind] = room.get(kind, wanted) - 1
        if expression is None or room[kind] <= 0:
            del left[kind]
        if expression is not None:
            found.append(expression)
    return tuple(found) if len(found) >= low else ()
