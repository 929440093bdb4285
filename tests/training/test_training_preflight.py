"""Test preflight checks: slots that encode motion pass, and a run that cannot learn stops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rvos_deploy.datasets.moving_sprites import WorldConfig
from rvos_deploy.errors import RvosError
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import QueryDescriptors
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, build_network
from rvos_deploy.training import motion_words, preflight, slot_probe, trainer
from rvos_deploy.training.clips import Clips, collate
from rvos_deploy.training.motion_words import MotionWordDistances
from rvos_deploy.training.recipe import Recipe, Stage
from rvos_deploy.training.slot_probe import (
    DIRECTIONS,
    SlotExamples,
    SlotProbe,
    direction_accuracy,
    directions_of,
    probe_slots,
    slot_examples,
    tube_overlaps,
)

WORLD = WorldConfig(height=64, width=96, frames=8, objects=(2, 3), expressions=(1, 4), emoji=False)
STAGES = (
    Stage("frames", steps=1, batch=1, length=1, learning_rate=1e-3),
    Stage("video", steps=1, batch=1, length=2, learning_rate=1e-3, trained=("initializer",)),
)
RECIPE = Recipe(preset("tiny"), "sprites", STAGES, seed=3, sprites=WORLD)
OPTIONS = trainer.TrainingOptions(clip_weights="any")


@pytest.fixture(scope="module")
def network() -> RvosNetwork:
    torch.manual_seed(0)
    return build_network(RECIPE.model).train()


def examples(count: int, seed: int, told: float) -> SlotExamples:
    """Return tokens of 16 channels that hold noise, and a trajectory of size ``told``."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randint(0, 4, (count,), generator=generator)
    steps = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])[directions]
    start = torch.randn(count, 1, 2, generator=generator)
    path = start + steps[:, None] * torch.linspace(0, 2, 6)[None, :, None]
    mixing = torch.randn(2, 16, generator=torch.Generator().manual_seed(9))
    noise = 0.3 * torch.randn(count, 6, 16, generator=generator)
    return SlotExamples(told * path @ mixing + noise, directions)


def test_tokens_with_a_trajectory_encode_its_direction() -> None:
    assert direction_accuracy(examples(400, 0, 1.0), examples(200, 1, 1.0), 0) > 0.9


def test_tokens_without_a_trajectory_do_not() -> None:
    state = torch.random.get_rng_state()
    assert direction_accuracy(examples(400, 0, 0.0), examples(200, 1, 0.0), 0) < 0.4
    assert torch.equal(torch.random.get_rng_state(), state)
    assert direction_accuracy(examples(0, 0, 1.0), examples(20, 1, 1.0), 0) == 0.0


def test_directions_of_objects() -> None:
    truth = torch.zeros(6, 5, 32, 48, dtype=torch.bool)
    for t in range(5):
        truth[0, t, 10:14, 30 - 4 * t : 34 - 4 * t] = True
        truth[1, t, 10:14, 2 + 6 * t : 6 + 6 * t] = True
        truth[2, t, 24 - 4 * t : 28 - 4 * t, 5 + t : 8 + t] = True
        truth[4, t, 10:14, 10:14] = True
        if 1 <= t <= 3:  # enters, and leaves
            truth[3, t, 6 * t : 6 * t + 4, 40:44] = True
    named = [None if d is None else DIRECTIONS[d] for d in directions_of(truth)]
    assert named == ["left", "right", "up", "down", None, None]


def test_overlap_is_of_whole_tubes() -> None:
    rng = np.random.default_rng(0)
    masks, truth = rng.random((3, 4, 5, 6)) > 0.5, rng.random((2, 3, 5, 6)) > 0.5
    found = tube_overlaps(torch.from_numpy(masks), torch.from_numpy(truth))
    for n in range(4):
        for k in range(2):
            both = (masks[:, n] & truth[k]).sum()
            assert found[n, k] == pytest.approx(both / (masks[:, n] | truth[k]).sum(), abs=1e-6)


def test_a_slot_on_its_object_is_found(
    network: RvosNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With true masks in place of the network's, every moving object is found with its token."""

    def perfect(_network: RvosNetwork, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        masks = torch.nn.functional.avg_pool2d(batch.masks[0].float(), 4) >= 0.5  # type: ignore[attr-defined]
        tokens = torch.arange(len(masks)).float()[None, :, None].expand(slot_probe.LENGTH, -1, 128)
        return tokens, masks.transpose(0, 1)

    monkeypatch.setattr(slot_probe, "_slots", perfect)
    found, moving = slot_examples(network, RECIPE, 0, 12)
    assert moving == len(found.tokens) > 4
    assert found.tokens.shape[1:] == (slot_probe.LENGTH, 128)
    assert len(set(found.tokens[:, 0, 0].tolist())) > 1


def test_the_input_of_the_probe_is_ordered_by_slot(
    network: RvosNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In frame t, slot n has query n + t, for queries, positions and masks."""
    slots = network.config.num_queries

    def rolled(descriptors: QueryDescriptors) -> torch.Tensor:
        row = (torch.arange(slots) + torch.arange(3)[:, None]) % slots
        return row.expand(descriptors.score.shape)

    monkeypatch.setattr(network, "slot_order", rolled)
    batch = collate([Clips(RECIPE, replace(STAGES[1], length=3))[0]])
    with torch.no_grad():
        tokens, masks = slot_probe._slots(network, batch)
        frames = network(batch.frames, batch.token_ids, batch.ages).frames
    descriptors, last = frames.descriptors, frames.predictions[-1]
    for t in range(3):
        told = torch.cat((descriptors.queries[t], descriptors.position[t]), dim=-1).roll(-t, 0)
        assert torch.equal(tokens[t], told)
        drawn = torch.einsum("nc,chw->nhw", last.mask_embeddings[t], frames.mask_features[t])
        # A pixel whose logit is 0 but for rounding may fall on either side.
        assert (masks[t] != (drawn.roll(-t, 0) > 0)).float().mean() < 1e-3


def test_an_untrained_frame_part_does_not_pass(
    network: RvosNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_probe, "TRAIN_CLIPS", 6)
    monkeypatch.setattr(slot_probe, "HELD_OUT_CLIPS", 3)
    assert probe_slots(network, RECIPE) == probe_slots(network, RECIPE)
    assert network.training
    with pytest.raises(RvosError, match=r"aligned slots tell .* 0\.6 needed; train the frame part"):
        preflight.check_slots(network, RECIPE, tmp_path)
    assert json.loads((tmp_path / preflight.REPORT).read_text())["slots"]["accuracy"] < 0.6


def test_a_tower_that_merges_words_stops_the_run(
    network: RvosNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = MotionWordDistances(2.2, 15.5, {"up / down": 2.2})
    monkeypatch.setattr(motion_words, "motion_word_distances", lambda *_: merged)
    monkeypatch.setattr("rvos_deploy.training.preparation.build_network", lambda *_: network)
    with pytest.raises(RvosError, match=r"merges opposite motion words: 0\.14 of the distance"):
        trainer.train(RECIPE, tmp_path, OPTIONS)
    assert json.loads((tmp_path / preflight.REPORT).read_text())["motion_words"]["by_pair"]
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_makes_each_preflight_check_once(
    network: RvosNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    telling = MotionWordDistances(10.0, 12.0, {})
    monkeypatch.setattr(motion_words, "motion_word_distances", lambda *_: telling)
    monkeypatch.setattr("rvos_deploy.training.preparation.build_network", lambda *_: network)

    def probe(_network: RvosNetwork, recipe: Recipe) -> SlotProbe:
        asked.append(recipe.seed)
        return SlotProbe(0.9, 50, 0.9)

    monkeypatch.setattr(slot_probe, "probe_slots", probe)
    result = trainer.train(RECIPE, tmp_path, OPTIONS)
    assert (asked, result.steps) == ([3], 2)
    found = json.loads((tmp_path / preflight.REPORT).read_text())
    assert found["motion_words"]["ratio"] == pytest.approx(10 / 12)
    assert found["slots"]["accuracy"] == 0.9
    trainer.train(replace(RECIPE, preflight=False), tmp_path / "none", OPTIONS)
    assert asked == [3]
    assert not (tmp_path / "none" / preflight.REPORT).exists()
