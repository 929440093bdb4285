"""What a video is made of: plain records, drawn by scenes.py, measured by facts.py, painted by
render.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rvos_deploy.datasets.moving_sprites.backgrounds import Background
from rvos_deploy.datasets.moving_sprites.palette import Look, Split
from rvos_deploy.datasets.moving_sprites.phrases import PLACES, SUPERLATIVES
from rvos_deploy.errors import InputError

Kind = Literal["appearance", "motion", "relation", "plural", "no_target"]
Size = Literal["small", "large"]

KINDS: tuple[Kind, ...] = ("appearance", "motion", "relation", "plural", "no_target")
WORLD_VERSION = 1
"""Part of every seed: raised when the same seed begins to give another video."""


@dataclass(frozen=True)
class WorldConfig:
    """The settings of a world. Sizes in pixels; ranges include both ends.

    emoji: draw emoji beside shapes; making such a video needs the font (``emoji.require_font``),
    which a config alone does not. photos: a folder of photographs to use as backgrounds. wordings:
    expressions that may say the same of the same objects in other words; they do not change the
    video.
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
            raise InputError(f"a motion needs at least 8 frames to be seen, found {self.frames}")
        if not 2 <= self.objects[0] <= self.objects[1] <= 6:
            raise InputError(f"objects must be within 2 .. 6, found {self.objects}")
        if not 1 <= self.expressions[0] <= self.expressions[1] <= 48:
            raise InputError(f"expressions must be within 1 .. 48, found {self.expressions}")
        if self.wordings < 1:
            raise InputError(f"wordings must be at least 1, found {self.wordings}")

    @property
    def unit(self) -> float:
        """Pixels that one pixel of the default frame (128 high) becomes."""
        return min(self.height, self.width) / 128


@dataclass(frozen=True, eq=False)
class SpriteObject:
    """One object of a video.

    size: None where it grows or shrinks. motion: the motion it was given (a name of
    trajectories.MOTIONS, "toward", "away", "overtake" or "overtaken"). centres: float64 [T, 2], x
    and y of the middle of its box in the frame, camera drift included, in pixels. diameters: int64
    [T], side of its box in pixels.
    """

    look: Look
    size: Size | None
    motion: str
    centres: npt.NDArray[np.float64]
    diameters: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Expression:
    """A sentence and the objects it means.

    targets: indices into SpriteVideo.objects, ascending; empty for no target. claim: the motion or
    relation that it names, None where it names looks alone.
    """

    text: str
    kind: Kind
    targets: tuple[int, ...]
    claim: str | None = None

    @property
    def needs_time(self) -> bool:
        """Whether it claims a motion, which no single frame shows."""
        return self.claim is not None and self.claim not in (*PLACES, *SUPERLATIVES)


@dataclass(frozen=True, eq=False)
class SpriteVideo:
    """A video before it is painted: a pure function of (seed, split, index, config).

    objects: from the rearmost to the foremost. offsets: int64 [T, 2], x and y of the frame's corner
    on the background's canvas. gains: float64 [T], brightness of each frame.
    """

    seed: int
    split: Split
    index: int
    config: WorldConfig
    objects: tuple[SpriteObject, ...]
    background: Background
    offsets: npt.NDArray[np.int64]
    gains: npt.NDArray[np.float64]
    expressions: tuple[Expression, ...] = ()

    @property
    def name(self) -> str:
        """A folder name that is unique within a seed."""
        return f"sprites_{self.split}_{self.seed}_{self.index:06d}"
