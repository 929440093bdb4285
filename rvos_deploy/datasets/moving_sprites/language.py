"""Put nouns and predicates into words, by phrases for every predicate and a small grammar.

All words are lower case, without punctuation. The first word of a phrase is a verb, and so is each
word after an asterisk. Most opposite predicates have the same number of phrases in the same order,
so equal random draws pick parallel phrases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rvos_deploy.datasets.moving_sprites.rng import chance, pick
from rvos_deploy.datasets.moving_sprites.world import Look, Size, Texture

# Verbs whose forms do not simply add "-ing" and "-s".
_VERBS: dict[str, tuple[str, str]] = {
    "come": ("coming", "comes"), "move": ("moving", "moves"), "slide": ("sliding", "slides"),
    "bounce": ("bouncing", "bounces"), "rise": ("rising", "rises"), "go": ("going", "goes"),
    "stop": ("stopping", "stops"), "hop": ("hopping", "hops"), "drop": ("dropping", "drops"),
    "shake": ("shaking", "shakes"), "race": ("racing", "races"), "leave": ("leaving", "leaves"),
    "zigzag": ("zigzagging", "zigzags"), "circle": ("circling", "circles"),
    "reverse": ("reversing", "reverses"), "pass": ("passing", "passes"), "get": ("getting", "gets"),
    "travel": ("travelling", "travels"), "approach": ("approaching", "approaches"),
    "overtake": ("overtaking", "overtakes"), "weave": ("weaving", "weaves"),
    "become": ("becoming", "becomes"), "catch": ("catching", "catches"),
}  # fmt: skip


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


def _ahead(*rests: str) -> tuple[str, ...]:
    verbs = ("move", "go", "head", "travel", "slide")
    return tuple(f"{verb} {rest}" for verb in verbs for rest in rests)


def _sideways(word: str) -> tuple[str, ...]:
    return (*_ahead(f"to the {word}", word, f"towards the {word}"), f"drift {word}")


def _upright(word: str, border: str, verbs: str) -> tuple[str, ...]:
    return (*_ahead(word, f"{word}wards", f"towards the {border}"), *_list(verbs))


def _diagonal(vertical: str, side: str) -> tuple[str, ...]:
    return _ahead(
        f"{vertical} and to the {side}",
        f"{vertical} and {side}",
        f"diagonally {vertical} to the {side}",
    )


def _entry(side: str) -> tuple[str, ...]:
    verbs = ("come in", "enter", "come into view", "slide in", "appear")
    return tuple(f"{verb} from the {side}" for verb in verbs)


def _exit(place: str, rest: str) -> tuple[str, ...]:
    verbs = ("leave", "go out", "exit", "move out of view")
    return (*(f"{verb} {place}" for verb in verbs), f"disappear {rest}")


PHRASES: dict[str, tuple[str, ...]] = {
    "still": _list(
        "stay still | stand still | remain still | stay in place | rest in one place | do not move"
    ),
    "moving": _list("move | move around | move across the frame"),
    "left": _sideways("left"),
    "right": _sideways("right"),
    "up": _upright("up", "top", "rise | climb up"),
    "down": _upright("down", "bottom", "fall down | sink down"),
    "up_left": _diagonal("up", "left"),
    "up_right": _diagonal("up", "right"),
    "down_left": _diagonal("down", "left"),
    "down_right": _diagonal("down", "right"),
    "fast": _list(
        "move fast | move quickly | go fast | move at high speed | race across the frame"
    ),
    "slow": _list("move slowly | creep along | go slowly | move at low speed | drift slowly"),
    "circling": _list(
        "go in circles | move in a circle | go around in a circle | circle around "
        "| travel in circles"
    ),
    "clockwise": _list(
        "move clockwise | go around clockwise | circle clockwise | move in a clockwise circle"
    ),
    "counterclockwise": _list(
        "move counterclockwise | go around counterclockwise | circle counterclockwise "
        "| move in a counterclockwise circle"
    ),
    "zigzag": _list(
        "move in a zigzag | zigzag | zigzag across the frame | weave along | go in a zigzag"
    ),
    "bounce": _list(
        "jump up and down | bounce up and down | hop in place | bounce | hop up and down"
    ),
    "shake": _list(
        "move from side to side | swing from side to side | swing left and right "
        "| shake left and right | go back and forth"
    ),
    "stop": _list(
        "move and then *stop | come to a stop | stop halfway | come to a halt "
        "| move first and then *stand still"
    ),
    "start": _list(
        "wait and then *move | start to move later | start late | wait before moving "
        "| stand still first and then *move"
    ),
    "turn_back": _list(
        "turn back | go and *come back | reverse direction | move away and *return "
        "| return to where it started"
    ),
    "grow": _list("grow | get bigger | become larger | grow larger | get larger"),
    "shrink": _list("shrink | get smaller | become smaller | shrink down | get tinier"),
    "enter": _list(
        "enter the frame | come into view | move into the frame | enter the scene "
        "| come into the frame"
    ),
    "leave": _list(
        "leave the frame | go out of view | move out of the frame | leave the scene "
        "| exit the frame"
    ),
    "enter_left": _entry("left"),
    "enter_right": _entry("right"),
    "enter_top": _entry("top"),
    "enter_bottom": _entry("bottom"),
    "leave_left": _exit("on the left", "to the left"),
    "leave_right": _exit("on the right", "to the right"),
    "leave_top": _exit("at the top", "over the top"),
    "leave_bottom": _exit("at the bottom", "below the frame"),
    "overtake": _list(
        "overtake another one | overtake another object | pass another moving object "
        "| catch up with and *pass another one"
    ),
    "toward": _list(
        "move towards | come closer to | head for | get closer to | go towards | approach"
    ),
    "away": _list("move away from | go further from | head away from | get further from"),
}
"""Phrases of each predicate of motion. A noun follows the phrases of ``toward`` and ``away``."""

RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left_of": ("left of", "to the left of", "on the left side of"),
    "right_of": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "higher than", "over"),
    "below": ("below", "lower than", "under"),
}
"""Phrases of each relation; all relations have the same number of phrases."""

SUPERLATIVE_PHRASES: dict[str, tuple[str, ...]] = {
    "leftmost": ("leftmost {}", "{} on the far left", "{} furthest to the left"),
    "rightmost": ("rightmost {}", "{} on the far right", "{} furthest to the right"),
    "highest": ("highest {}", "topmost {}", "{} at the very top"),
    "lowest": ("lowest {}", "bottommost {}", "{} at the very bottom"),
}
"""Phrases of each superlative, with a placeholder for the noun."""

COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
"""Words for numbers of objects."""

_PLURALS = {
    "fish": "fish", "octopus": "octopuses", "bus": "buses", "fox": "foxes", "cross": "crosses",
}  # fmt: skip
_SIMILAR = (frozenset({"ring", "circle"}), frozenset({"square", "diamond"}))
"""Shapes that a person might confuse."""


@dataclass(frozen=True)
class Noun:
    """Hold the attributes that a description names; the others are None.

    Without a name, the noun is "one", "object" or "thing".
    """

    name: str | None = None
    colour: str | None = None
    size: Size | None = None
    texture: Texture | None = None

    def fits(self, look: Look, size: Size | None) -> bool | None:
        """Decide whether the noun describes an object; None if a person might doubt it."""
        results = [
            self.name is None or self.name == look.name or _maybe_same(self.name, look.name),
            self.colour is None or (None if look.is_emoji else self.colour == look.colour),
            self.size is None or (None if size is None else self.size == size),
            self.texture is None or (None if look.is_emoji else self.texture == look.texture),
        ]
        return False if False in results else (None if None in results else True)


def _maybe_same(one: str, other: str) -> bool | None:
    return None if frozenset({one, other}) in _SIMILAR else False


def _pluralise(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def noun_words(noun: Noun, plural: bool, rng: np.random.Generator) -> str:
    """Return a noun with its adjectives and without an article: "small striped red stars"."""
    word = noun.name or pick(rng, ("objects", "things") if plural else ("object", "thing", "one"))
    if plural and noun.name:
        word = _pluralise(noun.name)
    return " ".join(part for part in (noun.size, noun.texture, noun.colour, word) if part)


def with_article(words: str) -> str:
    """Prefix the indefinite article: "a red star"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_Form = Literal["ing", "s", "base"]


def _conjugate(phrase: str, form: _Form) -> str:
    """Put all verbs of a phrase into the participle, the singular or the plural."""
    if phrase == "do not move":
        return {"ing": "not moving", "s": "does not move", "base": phrase}[form]
    words = f"*{phrase}".split(" ")
    return " ".join(_inflect(word[1:], form) if word[0] == "*" else word for word in words)


def _inflect(verb: str, form: _Form) -> str:
    if form == "base":
        return verb
    ing, s = _VERBS.get(verb, (f"{verb}ing", f"{verb}s"))
    return ing if form == "ing" else s


def motion_words(claim: str, plural: bool, rng: np.random.Generator) -> str:
    """Return words for a predicate of motion that follow a noun: "moving left", "that turns"."""
    phrase = pick(rng, PHRASES[claim])
    if plural:
        phrase = phrase.replace("where it", "where they")
    if chance(rng, 0.6):
        return _conjugate(phrase, "ing")
    pronoun = "which" if chance(rng, 0.2) else "that"
    return f"{pronoun} {_conjugate(phrase, 'base' if plural else 's')}"
