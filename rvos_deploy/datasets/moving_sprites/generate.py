"""Generate videos from three numbers: draw a scene, measure it, and draw its expressions.

A video that does not show its objects well is drawn again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from rvos_deploy.datasets.moving_sprites.backgrounds import draw_background
from rvos_deploy.datasets.moving_sprites.expressions import draw_expressions
from rvos_deploy.datasets.moving_sprites.looks import STRETCH, draw_look, require_font
from rvos_deploy.datasets.moving_sprites.motion import (
    DRIFT,
    MOTIONS,
    Arena,
    Trajectory,
    draw_approach,
    draw_overtaking,
    draw_trajectory,
)
from rvos_deploy.datasets.moving_sprites.predicates import OPPOSITES, measure
from rvos_deploy.datasets.moving_sprites.rng import (
    between,
    chance,
    pick,
    shuffled,
    stream,
    uniform,
    weighted,
)
from rvos_deploy.datasets.moving_sprites.world import (
    SPLITS,
    WORLD_VERSION,
    Array,
    Kind,
    Look,
    Size,
    Split,
    SpriteObject,
    SpriteVideo,
    WorldConfig,
    check_split,
)
from rvos_deploy.errors import InputError

_SMALL, _LARGE, _GROWN = (28, 32), (46, 54), (50, 58)
"""Diameters in pixels in a frame 128 pixels high. _GROWN: greatest size of a growing object."""

_WEIGHTS = {
    "still": 2.2, "left": 2.0, "right": 2.0, "up": 1.6, "down": 1.6, "fast": 1.2, "slow": 1.2,
    "clockwise": 1.6, "counterclockwise": 1.6, "zigzag": 1.6, "bounce": 1.3, "shake": 1.3,
    "stop": 1.7, "start": 1.7, "turn_back": 1.8, "grow": 1.3, "shrink": 1.3,
}  # fmt: skip
_MOTION_WEIGHTS = tuple(_WEIGHTS.get(motion, 0.5) for motion in MOTIONS)
_RESIZING = ("grow", "shrink")
_STAYING = ("still", "still", "grow", "shrink", "bounce", "up", "down", "slow", "turn_back")
"""Motions of look-alikes that expressions distinguish by place."""

_RECIPES = {"twins": 0.58, "overtake": 0.1, "approach": 0.12, "places": 0.15, "mixed": 0.05}
"""Weights of the kinds of scene. All but "mixed" have look-alikes; "twins" move differently."""

_ATTEMPTS = 60  # scenes drawn for one video
_MIN_SHOWN = 0.8  # every object is visible in at least this fraction of its frames inside the frame
_SEARCHED = 400  # videos tried by find_video


@dataclass(frozen=True)
class _Part:
    """Hold an object without its trajectory. group: 0 for look-alikes, else a number of its own."""

    look: Look
    size: Size
    motion: str
    group: int


def _draw_motion(rng: np.random.Generator, taken: list[str]) -> str:
    """Draw a motion that is not among ``taken``, but often the opposite of one of them."""
    if taken and chance(rng, 0.4):
        opposite = OPPOSITES.get(pick(rng, taken), "")
        if opposite in MOTIONS and opposite not in taken:
            return opposite
    while True:
        motion = weighted(rng, MOTIONS, _MOTION_WEIGHTS)
        if motion not in taken:
            return motion


def _draw_other_look(
    rng: np.random.Generator, split: Split, emoji: bool, parts: list[_Part]
) -> Look:
    """Draw a look that resembles none of ``parts``."""
    while True:
        like = pick(rng, parts).look if parts and chance(rng, 0.65) else None
        look = draw_look(rng, split, emoji, like)
        if not any(look.resembles(part.look) for part in parts):
            return look


def _draw_lookalikes(
    rng: np.random.Generator, config: WorldConfig, split: Split, recipe: str, count: int
) -> list[_Part]:
    """Draw the objects that share one look; the recipe decides their motions or places."""
    if recipe == "mixed":
        return []
    parts: list[_Part] = []
    if recipe == "places":
        look = draw_look(rng, split, config.emoji)
        for _ in range(2 if count < 4 else between(rng, 2, 3)):
            parts.append(_Part(look, "small", pick(rng, _STAYING), 0))
        return parts
    twins = 2 if recipe != "twins" else weighted(rng, (2, 3, 4), (0.4, 0.4, 0.2))
    look = draw_look(rng, split, config.emoji)
    large = 0.35 if count <= 4 and recipe != "overtake" else 0.0
    size: Size = "large" if chance(rng, large) else "small"
    for _ in range(min(twins, count)):
        motion = _draw_motion(rng, [part.motion for part in parts])
        swap = recipe == "twins" and count <= 4 and chance(rng, 0.12)
        own: Size = ("small" if size == "large" else "large") if swap else size
        parts.append(_Part(look, own, motion, 0))
    if recipe == "overtake":
        return [replace(parts[0], motion="overtake"), replace(parts[1], motion="overtaken")]
    return parts


def _draw_parts(
    rng: np.random.Generator, config: WorldConfig, split: Split, recipe: str
) -> list[_Part]:
    """Draw all objects of a scene; in an "approach" scene, the goal comes first."""
    low, high = config.objects
    counts = [n for n in range(low, high + 1) if recipe != "approach" or n >= 3] or [high]
    count = weighted(rng, counts, [(0.1, 0.3, 0.3, 0.2, 0.1)[n - 2] for n in counts])
    parts = _draw_lookalikes(rng, config, split, recipe, count)
    if recipe == "approach":
        order = shuffled(rng, ("toward", "away" if chance(rng, 0.6) else parts[1].motion))
        parts = [replace(part, motion=m) for part, m in zip(parts, order, strict=True)]
        goal = _draw_other_look(rng, split, config.emoji, parts)
        parts.insert(0, _Part(goal, "small" if chance(rng, 0.6) else "large", "still", 1))
    while len(parts) < count:
        taken = [part.motion for part in parts] if recipe != "mixed" else []
        motion = "still" if chance(rng, 0.2) else _draw_motion(rng, taken)
        size: Size = "large" if chance(rng, 0.4 if count <= 4 else 0.2) else "small"
        look = _draw_other_look(rng, split, config.emoji, parts)
        parts.append(_Part(look, size, motion, len(parts)))
    return parts


def _diameter(rng: np.random.Generator, part: _Part, unit: float) -> float:
    sizes = _GROWN if part.motion in _RESIZING else (_LARGE if part.size == "large" else _SMALL)
    return uniform(rng, *sizes) * unit * STRETCH.get(part.look.name, 1.0)


def _overlap(
    trajectory: Trajectory, radius: float, group: int, placed: list[tuple[Trajectory, float, int]]
) -> float:
    """Return how much an object overlaps the objects in ``placed``; look-alikes count 2.5 times."""
    cost = 0.0
    for other, other_radius, other_group in placed:
        step = trajectory.centres - other.centres
        reach = 0.9 * (radius * trajectory.scales + other_radius * other.scales)
        overlap = np.maximum(0, 1 - np.hypot(step[:, 0], step[:, 1]) / reach)
        cost += (2.5 if group == other_group else 1.0) * float(overlap.mean() + 0.2 * overlap.max())
    return cost


def _draw_trajectories(
    rng: np.random.Generator, parts: list[_Part], radii: list[float], config: WorldConfig
) -> list[Trajectory] | None:
    """Draw a trajectory for each part; None if one of them does not fit."""
    placed: list[tuple[Trajectory, float, int]] = []
    good_enough = uniform(rng, 0.02, 0.2)
    overtaking: list[Trajectory] = []
    for part, radius in zip(parts, radii, strict=True):
        arena = Arena(config.width, config.height, config.frames, radius)
        best: tuple[float, Trajectory] | None = None
        for _ in range(10):
            drawn: Trajectory | None
            if part.motion == "overtake":
                overtaking = list(draw_overtaking(rng, arena, 2.1 * max(radii[:2])) or ())
                drawn = overtaking[0] if overtaking else None
            elif part.motion == "overtaken":
                drawn = overtaking[1]
            elif part.motion in ("toward", "away"):
                goal, gap = placed[0][0].centres[0], 1.02 * (radius + radii[0])
                drawn = draw_approach(rng, arena, goal, gap, part.motion == "away")
            else:
                drawn = draw_trajectory(part.motion, rng, arena)
            if drawn is None:
                continue
            cost = _overlap(drawn, radius, part.group, placed)
            if best is None or cost < best[0]:
                best = cost, drawn
            if cost <= good_enough:
                break
        if best is None or best[0] > 0.6:
            return None
        placed.append((best[1], radius, part.group))
    return [trajectory for trajectory, _, _ in placed]


def _draw_drift(rng: np.random.Generator, clock: Array, reach: float) -> Array:
    """Draw a slow motion that starts at 0 and stays within ``reach``: float64 [T]."""
    phase, rate = uniform(rng, 0, 1), uniform(rng, 0.15, 0.45)
    wave: Array = np.sin(2 * np.pi * (rate * clock + phase))
    drift: Array = uniform(rng, 0, reach / 2) * (wave - wave[0])
    return drift


def _draw_objects(
    rng: np.random.Generator, config: WorldConfig, split: Split, camera: Array
) -> tuple[SpriteObject, ...] | None:
    """Draw the objects of a scene with the drift ``camera``, float64 [T, 2]; None: no fit."""
    recipe = weighted(rng, tuple(_RECIPES), tuple(_RECIPES.values()))
    if recipe == "approach" and config.objects[1] < 3:
        recipe = "twins"
    parts = _draw_parts(rng, config, split, recipe)
    diameters = [_diameter(rng, part, config.unit) for part in parts]
    trajectories = _draw_trajectories(rng, parts, [d / 2 for d in diameters], config)
    if trajectories is None:
        return None
    objects = [
        SpriteObject(
            look=part.look,
            size=None if part.motion in _RESIZING else part.size,
            motion=part.motion,
            centres=trajectory.centres + camera,
            diameters=np.round(diameter * trajectory.scales).astype(np.int64),
        )
        for part, trajectory, diameter in zip(parts, trajectories, diameters, strict=True)
    ]
    return tuple(shuffled(rng, objects))


def _draw_scene(
    seed: int, split: Split, index: int, config: WorldConfig, attempt: int
) -> SpriteVideo | None:
    """Draw a video without expressions, or None if its objects do not fit into the frame."""
    rng = stream(WORLD_VERSION, seed, SPLITS.index(split), index, attempt)
    clock = np.linspace(0, 1, config.frames)
    size = np.array([config.width, config.height])
    camera = np.stack([_draw_drift(rng, clock, DRIFT * side) for side in size.tolist()], axis=1)
    objects = _draw_objects(rng, config, split, camera)
    if objects is None:
        return None
    margin = np.ceil(0.12 * size).astype(np.int64)
    own = np.stack([_draw_drift(rng, clock, 0.09 * side) for side in size.tolist()], axis=1)
    width, height = (size + 2 * margin).tolist()
    swing, gains = uniform(rng, -0.16, 0.16), np.ones(config.frames)
    if chance(rng, 0.4):
        gains = 1 - abs(swing) * 0.5 + swing * np.sin(np.pi * (clock - 0.5))
    return SpriteVideo(
        seed=seed,
        split=split,
        index=index,
        config=config,
        objects=objects,
        background=draw_background(rng, split, height, width, config.photos),
        offsets=margin - np.round(camera + own).astype(np.int64),
        gains=gains,
    )


def make_video(
    seed: int, split: Split, index: int, config: WorldConfig | None = None
) -> SpriteVideo:
    """Make video ``index`` of a split, with its expressions.

    Equal arguments make equal videos on every machine. ``render`` paints the video. Raises
    InputError: seed or index is negative, the split is unknown, emoji lack their font, or no video
    is found for the config.
    """
    check_split(split)
    config = config or WorldConfig()
    if config.emoji:
        require_font()
    for attempt in range(_ATTEMPTS):
        video = _draw_scene(seed, split, index, config, attempt)
        if video is None:
            continue
        measured = measure(video)
        if (
            min(m.shown for m in measured) < _MIN_SHOWN
            or min(m.seen.mean() for m in measured) < 0.6
        ):
            continue
        rng = stream(WORLD_VERSION, seed, SPLITS.index(split), index, attempt, 1)
        expressions = draw_expressions(rng, video, measured)
        if any(e.kind == "motion" for e in expressions):
            return replace(video, expressions=expressions)
    raise InputError(
        f"no video with {config.expressions[0]} exact expressions in {_ATTEMPTS} attempts "
        f"(seed {seed}, {split}, index {index}); ask for fewer expressions or a larger frame than "
        f"{config.height}x{config.width}"
    )


def find_video(
    seed: int, split: Split, kinds: Collection[Kind], config: WorldConfig | None = None
) -> SpriteVideo:
    """Return the first video of a split that has an expression of each of ``kinds``.

    Raises InputError: none of the first 400 videos has them.
    """
    for index in range(_SEARCHED):
        video = make_video(seed, split, index, config)
        if {e.kind for e in video.expressions}.issuperset(kinds):
            return video
    raise InputError(
        f"none of {_SEARCHED} videos of seed {seed} has expressions of {', '.join(sorted(kinds))}"
    )
