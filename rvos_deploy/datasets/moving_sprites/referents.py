"""Decides which objects of a video a description is true of, and whether that is beyond doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rvos_deploy.datasets.moving_sprites.claims import CLAIMS, Verdict, every
from rvos_deploy.datasets.moving_sprites.measurements import Facts
from rvos_deploy.datasets.moving_sprites.pairs import (
    approaches,
    beside,
    foremost,
    overtakes,
    recedes,
)
from rvos_deploy.datasets.moving_sprites.phrases import PLACES, SUPERLATIVES
from rvos_deploy.datasets.moving_sprites.wording import Noun
from rvos_deploy.datasets.moving_sprites.world import SpriteVideo


@dataclass(frozen=True)
class Description:
    """A noun and what is said of it. ``claim``: of motion, a relation or a superlative; ``other``:
    the object that a relation, ``toward`` or ``away`` refers to.
    """

    noun: Noun
    claim: str | None = None
    other: int | None = None


class Judge:
    """Decides, from the measured facts of one video, which objects a description is true of."""

    def __init__(self, video: SpriteVideo, facts: Sequence[Facts]) -> None:
        self.video, self.facts = video, facts
        self.unit = 0.75 * max(video.config.height, video.config.width)
        self._known: dict[tuple[str, int, int | None], Verdict] = {}

    def fits(self, noun: Noun) -> list[Verdict]:
        """Judge of every object whether ``noun`` names it."""
        return [noun.fits(item.look, item.size) for item in self.video.objects]

    def holds(self, claim: str, k: int, other: int | None = None) -> Verdict:
        """Judge whether ``claim`` is true of object ``k``."""
        key = claim, k, other
        if key not in self._known:
            self._known[key] = self._judge(claim, k, other)
        return self._known[key]

    def _judge(self, claim: str, k: int, other: int | None) -> Verdict:
        if claim == "overtake":
            return overtakes(k, self.facts)
        if other is None:
            return CLAIMS[claim](self.facts[k])
        if other == k:
            return False
        if claim in PLACES:
            config = self.video.config
            return beside(claim, self.facts[k], self.facts[other], config.width, config.height)
        judge = approaches if claim == "toward" else recedes
        return judge(self.facts[k], self.facts[other], self.unit)

    def targets(self, said: Description) -> tuple[int, ...] | None:
        """Return the objects that ``said`` is true of, or None where any object is in doubt."""
        fits = self.fits(said.noun)
        verdicts: list[Verdict]
        if said.claim is None:
            verdicts = fits
        elif said.claim in SUPERLATIVES:
            rivals = [k for k, fit in enumerate(fits) if fit]
            if None in fits:
                return None
            config = self.video.config
            verdicts = [
                k in rivals
                and foremost(said.claim, k, rivals, self.facts, config.width, config.height)
                for k in range(len(fits))
            ]
        else:
            verdicts = [
                False if fit is False else every(fit, self.holds(said.claim, k, said.other))
                for k, fit in enumerate(fits)
            ]
        return None if None in verdicts else tuple(k for k, v in enumerate(verdicts) if v)
