"""Define the records that describe a video before it is painted, and the settings of its world.

``generate.py`` draws the records, ``predicates.py`` measures them, ``render.py`` paints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rvos_deploy.errors import InputError

Array = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]

Split = Literal["train", "valid"]
Kind = Literal["appearance", "motion", "relation", "plural", "no_target"]
Size = Literal["small", "large"]
Texture = Literal["plain", "striped", "dotted"]

SPLITS: tuple[Split, ...] = ("train", "valid")
KINDS: tuple[Kind, ...] = ("appearance", "motion", "relation", "plural", "no_target")
TEXTURES: tuple[Texture, ...] = ("plain", "striped", "dotted")
RELATIONS = ("left_of", "right_of", "above", "below")
"""Predicates that compare the places of two objects."""
SUPERLATIVES = ("leftmost", "rightmost", "highest", "lowest")
"""Predicates that compare the place of an object with the places of all its look-alikes."""

WORLD_VERSION = 1
"""Part of every seed. Increment it when a change makes a seed's video differ."""


def check_split(split: str) -> None:
    """Raise InputError unless ``split`` is one of ``SPLITS``."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")


@dataclass(frozen=True)
class WorldConfig:
    """Configure the world that Moving Sprites are rendered from. Ranges include both ends.

    Attributes:
        height: Height of a frame, 64 to 4096. [pixels]
        width: Width of a frame, 64 to 4096, at most 2.5 times the height or the reverse. [pixels]
        frames: Frames of a video, at least 8. [frames]
        objects: Least and greatest number of objects in a video, within 2 to 6. [objects]
        expressions: Least and greatest number of expressions in a video, within 1 to 48.
            [expressions]
        wordings: Greatest number of expressions in a video that make the same claim about the same
            objects in different words. The frames do not depend on it. [expressions]
        emoji: Whether emoji are drawn beside shapes. Emoji need the font NotoColorEmoji.ttf.
        photos: Folder of photographs, from which seven in ten backgrounds are taken. None: all
            backgrounds are drawn.
    """

    height: int = 128
    width: int = 224
    frames: int = 24
    objects: tuple[int, int] = (2, 6)
    expressions: tuple[int, int] = (4, 8)
    wordings: int = 1
    emoji: bool = False
    photos: str | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 64 or max(self.height, self.width) > 4096:
            raise InputError(
                f"frame size must be 64 .. 4096 pixels, found {self.height}x{self.width}"
            )
        if max(self.height, self.width) > 2.5 * min(self.height, self.width):
            raise InputError(f"aspect ratio must be at most 2.5, found {self.height}x{self.width}")
        if self.frames < 8:
            raise InputError(f"a visible motion needs at least 8 frames, found {self.frames}")
        if not 2 <= self.objects[0] <= self.objects[1] <= 6:
            raise InputError(f"objects must be within 2 .. 6, found {self.objects}")
        if not 1 <= self.expressions[0] <= self.expressions[1] <= 48:
            raise InputError(f"expressions must be within 1 .. 48, found {self.expressions}")
        if self.wordings < 1:
            raise InputError(f"wordings must be at least 1, found {self.wordings}")

    @property
    def unit(self) -> float:
        """Return the scale of the frame relative to the default frame, which is 128 pixels high."""
        return min(self.height, self.width) / 128

    @property
    def path_unit(self) -> float:
        """Return the unit of path lengths in pixels: three quarters of the longer side."""
        return 0.75 * max(self.height, self.width)


@dataclass(frozen=True)
class Look:
    """Describe the look of an object, without its size.

    name: a shape, or the plain name of an emoji, whose ``colour`` is None. tint: a slight change of
    the colour, -1 .. 1. degrees: clockwise rotation of a shape.
    """

    name: str
    colour: str | None
    texture: Texture = "plain"
    tint: float = 0.0
    degrees: int = 0

    @property
    def is_emoji(self) -> bool:
        """Return True for an emoji, False for a shape."""
        return self.colour is None

    def resembles(self, other: Look) -> bool:
        """Tell whether both looks have the same name, colour and texture, and so the same words."""
        mine = self.name, self.colour, self.texture
        return mine == (other.name, other.colour, other.texture)


@dataclass(frozen=True)
class Background:
    """Describe a background. Equal descriptions paint equal pixels. Sizes are in pixels."""

    family: str
    key: tuple[int, ...]
    height: int
    width: int
    split: Split
    photo: str | None = None


@dataclass(frozen=True, eq=False)
class SpriteObject:
    """Describe one object of a video.

    size: None for an object that grows or shrinks. motion: the motion that was drawn for the object
    (one of ``motion.MOTIONS``, "toward", "away", "overtake" or "overtaken"). centres: float64
    [T, 2], x and y of the object's box centre in the frame, with camera drift, in pixels.
    diameters: int64 [T], side of the box in pixels.
    """

    look: Look
    size: Size | None
    motion: str
    centres: Array
    diameters: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Expression:
    """Hold a referring expression and its target objects.

    targets: ascending indices into ``SpriteVideo.objects``; empty for no target. claim: name of the
    predicate that the expression claims of its targets; None if it names only looks.
    """

    text: str
    kind: Kind
    targets: tuple[int, ...]
    claim: str | None = None

    @property
    def needs_time(self) -> bool:
        """Tell whether the expression claims a motion, which no single frame shows."""
        return self.claim is not None and self.claim not in (*RELATIONS, *SUPERLATIVES)


@dataclass(frozen=True, eq=False)
class SpriteVideo:
    """Describe a video before it is painted: a pure function of (seed, split, index, config).

    objects: from back to front. offsets: int64 [T, 2], x and y of the frame's top left corner on
    the background. gains: float64 [T], brightness of each frame.
    """

    seed: int
    split: Split
    index: int
    config: WorldConfig
    objects: tuple[SpriteObject, ...]
    background: Background
    offsets: npt.NDArray[np.int64]
    gains: Array
    expressions: tuple[Expression, ...] = ()

    @property
    def name(self) -> str:
        """Return a folder name that is unique within a seed."""
        return f"sprites_{self.split}_{self.seed}_{self.index:06d}"
