"""Test the estimate of what a recipe needs: counts per frame, scaled by pixels."""

from __future__ import annotations

import pytest

from rvos_deploy.benchmarks.studies.training_cost import count_cost, pixels
from rvos_deploy.training.recipe_file import read_recipe


def test_costs_are_per_frame() -> None:
    recipe = read_recipe("sprites_tiny")
    one, two = (count_cost(recipe, frames) for frames in (1, 2))
    # Text is encoded once a clip, and the video part reads a frame more.
    assert two.flops == pytest.approx(one.flops, rel=0.2)
    assert two.activation_bytes == pytest.approx(one.activation_bytes, rel=0.2)
    # More than the multiply-adds of the 3.9 million learned weights at one position each.
    assert two.flops > 1e9
    assert one.state_bytes == two.state_bytes == pytest.approx(16 * 3.93e6 + 4 * 11.0e6, rel=0.01)


def test_frames_are_those_of_the_recipe() -> None:
    assert pixels(read_recipe("sprites_tiny")) == 128 * 224
    # Between the smallest and the largest short side at 16:9.
    assert 288 * 512 < pixels(read_recipe("mevis_large")) < 432 * 768
