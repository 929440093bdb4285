"""Captions are reproducible and true of their pictures, and the negatives are false."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rvos_deploy.datasets.moving_sprites import (
    HELD_OUT,
    caption_example,
    contrast_pair,
)
from rvos_deploy.datasets.moving_sprites.captions import draw_montage
from rvos_deploy.datasets.moving_sprites.rng import stream
from rvos_deploy.errors import InputError


def test_the_same_seed_gives_the_same_examples() -> None:
    one, two = stream(4), stream(4)
    for _ in range(30):
        first, again = (caption_example(rng, 64, emoji=False) for rng in (one, two))
        assert np.array_equal(first.image, again.image)
        assert first.caption == again.caption


@pytest.mark.parametrize("size", [32, 64, 97, 224])
def test_pictures_have_the_size_asked_for(size: int) -> None:
    rng = stream(1, size)
    for _ in range(20):
        example = caption_example(rng, size, emoji=False)
        image, caption = example.image, example.caption
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert image.std() > 3
        assert caption == caption.lower()


def test_negatives_differ_and_kinds_are_mixed() -> None:
    rng = stream(2)
    kinds: Counter[str] = Counter()
    motions: Counter[str] = Counter()
    for _ in range(1500):
        example = caption_example(rng, 48, emoji=False)
        assert example.caption != example.negative
        kinds[example.kind] += 1
        for word in ("left", "right", "up", "down", "clockwise", "counterclockwise"):
            motions[word] += example.kind == "motion" and word in example.caption.split()
    assert min(kinds[k] for k in ("object", "scene", "motion")) > 200
    assert min(motions.values()) >= 8


def test_train_captions_never_name_what_is_held_out() -> None:
    rng = stream(3)
    for _ in range(2000):
        example = caption_example(rng, 32, split="train", emoji=False)
        if example.kind == "scene":
            continue
        for text in (example.caption, example.negative):
            assert not {pair for pair in HELD_OUT if " ".join(pair) in text}, text


def test_contrast_pairs_swap_captions_over_the_same_pictures() -> None:
    rng = stream(5)
    for _ in range(200):
        first, second = contrast_pair(rng, 64, emoji=False)
        assert (first.caption, first.negative) == (second.negative, second.caption)
        assert first.caption != second.caption
        assert not np.array_equal(first.image, second.image)


@pytest.mark.parametrize(("motion", "axis", "sense"), [("left", 1, -1), ("down", 0, 1)])
def test_a_montage_shows_the_motion_in_reading_order(motion: str, axis: int, sense: int) -> None:
    rng = stream(6)
    checked = 0
    while checked < 10:
        montage = draw_montage(rng, 64, "train", False, (motion,))
        if montage.layout != "stack":
            continue
        tall = montage.background.shape[0]
        for backwards in (False, True):
            picture = montage.paint(64, backwards)
            places = []
            for panel in (picture[:tall], picture[-tall:]):
                changed = np.abs(panel.astype(int) - montage.background).sum(axis=2) > 40
                places.append(np.nonzero(changed)[axis].mean())
            step = (places[1] - places[0]) * sense
            assert (step < -4) if backwards else (step > 4)
        checked += 1


def test_arguments_that_cannot_be() -> None:
    with pytest.raises(InputError, match="32 pixels"):
        caption_example(stream(1), 16)
    with pytest.raises(InputError, match="unknown split"):
        caption_example(stream(1), 64, split="test")  # type: ignore[arg-type]
