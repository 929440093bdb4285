"""Test how the number of processes changes the losses, as docs/training.md describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rvos_deploy.datasets.moving_sprites.world import WorldConfig
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, build_network
from rvos_deploy.training import points
from rvos_deploy.training.clips import Clip, Clips, collate, part_of_step
from rvos_deploy.training.losses import LossConfig, training_losses
from rvos_deploy.training.points import PointSampling
from rvos_deploy.training.recipe import Recipe, Stage

CLIPS, LENGTH = 4, 2
CONFIG = LossConfig(points=PointSampling(num_points=32))
STAGE = Stage("joint", steps=3, batch=CLIPS, length=LENGTH, learning_rate=1e-3)
WORLD = WorldConfig(height=64, width=96, frames=8, objects=(2, 5), expressions=(1, 4))


@pytest.fixture(scope="module")
def network() -> RvosNetwork:
    torch.manual_seed(3)
    config = replace(preset("tiny"), num_queries=6, encoder_layers=1, frame_decoder_layers=1)
    return build_network(config).eval()


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    recipe = Recipe(preset("tiny"), "sprites", (STAGE,), sprites=WORLD)
    return [Clips(recipe, STAGE)[i] for i in range(CLIPS)]


def shares(
    network: RvosNetwork,
    clips: list[Clip],
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
    counts: list[Tensor] | None = None,
) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Return losses and counts of each process, where every clip has its own points.

    ``counts`` replace the means over processes; None: each process uses its own.
    """
    table = torch.rand(
        (CLIPS * LENGTH, CONFIG.points.drawn, 2), generator=torch.Generator().manual_seed(1)
    )
    found, seen = [], []
    for rank in range(processes):
        numbers = part_of_step(0, STAGE, 0, 0, rank, processes)
        own = table[numbers.start * LENGTH : numbers.stop * LENGTH]
        monkeypatch.setattr(points, "draw_points", lambda *_, own=own: own)
        mean, met = _mean(counts)
        batch = collate([clips[number] for number in numbers])
        with torch.no_grad():
            found.append(
                training_losses(
                    network(batch.frames, batch.token_ids, batch.ages),
                    batch.targets,
                    network.mask_head,
                    generator=torch.Generator(),
                    config=CONFIG,
                    mean_over_processes=mean,
                )
            )
        seen.append(torch.stack(met))
    return found, seen


def _mean(counts: list[Tensor] | None) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    met: list[Tensor] = []

    def mean(count: Tensor) -> Tensor:
        met.append(count)
        return count if counts is None else counts[len(met) - 1]

    return mean, met


@pytest.mark.parametrize("processes", [2, 4])
def test_mask_losses_of_all_processes_equal_those_of_one(
    network: RvosNetwork,
    clips: list[Clip],
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (whole,), (total,) = shares(network, clips, 1, monkeypatch)
    _, seen = shares(network, clips, processes, monkeypatch)
    assert torch.equal(torch.stack(seen).sum(dim=0), total)
    assert len({tuple(counts.tolist()) for counts in seen}) > 1, "the premise: shares differ"
    means = list(torch.stack(seen).mean(dim=0))
    found, _ = shares(network, clips, processes, monkeypatch, means)
    averaged = {name: torch.stack([f[name] for f in found]).mean() for name in whole}
    for name in ("frame_mask", "frame_dice", "video_mask", "video_dice"):
        torch.testing.assert_close(averaged[name], whole[name], rtol=1e-4, atol=1e-5)
    # Means of means: near, and not the same.
    for name in ("frame_class", "similarity"):
        assert abs(averaged[name] - whole[name]) > 1e-4 * whole[name], name


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_has_the_same_clips_in_any_number_of_processes(
    processes: int, accumulate: int
) -> None:
    stage = replace(STAGE, batch=8, accumulate=accumulate)
    numbers = [
        number
        for part in range(accumulate)
        for rank in range(processes)
        for number in part_of_step(100, stage, 2, part, rank, processes)
    ]
    assert numbers == list(range(116, 124))
