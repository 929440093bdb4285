"""Draw pictures with captions for contrastive CLIP training, including captions of motion.

A picture shows motion as a montage: frames in reading order, or a trail that becomes more opaque
towards the last frame. Without such pictures, the text encoder does not distinguish "left" from
"right".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from rvos_deploy.datasets.moving_sprites.backgrounds import draw_background, paint_background
from rvos_deploy.datasets.moving_sprites.language import (
    COUNT_WORDS,
    RELATION_PHRASES,
    Noun,
    motion_words,
    noun_words,
    with_article,
)
from rvos_deploy.datasets.moving_sprites.looks import (
    COLOURS,
    EMOJI,
    SHAPES,
    combination_allowed,
    draw_look,
    require_font,
)
from rvos_deploy.datasets.moving_sprites.motion import (
    MOTIONS,
    Arena,
    Trajectory,
    draw_trajectory,
)
from rvos_deploy.datasets.moving_sprites.predicates import OPPOSITES
from rvos_deploy.datasets.moving_sprites.render import Sprite, composite, paint_sprite, place
from rvos_deploy.datasets.moving_sprites.rng import (
    below,
    chance,
    pick,
    stream,
    uniform,
    weighted,
)
from rvos_deploy.datasets.moving_sprites.world import (
    RELATIONS,
    SPLITS,
    Look,
    Picture,
    Split,
    check_split,
)
from rvos_deploy.errors import InputError

Layout = Literal["stack", "row", "grid", "trail"]

_DIRECTIONS = ("left", "right", "up", "down", "up_left", "up_right", "down_left", "down_right")
_CURVES = ("clockwise", "counterclockwise", "zigzag")
_RESIZES = ("grow", "shrink")
# Two frames do not distinguish a stop from a reversal, and a trail does not show the order of
# frames that lie on one line.
_READABLE: dict[Layout, tuple[str, ...]] = {
    "stack": _DIRECTIONS + _RESIZES,
    "row": _DIRECTIONS + _RESIZES,
    "trail": _DIRECTIONS + _CURVES,
    "grid": tuple(motion for motion in MOTIONS if motion not in ("fast", "slow")),
}
"""The motions that a person can recognise in each layout."""

_CANVASES = 96  # backgrounds of each size; each is painted once, and pictures show parts of it
_TRAIL_FRAMES = 7


@lru_cache(maxsize=2 * _CANVASES)
def _canvas(split: Split, number: int, side: int) -> Picture:
    rng = stream(SPLITS.index(split), number, 77)
    return paint_background(draw_background(rng, split, side, side, None))


def _draw_backdrop(rng: np.random.Generator, split: Split, height: int, width: int) -> Picture:
    """Return a random window of a random background: uint8 [height, width, 3]."""
    side = max(height, width) * 3 // 2
    canvas = _canvas(split, below(rng, _CANVASES), side)
    y, x = below(rng, side - height + 1), below(rng, side - width + 1)
    window: Picture = canvas[y : y + height, x : x + width].copy()
    return window


def _paint_object(
    picture: Picture, look: Look, diameter: float, x: float, y: float, opacity: float = 1.0
) -> None:
    """Paint an object centred at (x, y) pixels over ``picture`` [H, W, 3], in place."""
    sprite = paint_sprite(look, max(4, round(diameter)))
    if opacity < 1:
        rest = 256 - np.round((256 - sprite.rest) * opacity).astype(np.uint16)
        faint = np.floor(sprite.colour * opacity).astype(np.uint16)
        sprite = Sprite(faint, rest, sprite.solid, sprite.area)
    regions = place(sprite, x, y, *picture.shape[:2])
    if regions is not None:
        composite(picture, sprite, *regions)


@dataclass(frozen=True, eq=False)
class MotionMontage:
    """Hold the motion of one object, which can be painted as one picture.

    background: uint8 [h, w, 3], the background of one frame. diameter: in pixels, at scale 1.
    """

    motion: str
    look: Look
    trajectory: Trajectory
    diameter: float
    background: Picture
    layout: Layout

    def paint(self, size: int, backwards: bool = False) -> Picture:
        """Paint the montage, forwards or backwards in time: uint8 [size, size, 3]."""
        if self.layout == "trail":
            picture: Picture = self.background.copy()
            for i in range(_TRAIL_FRAMES):
                moment = i / (_TRAIL_FRAMES - 1)
                opacity = 0.12 + 0.88 * moment**1.6
                self._paint_moment(picture, 1 - moment if backwards else moment, opacity)
            return picture
        rows, columns = {"stack": (2, 1), "row": (1, 2), "grid": (2, 2)}[self.layout]
        tall, wide = self.background.shape[:2]
        picture = np.full((size, size, 3), 235, np.uint8)
        for i in range(rows * columns):
            moment = i / (rows * columns - 1)
            frame = self.background.copy()
            self._paint_moment(frame, 1 - moment if backwards else moment, 1.0)
            top, left = (i // columns) * (size - tall), (i % columns) * (size - wide)
            picture[top : top + tall, left : left + wide] = frame
        return picture

    def _paint_moment(self, picture: Picture, moment: float, opacity: float) -> None:
        t = round(moment * (len(self.trajectory.scales) - 1))
        x, y = self.trajectory.centres[t].tolist()
        diameter = self.diameter * float(self.trajectory.scales[t])
        _paint_object(picture, self.look, diameter, x, y, opacity)


def draw_montage(
    rng: np.random.Generator, size: int, split: Split, emoji: bool, motions: Sequence[str]
) -> MotionMontage:
    """Draw a montage of one of ``motions`` for a picture of ``size`` x ``size`` pixels."""
    layout: Layout = weighted(rng, ("stack", "row", "grid", "trail"), (0.2, 0.15, 0.4, 0.25))
    half = (size - max(2, size // 32)) // 2
    height = half if layout in ("stack", "grid") else size
    width = half if layout in ("row", "grid") else size
    readable = [motion for motion in motions if motion in _READABLE[layout]]
    while True:
        motion = pick(rng, readable)
        share = uniform(rng, 0.22, 0.3) if layout == "trail" else uniform(rng, 0.26, 0.36)
        diameter = min(height, width) * share * (1.6 if motion in _RESIZES else 1.0)
        trajectory = draw_trajectory(motion, rng, Arena(width, height, 25, diameter / 2))
        if trajectory is not None:
            look = draw_look(rng, split, emoji)
            background = _draw_backdrop(rng, split, height, width)
            return MotionMontage(motion, look, trajectory, diameter, background, layout)


# Motions that nobody confuses with a zigzag or a reversal, which have no opposite.
_CLEARLY_DIFFERENT = ("still", "clockwise", "counterclockwise", "grow", "shrink")
# Each of these motions, played backwards, shows the other motion with the same frames.
_REVERSED = {a: OPPOSITES[a] for a in (*_DIRECTIONS, *_RESIZES, *_CURVES[:2], "stop", "start")}
for _side in ("left", "right", "top", "bottom"):
    _REVERSED[f"enter_{_side}"], _REVERSED[f"leave_{_side}"] = f"leave_{_side}", f"enter_{_side}"


@dataclass(frozen=True, eq=False)
class CaptionExample:
    """Hold a picture uint8 [S, S, 3], its caption, and a similar caption that is false."""

    image: Picture
    caption: str
    negative: str
    kind: Literal["object", "scene", "motion"]


def _draw_noun(rng: np.random.Generator, look: Look) -> Noun:
    if look.is_emoji:
        return Noun(name=look.name)
    textured = look.texture != "plain" and chance(rng, 0.6)
    colour = None if chance(rng, 0.12) else look.colour
    return Noun(look.name, colour, None, look.texture if textured else None)


def _draw_wrong_noun(rng: np.random.Generator, noun: Noun, look: Look, split: Split) -> Noun:
    """Replace the colour or the name of a noun by a wrong word that ``split`` may use."""
    if look.is_emoji:
        return replace(noun, name=pick(rng, [name for name in EMOJI if name != look.name]))
    while True:
        if noun.colour and chance(rng, 0.5):
            other = replace(noun, colour=pick(rng, tuple(COLOURS)))
        else:
            other = replace(noun, name=pick(rng, tuple(SHAPES)))
        if other.fits(look, None) is False and combination_allowed(split, other.colour, other.name):
            return other


def _object_example(
    rng: np.random.Generator, size: int, split: Split, emoji: bool
) -> CaptionExample:
    """Draw one object that fills much of the picture, like a crop around it."""
    look, picture = draw_look(rng, split, emoji), _draw_backdrop(rng, split, size, size)
    diameter = size * uniform(rng, 0.25, 0.85)
    slack = max(0.0, size - 0.8 * diameter) / 2
    x, y = (size / 2 + uniform(rng, -slack, slack) for _ in range(2))
    _paint_object(picture, look, diameter, x, y)
    noun = _draw_noun(rng, look)
    frame = pick(rng, ("{}", "{}", "{}", "the {}", "a picture of {}", "there is {}"))
    nouns = noun, _draw_wrong_noun(rng, noun, look, split)
    true, false = (noun_words(n, False, rng) for n in nouns)
    texts = [frame.format(w if frame == "the {}" else with_article(w)) for w in (true, false)]
    return CaptionExample(picture, texts[0], texts[1], "object")


def _scene_example(
    rng: np.random.Generator, size: int, split: Split, emoji: bool
) -> CaptionExample:
    """Draw two objects beside each other, or several equal objects."""
    picture = _draw_backdrop(rng, split, size, size)
    first = draw_look(rng, split, emoji)
    if chance(rng, 0.25):
        return _count_example(rng, picture, first)
    second = draw_look(rng, split, emoji, first)
    while second.resembles(first) or Noun(first.name, first.colour).fits(second, None) is not False:
        second = draw_look(rng, split, emoji)
    relation = pick(rng, RELATIONS)
    turn = {"left_of": 0, "above": 1, "right_of": 2, "below": 3}[relation] * np.pi / 2
    turn += uniform(rng, -0.5, 0.5)
    reach = size * uniform(rng, 0.19, 0.24)
    middle = size * uniform(rng, 0.45, 0.55)
    for look, sign in ((first, -1), (second, 1)):
        x, y = middle + sign * reach * np.cos(turn), middle + sign * reach * np.sin(turn)
        _paint_object(picture, look, size * uniform(rng, 0.26, 0.38), x, y)
    nouns = [_draw_noun(rng, first), _draw_noun(rng, second)]
    if nouns[0].fits(second, None) is not False or nouns[1].fits(first, None) is not False:
        nouns = [
            Noun(look.name, look.colour, None, None if look.is_emoji else look.texture)
            for look in (first, second)
        ]
    words = [with_article(noun_words(noun, False, rng)) for noun in nouns]
    if chance(rng, 0.3):
        wrong = _draw_wrong_noun(rng, nouns[1], second, split)
        other = with_article(noun_words(wrong, False, rng))
        return CaptionExample(
            picture, f"{words[0]} and {words[1]}", f"{words[0]} and {other}", "scene"
        )
    phrase = below(rng, 3)
    true, false = (RELATION_PHRASES[r][phrase] for r in (relation, OPPOSITES[relation]))
    return CaptionExample(
        picture, f"{words[0]} {true} {words[1]}", f"{words[0]} {false} {words[1]}", "scene"
    )


def _count_example(rng: np.random.Generator, picture: Picture, look: Look) -> CaptionExample:
    size, count = picture.shape[0], 2 + below(rng, 3)
    turn, reach = uniform(rng, 0, 2 * np.pi), size * uniform(rng, 0.26, 0.3)
    for i in range(count):
        angle = turn + 2 * np.pi * i / count
        x, y = size / 2 + reach * np.cos(angle), size / 2 + reach * np.sin(angle)
        _paint_object(picture, look, size * uniform(rng, 0.24, 0.32), x, y)
    words = noun_words(_draw_noun(rng, look), True, rng)
    wrong = pick(rng, [n for n in (2, 3, 4) if n != count])
    return CaptionExample(
        picture, f"{COUNT_WORDS[count]} {words}", f"{COUNT_WORDS[wrong]} {words}", "scene"
    )


def _motion_captions(
    rng: np.random.Generator, noun: Noun, motion: str, other: str
) -> tuple[str, str]:
    """Put two motions into words; the same draws pick parallel phrases for both."""
    article = pick(rng, ("a", "a", "the"))
    words = noun_words(noun, False, rng)
    subject = with_article(words) if article == "a" else f"the {words}"
    twin = copy.deepcopy(rng)
    return (
        f"{subject} {motion_words(motion, False, rng)}",
        f"{subject} {motion_words(other, False, twin)}",
    )


def _motion_example(
    rng: np.random.Generator, size: int, split: Split, emoji: bool
) -> CaptionExample:
    montage = draw_montage(rng, size, split, emoji, MOTIONS)
    other = OPPOSITES.get(montage.motion) or pick(rng, _CLEARLY_DIFFERENT)
    captions = _motion_captions(rng, _draw_noun(rng, montage.look), montage.motion, other)
    return CaptionExample(montage.paint(size), *captions, "motion")


def _check(size: int, split: Split, emoji: bool) -> None:
    if size < 32:
        raise InputError(f"pictures need at least 32 pixels per side, found {size}")
    check_split(split)
    if emoji:
        require_font()


def caption_example(
    rng: np.random.Generator, size: int, *, split: Split = "train", emoji: bool = False
) -> CaptionExample:
    """Draw a picture of ``size`` x ``size`` pixels, its caption, and a similar false caption.

    40% of the pictures show one object, 20% several objects, and 40% a motion. Raises InputError:
    the size is below 32 pixels, the split is unknown, or emoji lack their font.
    """
    _check(size, split, emoji)
    draw = weighted(rng, (_object_example, _scene_example, _motion_example), (0.4, 0.2, 0.4))
    return draw(rng, size, split, emoji)


def contrast_pair(
    rng: np.random.Generator, size: int, *, split: Split = "train", emoji: bool = False
) -> tuple[CaptionExample, CaptionExample]:
    """Draw a motion forwards and backwards; the caption of each picture is false of the other.

    Raises the errors of ``caption_example``.
    """
    _check(size, split, emoji)
    montage = draw_montage(rng, size, split, emoji, tuple(_REVERSED))
    noun = _draw_noun(rng, montage.look)
    true, false = _motion_captions(rng, noun, montage.motion, _REVERSED[montage.motion])
    return (
        CaptionExample(montage.paint(size), true, false, "motion"),
        CaptionExample(montage.paint(size, backwards=True), false, true, "motion"),
    )
