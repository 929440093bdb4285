"""Generate Moving Sprites: videos with exact masks, and expressions that refer to their objects.

Moving Sprites is a synthetic data set of motion expressions. The tiny network is trained on it. The
demo renders its video from it without PyTorch, so this package does not import torch::

    video = make_video(seed=1, split="train", index=0)
    frames, masks = render(video)  # uint8 [T, H, W, 3], bool [T, K, H, W]
    for e in video.expressions:
        print(e.kind, e.text, e.targets)  # motion "the red star that turns back" (2,)
"""

from __future__ import annotations

from rvos_deploy.datasets.moving_sprites.captions import (
    CaptionExample,
    caption_example,
    contrast_pair,
)
from rvos_deploy.datasets.moving_sprites.generate import find_video, make_video
from rvos_deploy.datasets.moving_sprites.language import PHRASES
from rvos_deploy.datasets.moving_sprites.looks import COLOURS, HELD_OUT, SHAPES, find_font
from rvos_deploy.datasets.moving_sprites.predicates import OPPOSITES
from rvos_deploy.datasets.moving_sprites.render import iterate, render
from rvos_deploy.datasets.moving_sprites.world import (
    KINDS,
    SPLITS,
    WORLD_VERSION,
    Expression,
    Kind,
    Look,
    Split,
    SpriteObject,
    SpriteVideo,
    WorldConfig,
)
from rvos_deploy.datasets.moving_sprites.writers import (
    Sample,
    SplitSpec,
    sample_video,
    write_mevis,
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
    "SplitSpec",
    "SpriteObject",
    "SpriteVideo",
    "WorldConfig",
    "caption_example",
    "contrast_pair",
    "find_font",
    "find_video",
    "iterate",
    "make_video",
    "render",
    "sample_video",
    "write_mevis",
]
