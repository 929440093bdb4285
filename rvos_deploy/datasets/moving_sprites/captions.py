"""Pictures with captions for contrastive CLIP training, motion words included.

A single picture shows motion as a film strip (frames side by side, in reading order) or as a trail
(ghosts that grow more solid towards the present). Without such pictures a text tower merges "left"
and "right".
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rvos_deploy.datasets.moving_sprites.claims import OPPOSITES
from rvos_deploy.datasets.moving_sprites.emoji import EMOJI, require_font
from rvos_deploy.datasets.moving_sprites.motion_montage import (
    CURVES,
    DIRECTIONS,
    RESIZES,
    Picture,
    backdrop,
    draw_film,
    lay,
)
from rvos_deploy.datasets.moving_sprites.palette import (
    COLOURS,
    SPLITS,
    Look,
    Split,
    combination_allowed,
)
from rvos_deploy.datasets.moving_sprites.phrases import COUNTS, PLACES
from rvos_deploy.datasets.moving_sprites.rng import below, chance, pick, uniform, weighted
from rvos_deploy.datasets.moving_sprites.scenes import draw_look
from rvos_deploy.datasets.moving_sprites.shapes import SHAPES
from rvos_deploy.datasets.moving_sprites.trajectories import MOTIONS
from rvos_deploy.datasets.moving_sprites.wording import Noun, motion_words, noun_words
from rvos_deploy.errors import InputError

# What neither a zigzag nor a turn, which have no opposite, could be taken for.
_PLAINLY_OTHER = ("still", "clockwise", "counterclockwise", "grow", "shrink")
# Played backwards, each of these motions shows the other, with the very same pictures.
_REVERSED = {a: OPPOSITES[a] for a in (*DIRECTIONS, *RESIZES, *CURVES[:2], "stop", "start")}
for _side in ("left", "right", "top", "bottom"):
    _REVERSED[f"enter_{_side}"], _REVERSED[f"leave_{_side}"] = f"leave_{_side}", f"enter_{_side}"


@dataclass(frozen=True, eq=False)
class CaptionExample:
    """A picture uint8 [S, S, 3], what is true of it, and a caption alike that is false of it.

    kind: "object", "scene" or "motion".
    """

    image: Picture
    caption: str
    negative: str
    kind: Literal["object", "scene", "motion"]


def _noun(rng: np.random.Generator, look: Look) -> Noun:
    if look.is_emoji:
        return Noun(name=look.name)
    textured = look.texture != "plain" and chance(rng, 0.6)
    colour = None if chance(rng, 0.12) else look.colour
    return Noun(look.name, colour, None, look.texture if textured else None)


def _other_noun(rng: np.random.Generator, noun: Noun, look: Look, split: Split) -> Noun:
    """Exchange the colour or the name of a noun for a wrong one that the split may name."""
    if look.is_emoji:
        return replace(noun, name=pick(rng, [name for name in EMOJI if name != look.name]))
    while True:
        if noun.colour and chance(rng, 0.5):
            other = replace(noun, colour=pick(rng, tuple(COLOURS)))
        else:
            other = replace(noun, name=pick(rng, tuple(SHAPES)))
        if other.fits(look, None) is False and combination_allowed(split, other.colour, other.name):
            return other


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _object_example(
    rng: np.random.Generator, size: int, split: Split, emoji: bool
) -> CaptionExample:
    """One object, filling a good part of the picture, as a crop around it would."""
    look, picture = draw_look(rng, split, emoji), backdrop(rng, split, size, size)
    diameter = size * uniform(rng, 0.25, 0.85)
    slack = max(0.0, size - 0.8 * diameter) / 2
    x, y = (size / 2 + uniform(rng, -slack, slack) for _ in range(2))
    lay(picture, look, diameter, x, y)
    noun = _noun(rng, look)
    frame = pick(rng, ("{}", "{}", "{}", "the {}", "a picture of {}", "there is {}"))
    true, false = (noun_words(n, False, rng) for n in (noun, _other_noun(rng, noun, look, split)))
    texts = [frame.format(w if frame == "the {}" else _a(w)) for w in (true, false)]
    return CaptionExample(picture, texts[0], texts[1], "object")


def _scene_example(
    rng: np.random.Generator, size: int, split: Split, emoji: bool
) -> CaptionExample:
    """Two objects beside each other, or several alike."""
    picture = backdrop(rng, split, size, size)
    first = draw_look(rng, split, emoji)
    if chance(rng, 0.25):
        return _count_example(rng, picture, first)
    second = draw_look(rng, split, emoji, first)
    while second.resembles(first) or Noun(first.name, first.colour).fits(second, None) is not False:
        second = draw_look(rng, split, emoji)
    relation = pick(rng, tuple(PLACES))
    turn = {"left_of": 0, "above": 1, "right_of": 2, "below": 3}[relation] * np.pi / 2
    turn += uniform(rng, -0.5, 0.5)
    reach = size * uniform(rng, 0.19, 0.24)
    middle = size * uniform(rng, 0.45, 0.55)
    for look, sign in ((first, -1), (second, 1)):
        x, y = middle + sign * reach * np.cos(turn), middle + sign * reach * np.sin(turn)
        lay(picture, look, size * uniform(rng, 0.26, 0.38), x, y)
    nouns = [_noun(rng, first), _noun(rng, second)]
    if nouns[0].fits(second, None) is not False or nouns[1].fits(first, None) is not False:
        nouns = [
            Noun(look.name, look.colour, None, None if look.is_emoji else look.texture)
            for look in (first, second)
        ]
    words = [_a(noun_words(noun, False, rng)) for noun in nouns]
    if chance(rng, 0.3):
        other = _a(noun_words(_other_noun(rng, nouns[1], second, split), False, rng))
        return CaptionExample(
            picture, f"{words[0]} and {words[1]}", f"{words[0]} and {other}", "scene"
        )
    way = below(rng, 3)
    true, false = (PLACES[r][way] for r in (relation, OPPOSITES[relation]))
    return CaptionExample(
        picture, f"{words[0]} {true} {words[1]}", f"{words[0]} {false} {words[1]}", "scene"
    )


def _count_example(rng: np.random.Generator, picture: Picture, look: Look) -> CaptionExample:
    size, count = picture.shape[0], 2 + below(rng, 3)
    turn, reach = uniform(rng, 0, 2 * np.pi), size * uniform(rng, 0.26, 0.3)
    for i in range(count):
        angle = turn + 2 * np.pi * i / count
        x, y = size / 2 + reach * np.cos(angle), size / 2 + reach * np.sin(angle)
        lay(picture, look, size * uniform(rng, 0.24, 0.32), x, y)
    words = noun_words(_noun(rng, look), True, rng)
    wrong = pick(rng, [n for n in (2, 3, 4) if n != count])
    return CaptionExample(picture, f"{COUNTS[count]} {words}", f"{COUNTS[wrong]} {words}", "scene")


def _motion_captions(
    rng: np.random.Generator, noun: Noun, motion: str, other: str
) -> tuple[str, str]:
    """Word a motion and another one alike: the same draws pick parallel phrases."""
    article = pick(rng, ("a", "a", "the"))
    words = noun_words(noun, False, rng)
    subject = _a(words) if article == "a" else f"the {words}"
    twin = copy.deepcopy(rng)
    return (
        f"{subject} {motion_words(motion, False, rng)}",
        f"{subject} {motion_words(other, False, twin)}",
    )


def _motion_example(
    rng: np.random.Generator, size: int, split: Split, emoji: bool
) -> CaptionExample:
    film = draw_film(rng, size, split, emoji, MOTIONS)
    other = OPPOSITES.get(film.motion) or pick(rng, _PLAINLY_OTHER)
    captions = _motion_captions(rng, _noun(rng, film.look), film.motion, other)
    return CaptionExample(film.picture(size), *captions, "motion")


def _check(size: int, split: Split, emoji: bool) -> None:
    if size < 32:
        raise InputError(f"pictures need at least 32 pixels a side, found {size}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if emoji:
        require_font()


def caption_record(
    rng: np.random.Generator, size: int, *, split: Split = "train", emoji: bool = False
) -> CaptionExample:
    """Draw a picture of ``size`` x ``size`` pixels with its caption and a false caption that is
    much alike.

    Four in ten are of one object, two of several, four of motion. Raises InputError for a size
    below 32 pixels, an unknown split, or emoji without their font.
    """
    _check(size, split, emoji)
    draw = weighted(rng, (_object_example, _scene_example, _motion_example), (0.4, 0.2, 0.4))
    return draw(rng, size, split, emoji)


def caption_example(
    rng: np.random.Generator, size: int, *, split: Split = "train", emoji: bool = False
) -> tuple[Picture, str]:
    """Draw a picture uint8 [size, size, 3] and its caption. Raises as ``caption_record``."""
    record = caption_record(rng, size, split=split, emoji=emoji)
    return record.image, record.caption


def contrast_pair(
    rng: np.random.Generator, size: int, *, split: Split = "train", emoji: bool = False
) -> tuple[CaptionExample, CaptionExample]:
    """Draw a motion and the same pictures in reversed order: the caption of each is false of the
    other.

    Raises as ``caption_record``.
    """
    _check(size, split, emoji)
    film = draw_film(rng, size, split, emoji, tuple(_REVERSED))
    noun = _noun(rng, film.look)
    true, false = _motion_captions(rng, noun, film.motion, _REVERSED[film.motion])
    return (
        CaptionExample(film.picture(size), true, false, "motion"),
        CaptionExample(film.picture(size, backwards=True), false, true, "motion"),
    )
