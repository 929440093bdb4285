"""Check every expression independently, from its words and the rendered masks alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest

from rvos_deploy.datasets.moving_sprites import (
    COLOURS,
    KINDS,
    PHRASES,
    SHAPES,
    Expression,
    SpriteVideo,
    WorldConfig,
    make_video,
    render,
)
from rvos_deploy.datasets.moving_sprites.language import Noun, motion_words, noun_words
from rvos_deploy.datasets.moving_sprites.looks import EMOJI
from rvos_deploy.datasets.moving_sprites.predicates import PREDICATES
from rvos_deploy.datasets.moving_sprites.rng import stream

PLURALS = {"crosses": "cross", "buses": "bus", "foxes": "fox", "octopuses": "octopus"}
PLURALS |= {"butterflies": "butterfly", "strawberries": "strawberry"}


@lru_cache(maxsize=1)
def videos() -> tuple[SpriteVideo, ...]:
    config = WorldConfig(emoji=False)
    return tuple(make_video(77, s, i, config) for s in ("train", "valid") for i in range(120))


@lru_cache(maxsize=1)
def all_expressions() -> tuple[tuple[SpriteVideo, Expression], ...]:
    return tuple((video, e) for video in videos() for e in video.expressions)


class MaskMeasurements:
    """Position and size of one object over time, measured from its masks alone."""

    def __init__(self, masks: np.ndarray) -> None:
        areas = masks.sum(axis=(1, 2)).astype(float)
        height, width = masks.shape[1:]
        self.first, self.last = bool(areas[0] > 0), bool(areas[-1] > 0)
        self.areas = areas
        seen = areas > 0.35 * areas.max()
        xs = (masks.sum(axis=1) @ np.arange(width))[seen] / areas[seen]
        ys = (masks.sum(axis=2) @ np.arange(height))[seen] / areas[seen]
        self.x, self.y = xs / width, ys / height
        self.points = np.stack([xs, ys], axis=1) / (0.75 * max(height, width))
        # An object that the border cuts off would seem to shrink.
        edge = np.concatenate(
            [masks[:, [0, -1]].any(axis=1), masks[:, :, [0, -1]].any(axis=2)], axis=1
        )
        self.sizes = np.sqrt(areas[seen & ~edge.any(axis=1)])

    def net(self) -> tuple[float, float]:
        return float(self.x[-1] - self.x[0]), float(self.y[-1] - self.y[0])

    def travelled(self, start: float, stop: float) -> float:
        part = self.points[int(start * len(self.points)) : max(2, int(stop * len(self.points)))]
        return float(np.hypot(*np.ptp(part, axis=0)))

    def pace(self) -> float:
        steps = np.hypot(*np.diff(self.points, axis=0).T)
        return float(np.percentile(steps, 75) * 23)

    def turned(self) -> float:
        """Return twice the signed area of the path over its squared extent, clockwise positive."""
        p = self.points - self.points.mean(axis=0)
        q = np.roll(p, -1, axis=0)
        return float(
            (p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]).sum() / (np.ptp(p, axis=0).max() ** 2 + 1e-9)
        )

    def swings(self, values: np.ndarray) -> int:
        smooth = np.convolve(values, np.ones(3) / 3, "valid")
        if np.ptp(smooth) < 0.12:
            return 0
        moves = np.diff(smooth)
        signs = np.sign(moves[np.abs(moves) > 0.06 * np.abs(moves).max() + 0.004])
        return int((signs[1:] != signs[:-1]).sum())


def shows(w: MaskMeasurements, claim: str) -> bool:
    """Judge a claim with a threshold between the generator's thresholds for True and False."""
    dx, dy = w.net()
    sense = {"left": (-dx, dy), "right": (dx, dy), "up": (-dy, dx), "down": (dy, dx)}
    extent = w.travelled(0, 1)
    lively = extent > 0.17
    head, tail = w.travelled(0, 0.35), w.travelled(0.65, 1)
    if claim in sense:
        swings = max(w.swings(w.x), w.swings(w.y))
        return sense[claim][0] > 0.21 and head > 0.06 and tail > 0.06 and swings <= 1
    if "_" in claim and claim.split("_")[0] in ("up", "down"):
        vertical, side = claim.split("_")
        return min(sense[vertical][0], sense[side][0]) > 0.18
    if claim in ("still", "moving"):
        return lively == (claim == "moving")
    if claim in ("clockwise", "counterclockwise", "circling"):
        turned = w.turned() if claim != "counterclockwise" else -w.turned()
        return lively and (abs(turned) if claim == "circling" else turned) > 0.8
    if claim == "stop":
        return lively and tail < 0.09 < head and w.last
    if claim == "start":
        return lively and head < 0.09 < tail and w.first
    if claim == "turn_back":
        middle = len(w.points) // 2
        away = np.hypot(*(w.points[middle] - w.points[0]))
        left = np.hypot(*(w.points[-1] - w.points[0]))
        return bool(away > 0.16 and left < 0.7 * away and abs(w.turned()) < 0.7)
    if claim.startswith(("enter", "leave")):
        crossed = (
            (not w.first and w.last) if claim.startswith("enter") else (w.first and not w.last)
        )
        side = claim.split("_")[1] if "_" in claim else None
        inward = {"left": dx, "right": -dx, "top": dy, "bottom": -dy, None: 1.0}[side]
        return crossed and (inward if claim.startswith("enter") or not side else -inward) > 0.2
    if claim in ("grow", "shrink"):
        third = len(w.sizes) // 3
        ratio = w.sizes[-third:].max() / w.sizes[:third].max()
        return bool((ratio if claim == "grow" else 1 / ratio) > 1.22)
    if claim in ("fast", "slow"):
        return (w.pace() > 0.78) == (claim == "fast") and lively
    if claim == "bounce":
        return w.swings(w.y) >= 2 and np.ptp(w.x) < 0.15
    if claim == "shake":
        return w.swings(w.x) >= 2 and np.ptp(w.y) < 0.18
    if claim == "zigzag":
        across = abs(dx) > 0.28 and w.swings(w.y) >= 2
        return across or (abs(dy) > 0.28 and w.swings(w.x) >= 2)
    raise AssertionError(f"no independent check of {claim}")


def nouns(text: str) -> Iterator[tuple[str | None, str | None, str | None, str | None]]:
    """Yield name, colour, size and texture of each noun in a sentence, the subject first."""
    words = text.split()
    found: dict[str, str] = {}
    for word in words:
        single = PLURALS.get(
            word, word[:-1] if word.endswith("s") and word[:-1] in SHAPES else word
        )
        if word in COLOURS:
            found["colour"] = word
        elif word in ("small", "large"):
            found["size"] = word
        elif word in ("plain", "striped", "dotted"):
            found["texture"] = word
        elif single in SHAPES or word in (
            "one", "object", "objects", "thing", "things", "everything"
        ):  # fmt: skip
            name = single if single in SHAPES else None
            yield name, found.get("colour"), found.get("size"), found.get("texture")
            found = {}


def fitting(video: SpriteVideo, noun: tuple[str | None, ...]) -> list[int]:
    return [
        k
        for k, o in enumerate(video.objects)
        if all(
            wanted is None or wanted == have
            for wanted, have in zip(
                noun, (o.look.name, o.look.colour, o.size, o.look.texture), strict=True
            )
        )
    ]


def test_looks_mean_exactly_what_they_say() -> None:
    checked = 0
    for video, e in all_expressions():
        if e.claim is None:
            noun = next(nouns(e.text))
            assert tuple(fitting(video, noun)) == e.targets, e.text
            checked += 1
    assert checked > 300


def test_motions_are_seen_in_the_masks_of_the_targets_and_of_nothing_else() -> None:
    checked: Counter[str] = Counter()
    wrong = []
    for video in videos():
        said = [e for e in video.expressions if e.claim in PREDICATES]
        masks = render(video)[1] if said else None
        for e in said:
            assert masks is not None
            assert e.claim is not None
            for k in fitting(video, next(nouns(e.text))):
                if shows(MaskMeasurements(masks[:, k]), e.claim) != (k in e.targets):
                    wrong.append((video.name, e.text, e.targets, k, video.objects[k].motion))
                checked[e.claim] += 1
    assert set(checked) == set(PREDICATES)
    assert not wrong


def test_relations_hold_in_the_masks() -> None:
    checked = 0
    sides = {"left_of": (0, -1), "right_of": (0, 1), "above": (1, -1), "below": (1, 1)}
    tops = {"leftmost": (0, -1), "rightmost": (0, 1), "highest": (1, -1), "lowest": (1, 1)}
    for video in videos():
        for e in video.expressions:
            if e.claim not in (*sides, *tops):
                continue
            found = [fitting(video, noun) for noun in nouns(e.text)]
            axis, sign = {**sides, **tops}[e.claim]
            centres = np.array([o.centres[:, axis] * sign for o in video.objects])
            rivals = [k for k in found[0] if k not in e.targets]
            assert e.targets[0] in found[0]
            assert rivals, "the relation alone must tell look-alikes apart"
            if e.claim in tops:
                gaps = centres[e.targets[0]] - centres[rivals]
                assert gaps.mean(axis=1).min() > 0, e.text
            else:
                assert len(found[1]) == 1, "what a relation refers to must be unique"
                goal = centres[found[1][0]]
                assert (centres[e.targets[0]] - goal).mean() > 0, e.text
                assert all((centres[k] - goal).mean() < 0 for k in rivals if k != found[1][0])
            checked += 1
    assert checked > 50


def test_encounters_hold_in_the_centres() -> None:
    checked: Counter[str] = Counter()
    for video in videos():
        for e in video.expressions:
            if e.claim not in ("toward", "away"):
                continue
            found = [fitting(video, noun) for noun in nouns(e.text)]
            assert len(found[1]) == 1
            goal = video.objects[found[1][0]].centres
            for k in found[0]:
                gap = np.hypot(*(video.objects[k].centres - goal).T)
                closer = (gap[0] - gap[-1]) / max(video.config.width, video.config.height)
                closer = closer if e.claim == "toward" else -closer
                assert (closer > 0.2) == (k in e.targets), e.text
                assert k in e.targets or closer < 0.07
            checked[e.claim] += 1
    assert min(checked["toward"], checked["away"]) >= 3


def test_the_mix_of_kinds() -> None:
    counts = Counter(e.kind for _, e in all_expressions())
    total = sum(counts.values())
    assert set(counts) == set(KINDS)
    assert 0.43 <= counts["motion"] / total <= 0.57
    for kind in ("appearance", "plural", "no_target"):
        assert 0.09 <= counts[kind] / total <= 0.22
    assert counts["relation"] / total >= 0.06
    per_video = [len(v.expressions) for v in videos()]
    assert min(per_video) >= 4
    assert max(per_video) <= 8


def test_motion_expressions_cannot_be_solved_from_looks() -> None:
    for video, e in all_expressions():
        if e.kind == "motion":
            assert len(e.targets) == 1
            assert len(fitting(video, next(nouns(e.text)))) >= 2, e.text


def test_kinds_and_targets_agree() -> None:
    for video, e in all_expressions():
        count = len(e.targets)
        assert (count == 0) == (e.kind == "no_target")
        assert (count >= 2) == (e.kind == "plural")
        assert list(e.targets) == sorted(set(e.targets))
        assert all(0 <= k < len(video.objects) for k in e.targets)


def test_wording() -> None:
    texts = [e.text for _, e in all_expressions()]
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", text) for text in texts)
    assert len(set(texts)) > 0.7 * len(texts)
    for video in videos():
        own = [e.text for e in video.expressions]
        assert len(set(own)) == len(own)


@pytest.mark.parametrize("claim", sorted(PHRASES))
def test_every_claim_has_several_wordings(claim: str) -> None:
    rng = stream(1)
    said = {motion_words(claim, plural, rng) for plural in (False, True) for _ in range(60)}
    assert len(said) >= 6
    assert not any("*" in text or "  " in text for text in said)


def test_emoji_plurals_are_english() -> None:
    words = {name: noun_words(Noun(name), True, stream(1)) for name in EMOJI}
    assert words["bus"] == "buses"
    assert words["butterfly"] == "butterflies"
    assert words["monkey"] == "monkeys"
    assert words["fish"] == "fish"
