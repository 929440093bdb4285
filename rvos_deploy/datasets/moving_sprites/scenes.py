"""Drawing a scene: which objects there are, how they look, and how each moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rvos_deploy.datasets.moving_sprites.arena import DRIFT, Path, Room
from rvos_deploy.datasets.moving_sprites.backgrounds import draw_background
from rvos_deploy.datasets.moving_sprites.claims import OPPOSITES
from rvos_deploy.datasets.moving_sprites.emoji import EMOJI
from rvos_deploy.datasets.moving_sprites.encounters import draw_approach, draw_overtaking
from rvos_deploy.datasets.moving_sprites.palette import (
    COLOURS,
    HELD_OUT,
    SPLITS,
    TEXTURES,
    Look,
    Split,
    combination_allowed,
)
from rvos_deploy.datasets.moving_sprites.rng import (
    below,
    between,
    chance,
    pick,
    shuffled,
    stream,
    uniform,
    weighted,
)
from rvos_deploy.datasets.moving_sprites.shapes import SHAPES, STRETCH
from rvos_deploy.datasets.moving_sprites.trajectories import MOTIONS, draw_path
from rvos_deploy.datasets.moving_sprites.world import (
    WORLD_VERSION,
    Size,
    SpriteObject,
    SpriteVideo,
    WorldConfig,
)

SMALL, LARGE, GROWN = (28, 32), (46, 54), (50, 58)
"""Diameters in pixels of a frame 128 high. GROWN: the greatest size of what grows or shrinks."""

_WEIGHTS = {
    "still": 2.2, "left": 2.0, "right": 2.0, "up": 1.6, "down": 1.6, "fast": 1.2, "slow": 1.2,
    "clockwise": 1.6, "counterclockwise": 1.6, "zigzag": 1.6, "bounce": 1.3, "shake": 1.3,
    "stop": 1.7, "start": 1.7, "turn_back": 1.8, "grow": 1.3, "shrink": 1.3,
}  # fmt: skip
_MOTION_WEIGHTS = tuple(_WEIGHTS.get(motion, 0.5) for motion in MOTIONS)


_STAYING = ("still", "still", "grow", "shrink", "bounce", "up", "down", "slow", "turn_back")
"""Motions of look-alikes that are to be told apart by their places."""

_RECIPES = {"twins": 0.58, "overtake": 0.1, "approach": 0.12, "places": 0.15, "mixed": 0.05}


@dataclass(frozen=True)
class _Part:
    """An object without its path. group: 0 for the look-alikes, other numbers for the rest."""

    look: Look
    size: Size
    motion: str
    group: int


def draw_look(
    rng: np.random.Generator, split: Split, emoji: bool, like: Look | None = None
) -> Look:
    """Draw a look that ``split`` allows; ``like`` makes it share a shape or colour with another."""
    if emoji and chance(rng, 0.3):
        return Look(pick(rng, tuple(EMOJI)), None)
    degrees, tint = 4 * between(rng, -3, 3), below(rng, 5) / 2 - 1
    if split == "valid" and chance(rng, 0.4):
        colour, name = pick(rng, sorted(HELD_OUT))
        return Look(name, colour, weighted(rng, TEXTURES, (0.55, 0.25, 0.2)), tint, degrees)
    while True:
        name, colour = pick(rng, tuple(SHAPES)), pick(rng, tuple(COLOURS))
        texture = weighted(rng, TEXTURES, (0.55, 0.25, 0.2))
        if like is not None and not like.is_emoji:
            shared = below(rng, 3)
            name = like.name if shared == 0 else name
            colour = (like.colour or colour) if shared == 1 else colour
        if combination_allowed(split, colour, name):
            return Look(name, colour, texture, tint, degrees)


def _draw_motion(rng: np.random.Generator, taken: list[str]) -> str:
    """Draw a motion that none of ``taken`` is, often the opposite of one of them."""
    if taken and chance(rng, 0.4):
        opposite = OPPOSITES.get(pick(rng, taken), "")
        if opposite in MOTIONS and opposite not in taken:
            return opposite
    while True:
        motion = weighted(rng, MOTIONS, _MOTION_WEIGHTS)
        if motion not in taken:
            return motion


def _other_look(rng: np.random.Generator, split: Split, emoji: bool, parts: list[_Part]) -> Look:
    while True:
        like = pick(rng, parts).look if parts and chance(rng, 0.65) else None
        look = draw_look(rng, split, emoji, like)
        if not any(look.resembles(part.look) for part in parts):
            return look


def _draw_parts(
    rng: np.random.Generator, config: WorldConfig, split: Split, recipe: str
) -> list[_Part]:
    low, high = config.objects
    counts = [n for n in range(low, high + 1) if recipe != "approach" or n >= 3] or [high]
    count = weighted(rng, counts, [(0.1, 0.3, 0.3, 0.2, 0.1)[n - 2] for n in counts])
    emoji = config.emoji
    parts: list[_Part] = []
    if recipe == "places":
        look = draw_look(rng, split, emoji)
        for _ in range(2 if count < 4 else between(rng, 2, 3)):
            parts.append(_Part(look, "small", pick(rng, _STAYING), 0))
    elif recipe != "mixed":
        twins = {"overtake": 2, "approach": 2}.get(recipe) or weighted(
            rng, (2, 3, 4), (0.4, 0.4, 0.2)
        )
        look = draw_look(rng, split, emoji)
        large = 0.35 if count <= 4 and recipe != "overtake" else 0.0
        size: Size = "large" if chance(rng, large) else "small"
        for _ in range(min(twins, count)):
            motion = _draw_motion(rng, [part.motion for part in parts])
            swap = recipe == "twins" and count <= 4 and chance(rng, 0.12)
            own: Size = ("small" if size == "large" else "large") if swap else size
            parts.append(_Part(look, own, motion, 0))
    if recipe == "overtake":
        parts = [replace(parts[0], motion="overtake"), replace(parts[1], motion="overtaken")]
    if recipe == "approach":
        order = shuffled(rng, ("toward", "away" if chance(rng, 0.6) else parts[1].motion))
        parts = [replace(part, motion=m) for part, m in zip(parts, order, strict=True)]
        goal = _other_look(rng, split, emoji, parts)
        parts.insert(0, _Part(goal, "small" if chance(rng, 0.6) else "large", "still", 1))
    while len(parts) < count:
        motions = [part.motion for part in parts]
        motion = (
            "still" if chance(rng, 0.2) else _draw_motion(rng, motions if recipe != "mixed" else [])
        )
        big: Size = "large" if chance(rng, 0.4 if count <= 4 else 0.2) else "small"
        parts.append(_Part(_other_look(rng, split, emoji, parts), big, motion, len(parts)))
    return parts


def _diameter(rng: np.random.Generator, part: _Part, unit: float) -> float:
    sizes = (
        GROWN if part.motion in ("grow", "shrink") else (LARGE if part.size == "large" else SMALL)
    )
    return uniform(rng, *sizes) * unit * STRETCH.get(part.look.name, 1.0)


def _crowding(
    path: Path, radius: float, group: int, placed: list[tuple[Path, float, int]]
) -> float:
    """Return how much a path overlaps those already there; look-alikes that meet weigh more."""
    cost = 0.0
    for other, other_radius, other_group in placed:
        step = path.centres - other.centres
        reach = 0.9 * (radius * path.scales + other_radius * other.scales)
        overlap = np.maximum(0, 1 - np.hypot(step[:, 0], step[:, 1]) / reach)
        cost += (2.5 if group == other_group else 1.0) * float(overlap.mean() + 0.2 * overlap.max())
    return cost


def _draw_paths(
    rng: np.random.Generator, parts: list[_Part], radii: list[float], config: WorldConfig
) -> list[Path] | None:
    """Draw a path for each part; None where one of them finds no place."""
    placed: list[tuple[Path, float, int]] = []
    bearable = uniform(rng, 0.02, 0.2)
    overtaking: list[Path] = []
    for part, radius in zip(parts, radii, strict=True):
        room = Room(config.width, config.height, config.frames, radius)
        best: tuple[float, Path] | None = None
        for _ in range(10):
            if part.motion == "overtake":
                pair = draw_overtaking(rng, room, 2.1 * max(radii[:2]))
                overtaking = list(pair) if pair else []
                path = overtaking[0] if pair else None
            elif part.motion == "overtaken":
                path = overtaking[1]
            elif part.motion in ("toward", "away"):
                gap = 1.02 * (radius + radii[0])
                path = draw_approach(rng, room, placed[0][0].centres[0], gap, part.motion == "away")
            else:
                path = draw_path(part.motion, rng, room)
            if path is None:
                continue
            cost = _crowding(path, radius, part.group, placed)
            if best is None or cost < best[0]:
                best = cost, path
            if cost <= bearable:
                break
        if best is None or best[0] > 0.6:
            return None
        placed.append((best[1], radius, part.group))
    return [path for path, _, _ in placed]


def _drift(
    rng: np.random.Generator, clock: npt.NDArray[np.float64], reach: float
) -> npt.NDArray[np.float64]:
    phase, rate = uniform(rng, 0, 1), uniform(rng, 0.15, 0.45)
    wave: npt.NDArray[np.float64] = np.sin(2 * np.pi * (rate * clock + phase))
    drift: npt.NDArray[np.float64] = uniform(rng, 0, reach / 2) * (wave - wave[0])
    return drift


def _draw_objects(
    rng: np.random.Generator, config: WorldConfig, split: Split, camera: npt.NDArray[np.float64]
) -> tuple[SpriteObject, ...] | None:
    recipe = weighted(rng, tuple(_RECIPES), tuple(_RECIPES.values()))
    if recipe == "approach" and config.objects[1] < 3:
        recipe = "twins"
    parts = _draw_parts(rng, config, split, recipe)
    diameters = [_diameter(rng, part, config.unit) for part in parts]
    paths = _draw_paths(rng, parts, [d / 2 for d in diameters], config)
    if paths is None:
        return None
    objects = [
        SpriteObject(
            look=part.look,
            size=None if part.motion in ("grow", "shrink") else part.size,
            motion=part.motion,
            centres=path.centres + camera,
            diameters=np.round(diameter * path.scales).astype(np.int64),
        )
        for part, path, diameter in zip(parts, paths, diameters, strict=True)
    ]
    return tuple(shuffled(rng, objects))


def draw_scene(
    seed: int, split: Split, index: int, config: WorldConfig, attempt: int = 0
) -> SpriteVideo | None:
    """Draw a video without expressions, or None where this ``attempt`` finds no room for its
    objects.

    Raises InputError for a negative seed or index.
    """
    rng = stream(WORLD_VERSION, seed, SPLITS.index(split), index, attempt)
    clock = np.linspace(0, 1, config.frames)
    size = np.array([config.width, config.height])
    camera = np.stack([_drift(rng, clock, DRIFT * side) for side in size.tolist()], axis=1)
    objects = _draw_objects(rng, config, split, camera)
    if objects is None:
        return None
    margin = np.ceil(0.12 * size).astype(np.int64)
    own = np.stack([_drift(rng, clock, 0.09 * side) for side in size.tolist()], axis=1)
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
