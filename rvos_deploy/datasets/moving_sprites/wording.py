"""Putting nouns and claims into words, drawn from phrases.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rvos_deploy.datasets.moving_sprites.palette import Look, Texture
from rvos_deploy.datasets.moving_sprites.phrases import PHRASES, VERBS
from rvos_deploy.datasets.moving_sprites.rng import chance, pick
from rvos_deploy.datasets.moving_sprites.world import Size

_PLURALS = {
    "fish": "fish",
    "octopus": "octopuses",
    "bus": "buses",
    "fox": "foxes",
    "cross": "crosses",
}


@dataclass(frozen=True)
class Noun:
    """Attributes that a description names; None where it does not. No name: "one", "object" or
    "thing".
    """

    name: str | None = None
    colour: str | None = None
    size: Size | None = None
    texture: Texture | None = None

    def fits(self, look: Look, size: Size | None) -> bool | None:
        """Judge whether an object is such a one; None where a person might doubt."""
        verdicts = [
            self.name is None or self.name == look.name or _confusable(self.name, look.name),
            self.colour is None or (None if look.is_emoji else self.colour == look.colour),
            self.size is None or (None if size is None else self.size == size),
            self.texture is None or (None if look.is_emoji else self.texture == look.texture),
        ]
        return False if False in verdicts else (None if None in verdicts else True)


_CONFUSABLE = (frozenset({"ring", "circle"}), frozenset({"square", "diamond"}))


def _confusable(one: str, other: str) -> bool | None:
    return None if frozenset({one, other}) in _CONFUSABLE else False


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def noun_words(noun: Noun, plural: bool, rng: np.random.Generator) -> str:
    """Return a noun with its adjectives, without an article: "small striped red stars"."""
    word = noun.name or pick(
        rng, ("object", "thing", "one") if not plural else ("objects", "things")
    )
    if plural and noun.name:
        word = _plural(noun.name)
    return " ".join(part for part in (noun.size, noun.texture, noun.colour, word) if part)


def _conjugate(phrase: str, form: Literal["ing", "s", "base"]) -> str:
    """Put the verbs of a phrase into the participle, the singular or the plural."""
    if phrase == "do not move":
        return {"ing": "not moving", "s": "does not move", "base": phrase}[form]
    words = f"*{phrase}".split(" ")
    return " ".join(_form(word[1:], form) if word[0] == "*" else word for word in words)


def _form(verb: str, form: Literal["ing", "s", "base"]) -> str:
    if form == "base":
        return verb
    ing, s = VERBS.get(verb, (f"{verb}ing", f"{verb}s"))
    return ing if form == "ing" else s


def motion_words(claim: str, plural: bool, rng: np.random.Generator) -> str:
    """Return words for a claim of motion that follow a noun: "moving left", "that turns back"."""
    phrase = pick(rng, PHRASES[claim])
    if plural:
        phrase = phrase.replace("where it", "where they")
    if chance(rng, 0.6):
        return _conjugate(phrase, "ing")
    return (
        f"{'which' if chance(rng, 0.2) else 'that'} {_conjugate(phrase, 'base' if plural else 's')}"
    )
