"""Test that each of our switches can be off, and compare the rest with the ancestor's form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules.clip import TextFeatures
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import thresholded_bias
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.slot_alignment import align_slots
from rvos_deploy.networks.pan2024.modules.video_query_decoder import LinearReferredHead
from rvos_deploy.networks.pan2024.slots import CosineTracker, SlotCues, make_tracker

OURS: dict[str, Any] = {
    "text_words": False,
    "mask_position": False,
    "mask_content": False,
    "frame_masks": False,
    "trajectory_encoding": False,
    "competition": False,
    "alignment": "cosine",
    "own_slot": False,
    "temporal_position": False,
    "referred_head": "linear",
    "hiding": "threshold",
    "slot_position": "separate",
}
"""Every switch of ours, switched off."""


def test_large_paper_is_large_with_all_our_switches_off() -> None:
    large, paper = asdict(preset("large")), asdict(preset("large-paper"))
    differing = {name: paper[name] for name in paper if paper[name] != large[name]}
    assert differing == {k: v for k, v in OURS.items() if k != "text_words"} | {
        "name": "large-paper",
        "fusion_dim": 1024,
    }


def test_the_paper_has_none_of_our_parameters(make_network: Callable[..., RvosNetwork]) -> None:
    names = set(make_network(**OURS).state_dict())
    for of_ours in ("mask_position", "mask_content", "query_share", "course", "rivals", "own_slot"):
        assert not [name for name in names if of_ours in name]
    assert {name for name in names if "referred_head" in name} == {
        "video_decoder.referred_head.decide.weight",
        "video_decoder.referred_head.decide.bias",
    }


@pytest.mark.parametrize("switch", OURS)
def test_every_switch_changes_the_result(
    make_network: Callable[..., RvosNetwork],
    token_ids: Callable[..., Tensor],
    frames: Tensor,
    switch: str,
) -> None:
    """A switch that no code reads would leave the masks unchanged."""

    def answer(**changes: Any) -> Tensor:
        network = make_network(**changes).eval()
        with torch.no_grad():
            for number, (_, parameter) in enumerate(sorted(network.named_parameters())):
                if parameter.requires_grad:
                    noise = torch.Generator().manual_seed(number)
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
            output = network(frames, token_ids([11, 12, 13, 4], 20))
            last = output.video.predictions[-1]
            assert output.video.frame_mask_embeddings is not None
            return torch.cat([last.logits.flatten(), output.video.frame_mask_embeddings.flatten()])

    assert not torch.allclose(answer(), answer(**{switch: OURS[switch]}), atol=1e-4)


def test_masked_attention_hides_as_mask2former_does() -> None:
    logits = torch.tensor([[[-1.0, 2.0, 0.0, -3.0], [-1.0, -2.0, -0.5, -3.0]]])
    # A probability of one half is not under one half; a row that would hide all hides nothing.
    expected = [[[True, False, False, True], [False, False, False, False]]]
    assert (thresholded_bias(logits) < -1e3).tolist() == expected
    probability = torch.randn(3, 7, 40, dtype=torch.float64)
    hidden = probability.sigmoid() < 0.5
    hidden[hidden.all(-1)] = False
    assert torch.equal(thresholded_bias(probability) < -1e3, hidden)


def test_the_linear_head_reads_query_and_sentence() -> None:
    head = LinearReferredHead(6, competition=False).double()
    queries, sentence = torch.randn(2, 5, 6).double(), torch.randn(2, 6).double()
    padding = torch.zeros(2, 3, dtype=torch.bool)
    text = TextFeatures(torch.randn(2, 3, 6).double(), sentence, padding)
    found = head(queries, torch.zeros_like(queries), head.text_query(text))
    for clip in range(2):
        for query in range(5):
            both = torch.cat((queries[clip, query], sentence[clip]))
            expected = head.decide.weight @ both + head.decide.bias
            torch.testing.assert_close(found[clip, query], expected, rtol=0, atol=1e-12)


def cosine_cues(queries: np.ndarray) -> SlotCues:
    slots = len(queries)
    return SlotCues(np.zeros((slots, 5), np.float32), queries, np.zeros(slots, np.float32))


def test_cosine_alignment_follows_a_cycle_and_not_its_inverse() -> None:
    """A swap is its own inverse and hides the mistake; a cycle of five does not."""
    objects = np.eye(5, 8, dtype=np.float32)
    cycle = np.array([1, 2, 3, 4, 0])
    tracker = make_tracker("cosine")
    assert isinstance(tracker, CosineTracker)
    assert tracker.advance(cosine_cues(objects)).tolist() == [0, 1, 2, 3, 4]
    # Query k of the second frame is object cycle[k]; lengths do not matter.
    order = tracker.advance(cosine_cues(3.0 * objects[cycle]))
    assert (cycle[order] == np.arange(5)).all()
    assert not np.array_equal(order, cycle)
    # The third frame is compared with the aligned second.
    assert (cycle[tracker.advance(cosine_cues(objects[cycle]))] == np.arange(5)).all()


def test_cosine_alignment_equals_plain_costs_in_float64() -> None:
    from itertools import permutations

    rng = np.random.default_rng(7)
    tracker, previous = CosineTracker(), None
    for _ in range(6):
        queries = rng.normal(size=(5, 12)).astype(np.float32)
        order = tracker.advance(cosine_cues(queries))
        wide = queries.astype(np.float64)
        if previous is not None:

            def cost(chosen: tuple[int, ...], wide: Any = wide, previous: Any = previous) -> float:
                return sum(
                    1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
                    for a, b in zip(previous, wide[list(chosen)], strict=True)
                )

            assert tuple(order) == min(permutations(range(5)), key=cost)
        previous = wide[order]


def test_an_undefined_cosine_costs_as_much_as_a_right_angle() -> None:
    queries = np.eye(3, 4, dtype=np.float32)
    tracker = CosineTracker()
    tracker.advance(cosine_cues(queries))
    broken = queries[[1, 0, 2]].copy()
    broken[2] = np.nan
    assert tracker.advance(cosine_cues(broken)).tolist() == [1, 0, 2]
    broken[:] = queries
    broken[0] = 0.0
    assert tracker.advance(cosine_cues(broken)).tolist() == [0, 1, 2]


def test_training_aligns_by_the_same_tracker() -> None:
    rng = np.random.default_rng(3)
    content = torch.from_numpy(rng.normal(size=(2, 4, 5, 12)).astype(np.float32))
    position, score = torch.zeros(2, 4, 5, 5), torch.zeros(2, 4, 5)
    found = align_slots("cosine", position, content, score)
    for clip in range(2):
        tracker = CosineTracker()
        for t in range(4):
            expected = tracker.advance(cosine_cues(content[clip, t].numpy()))
            assert found[clip, t].tolist() == expected.tolist()


def test_cosine_alignment_is_by_the_queries(make_network: Callable[..., RvosNetwork]) -> None:
    network = make_network(alignment="cosine")
    assert network.content_width == network.config.dim
    assert make_network().content_width == network.clip.image_channels[1]
    assert replace(network.config, alignment="mask_cues") == make_network().config
