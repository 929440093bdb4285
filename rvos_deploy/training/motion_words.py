"""Measure whether CLIP's text tower separates opposite motion words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.pan2024.modules.clip import FrozenClip

MINIMUM_RATIO = 0.35
"""Least ratio that passes. A tower that could not learn motion had 2.2 / 15.5 = 0.14."""

OPPOSITES = (
    ("moving to the left", "moving to the right"),
    ("moving up", "moving down"),
    ("heading up and left", "heading down and right"),
    ("circling clockwise", "circling counterclockwise"),
    ("getting larger", "getting smaller"),
    ("that stops", "that starts moving"),
)
NOUNS = ("star", "circle", "square", "heart", "triangle")


@dataclass(frozen=True)
class MotionWordDistances:
    """Hold the mean distance of sentences that differ only in the motion, or only in the noun."""

    opposite_motions: float
    other_nouns: float
    by_pair: dict[str, float]

    @property
    def ratio(self) -> float:
        """Return opposite motions over other nouns; below ``MINIMUM_RATIO`` none is learned."""
        return self.opposite_motions / self.other_nouns


@torch.inference_mode()
def motion_word_distances(clip: FrozenClip, tokenizer: Tokenizer) -> MotionWordDistances:
    """Return distances of end-of-text states (after the final norm), over all nouns."""

    def state(sentence: str) -> Tensor:
        ids = torch.from_numpy(tokenizer(sentence))[None]
        return clip.text_features(ids).tokens[0, -1]

    by_pair = {}
    for one, other in OPPOSITES:
        distances = [
            float((state(f"the {n} {one}") - state(f"the {n} {other}")).norm()) for n in NOUNS
        ]
        by_pair[f"{one} / {other}"] = sum(distances) / len(distances)
    nouns = [
        float((state(f"the {a} {motion}") - state(f"the {b} {motion}")).norm())
        for motion, _ in OPPOSITES
        for i, a in enumerate(NOUNS)
        for b in NOUNS[i + 1 :]
    ]
    return MotionWordDistances(
        sum(by_pair.values()) / len(by_pair), sum(nouns) / len(nouns), by_pair
    )
