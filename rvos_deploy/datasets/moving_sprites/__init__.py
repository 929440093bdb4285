"""Moving Sprites: videos with exact masks, and expressions that say which object moves how.

The synthetic benchmark for motion expressions, and the material that the tiny network is trained
on. It stands outside ``rvos_deploy.training``, most of which needs torch, because the demo of an
installation without torch renders its video with it. Torch-free::

    video = make_video(seed=1, split="train", index=0)
    frames, masks = render(video)  # uint8 [T, H, W, 3], bool [T, K, H, W]
    for e in video.expressions:
        print(e.kind, e.text, e.targets)  # motion "the red star that turns back" (2,)
"""

from __future__ import annotations

from rvos_deploy.datasets.moving_sprites.captions import (
    CaptionExample,
    caption_example,
    caption_record,
    contrast_pair,
)
from rvos_deploy.datasets.moving_sprites.claims import OPPOSITES
from rvos_deploy.datasets.moving_sprites.emoji import find_font
from rvos_deploy.datasets.moving_sprites.generate import make_video
from rvos_deploy.datasets.moving_sprites.mevis import write_mevis
from rvos_deploy.datasets.moving_sprites.palette import COLOURS, HELD_OUT, SPLITS, Look, Split
from rvos_deploy.datasets.moving_sprites.phrases import PHRASES
from rvos_deploy.datasets.moving_sprites.render import iterate, render
from rvos_deploy.datasets.moving_sprites.sample import Sample, find_video, sample_video
from rvos_deploy.datasets.moving_sprites.shapes import SHAPES
from rvos_deploy.datasets.moving_sprites.world import (
    KINDS,
    WORLD_VERSION,
    Expression,
    Kind,
    SpriteObject,
    SpriteVideo,
    WorldConfig,
)

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "KINDS",
    "OPPOSITES",
    "PHRASES",
    "SHAPES",
    "SPLITS",
    "WORLD_VERSION",
    "CaptionExample",
    "Expression",
    "Kind",
    "Look",
    "Sample",
    "Split",
    "SpriteObject",
    "SpriteVideo",
    "WorldConfig",
    "caption_example",
    "caption_record",
    "contrast_pair",
    "find_font",
    "find_video",
    "iterate",
    "make_video",
    "render",
    "sample_video",
    "write_mevis",
]
