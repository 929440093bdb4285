"""Draw referring expressions, and keep those whose targets are certain by the measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rvos_deploy.datasets.moving_sprites.language import (
    COUNT_WORDS,
    RELATION_PHRASES,
    SUPERLATIVE_PHRASES,
    Noun,
    motion_words,
    noun_words,
)
from rvos_deploy.datasets.moving_sprites.looks import COLOURS, EMOJI, SHAPES, combination_allowed
from rvos_deploy.datasets.moving_sprites.predicates import (
    OPPOSITES,
    PREDICATES,
    Measurements,
    Ternary,
    all_of,
    approaches,
    beside,
    is_extreme,
    overtakes,
)
from rvos_deploy.datasets.moving_sprites.rng import below, between, chance, pick, weighted
from rvos_deploy.datasets.moving_sprites.world import (
    KINDS,
    RELATIONS,
    SUPERLATIVES,
    Expression,
    Kind,
    SpriteVideo,
    Texture,
)

_KIND_WEIGHTS: dict[Kind, float] = {
    "appearance": 0.14, "motion": 0.5, "relation": 0.14, "plural": 0.11, "no_target": 0.11,
}  # fmt: skip
"""How often each kind is tried. The number of expressions found also depends on the scene."""

_EASY: tuple[Kind, ...] = ("plural", "no_target", "appearance")
"""Kinds that every scene allows. Each video takes only a few, so that motion stays frequent."""

_TRIES = 24  # draws for one expression before its kind is given up for the video


@dataclass(frozen=True)
class Description:
    """Hold a noun, and a predicate that the expression claims of it.

    claim: a predicate of motion, a relation or a superlative. other: the index of the object that a
    relation, "toward" or "away" refers to.
    """

    noun: Noun
    claim: str | None = None
    other: int | None = None


class ReferentResolver:
    """Resolve which objects of one video a description is true of."""

    def __init__(self, video: SpriteVideo, measured: Sequence[Measurements]) -> None:
        self.video, self.measured = video, measured
        self._cache: dict[tuple[str, int, int | None], Ternary] = {}

    def fits(self, noun: Noun) -> list[Ternary]:
        """Decide for every object whether ``noun`` describes it."""
        return [noun.fits(item.look, item.size) for item in self.video.objects]

    def is_shared(self, noun: Noun, k: int) -> bool:
        """Tell whether ``noun`` also describes an object other than ``k``."""
        return any(fit for i, fit in enumerate(self.fits(noun)) if i != k)

    def holds(self, claim: str, k: int, other: int | None = None) -> Ternary:
        """Decide whether the predicate ``claim`` is true of object ``k``."""
        key = claim, k, other
        if key not in self._cache:
            self._cache[key] = self._evaluate(claim, k, other)
        return self._cache[key]

    def _evaluate(self, claim: str, k: int, other: int | None) -> Ternary:
        if claim == "overtake":
            return overtakes(k, self.measured)
        item, config = self.measured[k], self.video.config
        if other is None:
            return PREDICATES[claim](item)
        if other == k:
            return False
        if claim in RELATIONS:
            return beside(claim, item, self.measured[other], config.width, config.height)
        return approaches(item, self.measured[other], config.path_unit, away=claim == "away")

    def _evaluate_superlative(self, claim: str, fits: list[Ternary]) -> list[Ternary]:
        config = self.video.config
        candidates = [k for k, fit in enumerate(fits) if fit]
        results: list[Ternary] = [False] * len(fits)
        for k in candidates:
            others = [self.measured[i] for i in candidates if i != k]
            results[k] = is_extreme(claim, self.measured[k], others, config.width, config.height)
        return results

    def targets(self, description: Description) -> tuple[int, ...] | None:
        """Return the objects that a description is true of, or None if one object is in doubt."""
        fits, claim = self.fits(description.noun), description.claim
        if claim is None:
            results = fits
        elif claim in SUPERLATIVES:
            if None in fits:
                return None
            results = self._evaluate_superlative(claim, fits)
        else:
            results = [
                False if fit is False else all_of(fit, self.holds(claim, k, description.other))
                for k, fit in enumerate(fits)
            ]
        return None if None in results else tuple(k for k, holds in enumerate(results) if holds)


def _draw_noun(rng: np.random.Generator, resolver: ReferentResolver, k: int, bare: float) -> Noun:
    """Draw a noun that is true of object ``k``; with probability ``bare`` it is only "the one"."""
    item = resolver.video.objects[k]
    if chance(rng, bare):
        return Noun()
    size = item.size if chance(rng, 0.3) else None
    if item.look.is_emoji:
        return Noun(name=item.look.name, size=size)
    texture: Texture | None = item.look.texture
    named = texture != "plain" and chance(rng, 0.5)
    if not named and not chance(rng, 0.06):
        texture = None
    form = below(rng, 10)
    name = None if form == 0 else item.look.name
    colour = None if form in (1, 2, 3) else item.look.colour
    return Noun(name, colour, size, texture)


def _draw_absent_noun(rng: np.random.Generator, resolver: ReferentResolver) -> Noun:
    """Draw a noun that probably fits no object, mostly by changing one attribute of an object."""
    item = pick(rng, resolver.video.objects)
    if resolver.video.config.emoji and chance(rng, 0.25):
        return Noun(name=pick(rng, tuple(EMOJI)))
    name = item.look.name if item.look.name in SHAPES else pick(rng, tuple(SHAPES))
    colour = item.look.colour or pick(rng, tuple(COLOURS))
    others = [o.look for o in resolver.video.objects if not o.look.is_emoji]
    form = below(rng, 5)
    if form <= 1:  # the colour of one object with the shape of another is the hardest negative
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


def _draw_unique_noun(rng: np.random.Generator, resolver: ReferentResolver, k: int) -> Noun | None:
    for _ in range(6):
        noun = _draw_noun(rng, resolver, k, 0.0)
        if noun.name and resolver.targets(Description(noun)) == (k,):
            return noun
    return None


def _draw_article(rng: np.random.Generator, plural: bool, count: int) -> str:
    if not plural:
        return "the"
    articles = ("all the", f"the {COUNT_WORDS[count]}", "the", "all")
    return weighted(rng, articles, (0.4, 0.35, 0.15, 0.1))


def _draw_text(
    rng: np.random.Generator,
    resolver: ReferentResolver,
    description: Description,
    plural: bool,
    count: int,
) -> str | None:
    """Put a description into words, or return None if no noun names its other object uniquely."""
    noun, claim = description.noun, description.claim
    words = noun_words(noun, plural, rng)
    if claim in SUPERLATIVES:
        return "the " + pick(rng, SUPERLATIVE_PHRASES[claim]).format(words)
    text = f"{_draw_article(rng, plural, count)} {words}"
    if plural and claim and noun == Noun() and chance(rng, 0.4):
        text, plural = "everything", False
    if claim is None:
        return text
    if description.other is None:
        return f"{text} {motion_words(claim, plural, rng)}"
    other = _draw_unique_noun(rng, resolver, description.other)
    if other is None:
        return None
    goal = f"the {noun_words(other, False, rng)}"
    if claim in RELATIONS:
        link = "" if chance(rng, 0.6) else (" that are" if plural else " that is")
        return f"{text}{link} {pick(rng, RELATION_PHRASES[claim])} {goal}"
    return f"{text} {motion_words(claim, plural, rng)} {goal}"


def _draw_claim(
    rng: np.random.Generator, resolver: ReferentResolver, k: int
) -> tuple[str, int | None] | None:
    """Draw a predicate of motion that is true of object ``k``, with the object it refers to."""
    item = resolver.video.objects[k]
    if item.motion in ("toward", "away") and chance(rng, 0.7):
        goals = [i for i in range(len(resolver.measured)) if resolver.holds(item.motion, k, i)]
        if goals:
            return item.motion, pick(rng, goals)
    if item.motion == "overtake" and chance(rng, 0.7):
        return ("overtake", None) if resolver.holds("overtake", k) else None
    true = [claim for claim in PREDICATES if resolver.holds(claim, k)]
    # "the moving star" identifies an object only if all others stand still, so it is drawn rarely.
    weights = [0.3 if claim == "moving" else 1.0 for claim in true]
    return (weighted(rng, true, weights), None) if true else None


def _has_contrast(resolver: ReferentResolver, description: Description, k: int) -> bool:
    """Tell whether a look-alike shows the opposite, which "fast" and "slow" need to be clear."""
    if description.claim not in ("fast", "slow"):
        return True
    opposite = OPPOSITES[description.claim]
    fits = resolver.fits(description.noun)
    return any(fit and resolver.holds(opposite, i) for i, fit in enumerate(fits) if i != k)


def _draw_appearance(rng: np.random.Generator, resolver: ReferentResolver) -> Description | None:
    k = below(rng, len(resolver.video.objects))
    description = Description(_draw_noun(rng, resolver, k, 0.0))
    return description if resolver.targets(description) == (k,) else None


def _draw_motion(rng: np.random.Generator, resolver: ReferentResolver) -> Description | None:
    k = below(rng, len(resolver.video.objects))
    claim = _draw_claim(rng, resolver, k)
    if claim is None:
        return None
    description = Description(_draw_noun(rng, resolver, k, 0.12), *claim)
    exact = resolver.targets(description) == (k,) and _has_contrast(resolver, description, k)
    return description if exact and resolver.is_shared(description.noun, k) else None


def _draw_relation(rng: np.random.Generator, resolver: ReferentResolver) -> Description | None:
    k = below(rng, len(resolver.video.objects))
    noun = _draw_noun(rng, resolver, k, 0.08)
    if not resolver.is_shared(noun, k):
        return None
    others = range(len(resolver.measured))
    true: list[tuple[str, int | None]] = [
        (relation, i) for relation in RELATIONS for i in others if resolver.holds(relation, k, i)
    ]
    if not true or chance(rng, 0.3):
        true = [(superlative, None) for superlative in SUPERLATIVES]
    description = Description(noun, *pick(rng, true))
    return description if resolver.targets(description) == (k,) else None


def _draw_plural(rng: np.random.Generator, resolver: ReferentResolver) -> Description | None:
    k = below(rng, len(resolver.video.objects))
    claim = _draw_claim(rng, resolver, k) if chance(rng, 0.5) else None
    noun = _draw_noun(rng, resolver, k, 0.4 if claim else 0.0)
    if claim and claim[0] in ("fast", "slow", "overtake"):
        return None
    description = Description(noun, *(claim or (None, None)))
    targets = resolver.targets(description)
    return description if targets and len(targets) >= 2 else None


def _draw_no_target(rng: np.random.Generator, resolver: ReferentResolver) -> Description | None:
    if chance(rng, 0.5):
        description = Description(_draw_absent_noun(rng, resolver))
    else:
        k = below(rng, len(resolver.video.objects))
        noun = _draw_noun(rng, resolver, k, 0.1)
        mine = [c for c in PREDICATES if resolver.holds(c, k) and c in OPPOSITES]
        opposite = OPPOSITES[pick(rng, mine)] if mine and chance(rng, 0.6) else None
        description = Description(noun, opposite or pick(rng, tuple(PREDICATES)))
    noun = description.noun
    allowed = combination_allowed(resolver.video.split, noun.colour, noun.name)
    return description if allowed and resolver.targets(description) == () else None


_DRAWS: dict[Kind, Callable[[np.random.Generator, ReferentResolver], Description | None]] = {
    "appearance": _draw_appearance,
    "motion": _draw_motion,
    "relation": _draw_relation,
    "plural": _draw_plural,
    "no_target": _draw_no_target,
}


def _draw_expression(
    rng: np.random.Generator, resolver: ReferentResolver, kind: Kind, used: Counter[object]
) -> Expression | None:
    """Draw an expression of ``kind``, or return None after ``_TRIES`` draws.

    used: counts of the texts and meanings that the video already has, updated in place.
    """
    for _ in range(_TRIES):
        description = _DRAWS[kind](rng, resolver)
        targets = resolver.targets(description) if description else None
        if description is None or targets is None:
            continue
        claim, noun = description.claim, description.noun
        text = _draw_text(rng, resolver, description, kind == "plural", len(targets))
        # No text occurs twice, and a meaning occurs in at most ``wordings`` texts.
        meaning = (kind, targets, claim, noun if kind == "no_target" else None)
        if text is None or text in used or used[meaning] >= resolver.video.config.wordings:
            continue
        used.update((text, meaning))
        return Expression(text, kind, targets, claim)
    return None


def draw_expressions(
    rng: np.random.Generator, video: SpriteVideo, measured: Sequence[Measurements]
) -> tuple[Expression, ...]:
    """Draw the expressions of a video, about half of them of motion; () if too few are found."""
    resolver = ReferentResolver(video, measured)
    low, high = video.config.expressions
    wanted = between(rng, low, high)
    weights, left = dict(_KIND_WEIGHTS), dict.fromkeys(_EASY, 1 + wanted // 6)
    used: Counter[object] = Counter()
    found: list[Expression] = []
    while len(found) < wanted and weights:
        kinds = [kind for kind in KINDS if kind in weights]
        kind = weighted(rng, kinds, [weights[k] for k in kinds])
        expression = _draw_expression(rng, resolver, kind, used)
        left[kind] = left.get(kind, wanted) - 1
        if expression is None or left[kind] <= 0:
            del weights[kind]
        if expression is not None:
            found.append(expression)
    return tuple(found) if len(found) >= low else ()
