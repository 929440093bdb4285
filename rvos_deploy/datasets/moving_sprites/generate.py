"""A whole video from three numbers: drawn, measured, described; drawn again where unfit."""

from __future__ import annotations

from dataclasses import replace

from rvos_deploy.datasets.moving_sprites.emoji import require_font
from rvos_deploy.datasets.moving_sprites.expressions import draw_expressions
from rvos_deploy.datasets.moving_sprites.measurements import measure
from rvos_deploy.datasets.moving_sprites.palette import SPLITS, Split
from rvos_deploy.datasets.moving_sprites.rng import stream
from rvos_deploy.datasets.moving_sprites.scenes import draw_scene
from rvos_deploy.datasets.moving_sprites.world import WORLD_VERSION, SpriteVideo, WorldConfig
from rvos_deploy.errors import InputError

_SHOWN = 0.8  # part of an object's time in the frame during which it must be seen
_ATTEMPTS = 60


def make_video(
    seed: int, split: Split, index: int, config: WorldConfig | None = None
) -> SpriteVideo:
    """Make video ``index`` of a split, with its expressions: the same for the same arguments,
    wherever it runs.

    Nothing is painted yet: see ``render``. Raises InputError for a negative seed or index, an
    unknown split, emoji without their font, or a world in which no such video can be made.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    config = config or WorldConfig()
    if config.emoji:
        require_font()
    for attempt in range(_ATTEMPTS):
        video = draw_scene(seed, split, index, config, attempt)
        if video is None:
            continue
        facts = measure(video)
        if min(f.shown for f in facts) < _SHOWN or min(f.seen.mean() for f in facts) < 0.6:
            continue
        rng = stream(WORLD_VERSION, seed, SPLITS.index(split), index, attempt, 1)
        expressions = draw_expressions(rng, video, facts)
        if any(e.kind == "motion" for e in expressions):
            return replace(video, expressions=expressions)
    raise InputError(
        f"no video with {config.expressions[0]} exact expressions in {_ATTEMPTS} attempts "
        f"(seed {seed}, {split}, index {index}); ask for fewer expressions or a larger frame than "
        f"{config.height}x{config.width}"
    )
