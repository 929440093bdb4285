"""Test the video query decoder: only the ages tell it the order of frames."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rvos_deploy.networks.pan2024.modules.clip import TextFeatures
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.query_layer import AttentionMemory
from rvos_deploy.networks.pan2024.modules.video_query_decoder import (
    MAX_COMPETITION,
    TRAJECTORY_SAMPLES,
    Competition,
    FrameMemory,
    ReferredHead,
    TrajectoryEncoding,
    VideoPrediction,
)

LENGTH = 6

# Attention sums over memory rows in another order: float32 rounding through three layers.
ROUNDING = {"rtol": 0, "atol": 2e-5}
# Far above rounding; a difference in meaning moves normalised queries by this much and more.
DIFFERENT = 1e-2


@pytest.fixture
def arguments(tiny_network: RvosNetwork, text: TextFeatures) -> dict[str, Tensor]:
    slots, dim = tiny_network.config.num_queries, tiny_network.config.dim
    return {
        "memory": torch.randn(2, LENGTH, slots, dim),
        "ages": torch.arange(LENGTH - 1.0, -1, -1).repeat(2, 1),
        "empty": torch.zeros(2, LENGTH, dtype=torch.bool),
        "video_queries": torch.randn(2, slots, dim),
        "text": text.tokens,
        "sentence": text.sentence,
        "padding": text.padding,
    }


@torch.no_grad()
def decode(network: RvosNetwork, arguments: dict[str, Tensor], **changes: Any) -> VideoPrediction:
    return decode_layers(network, {**arguments, **changes})[-1]


def decode_layers(network: RvosNetwork, arguments: dict[str, Tensor]) -> list[VideoPrediction]:
    memory = FrameMemory(*(arguments[name] for name in ("memory", "ages", "empty")))
    text = TextFeatures(*(arguments[name] for name in ("text", "sentence", "padding")))
    predictions: list[VideoPrediction] = network.video_decoder(
        memory, arguments["video_queries"], text
    )
    return predictions


def unchanged_order(clip: Tensor) -> Tensor:
    """Return the order of slots that keep their queries: [B,T,N] for [B,T,N,C]."""
    return torch.arange(clip.shape[2]).expand(clip.shape[:3])


def difference(a: VideoPrediction, b: VideoPrediction) -> float:
    return float((a.queries - b.queries).abs().max())


def assert_same(a: VideoPrediction, b: VideoPrediction) -> None:
    for ours, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)


def test_swapping_two_frames_changes_the_answer(
    tiny_network: RvosNetwork, arguments: dict[str, Tensor]
) -> None:
    swapped = arguments["memory"][:, [1, 0, 2, 3, 4, 5]]
    reversed_ = arguments["memory"].flip(1)
    base = decode(tiny_network, arguments)
    assert difference(base, decode(tiny_network, arguments, memory=swapped)) > DIFFERENT
    assert difference(base, decode(tiny_network, arguments, memory=reversed_)) > DIFFERENT


def test_the_whole_video_part_sees_the_order_of_frames(
    tiny_network: RvosNetwork, text: TextFeatures
) -> None:
    """Slots keep their places, so only time distinguishes a clip from its reverse."""
    slots, dim = tiny_network.config.num_queries, tiny_network.config.dim
    start, step = torch.randn(2, 1, slots, dim), 0.1 * torch.randn(2, 1, slots, dim)
    clip = start + step * torch.arange(5.0)[:, None, None]
    with torch.no_grad():
        forward = tiny_network.decode_video(clip, unchanged_order(clip), text)
        backward = tiny_network.decode_video(clip.flip(1), unchanged_order(clip), text)
    assert difference(forward.predictions[-1], backward.predictions[-1]) > 1e-3


def trajectories_by_loops(encoding: TrajectoryEncoding, stored: FrameMemory) -> Tensor:
    """Compute one sample of one slot at a time, from the frames that are present."""
    memory, ages, empty = stored
    rows = []
    for clip in range(len(memory)):
        there = [t for t in range(memory.shape[1]) if not empty[clip, t]]
        oldest = max(1.0, max(float(ages[clip, t]) for t in there))
        for slot in range(memory.shape[2]):
            samples = []
            for number in range(TRAJECTORY_SAMPLES):
                time = number / (TRAJECTORY_SAMPLES - 1)
                weights = [
                    math.exp(-1.5 * ((1 - float(ages[clip, t]) / oldest - time) * 7) ** 2)
                    for t in there
                ]
                steps = [encoding.project(memory[clip, t, slot]) for t in there]
                mean = sum(w * x for w, x in zip(weights, steps, strict=True)) / sum(weights)
                samples.append(mean)
            rows.append(encoding.norm(encoding.read(torch.cat(samples))))
    return torch.stack(rows).unflatten(0, (memory.shape[0], memory.shape[2]))


def test_a_trajectory_is_sampled_at_fixed_fractions_of_the_time_seen_so_far() -> None:
    encoding = TrajectoryEncoding(32).double().requires_grad_(False)
    memory = torch.randn(3, 5, 4, 32, dtype=torch.float64)
    ages = torch.tensor([[20.0, 3.0, 11.0, 0.0, 7.0], [9.0, 4.0, 2.0, 1.0, 0.0], [0.0] * 5])
    empty = torch.tensor([[False] * 5, [True, False, False, True, False], [True] * 4 + [False]])
    stored = FrameMemory(memory, ages, empty)
    expected = trajectories_by_loops(encoding, stored)
    # Weights are float32 by design, also in a float64 network.
    torch.testing.assert_close(encoding(stored), expected, rtol=0, atol=1e-5)


def test_the_text_query_reads_the_sentence_and_each_word() -> None:
    head = ReferredHead(16, competition=True).double().requires_grad_(False)
    text, sentence = torch.randn(2, 5, 16).double(), torch.randn(2, 16).double()
    padding = torch.arange(5)[None] >= torch.tensor([[5], [3]])
    text_query = head.text_query(TextFeatures(text, sentence, padding))
    for row, words in enumerate((5, 3)):
        first, last = head.words[0], head.words[2]
        read = [
            last.weight @ torch.relu(first.weight @ text[row, i] + first.bias) + last.bias
            for i in range(words)
        ]
        total = sentence[row] + sum(read) / words
        centred = total - total.mean()
        normed = centred / (centred.square().mean() + 1e-5).sqrt()
        # The norm of a new head scales by 1 and adds 0.
        torch.testing.assert_close(text_query[row], normed, rtol=0, atol=1e-12)
        # The premise: the perceptron of the mean differs from the mean of the perceptron.
        mean = torch.relu(first.weight @ text[row, :words].mean(0) + first.bias)
        assert (last.weight @ mean + last.bias - sum(read) / words).abs().max() > 1e-2
    hidden = text.masked_fill(padding[..., None], 1e3)
    assert torch.equal(head.text_query(TextFeatures(hidden, sentence, padding)), text_query)
    # Query and text both decide which slot scores highest.
    queries, paths = torch.randn(2, 6, 16).double(), torch.randn(2, 6, 16).double()
    margins = head(queries, paths, text_query).diff(dim=-1)
    swapped = head(queries, paths, text_query.flip(0)).diff(dim=-1)
    assert (margins - swapped).std(dim=1).min() > 1e-3
    assert (head(queries, paths.roll(1, 1), text_query).diff(dim=-1) - margins).abs().max() > 1e-3


def test_competition_lowers_queries_behind_the_best_as_far_as_the_sentence_says() -> None:
    competition = Competition(8).double().requires_grad_(False)
    torch.nn.init.normal_(competition.alone.weight)
    logits, text_query = torch.randn(3, 7, 2).double(), torch.randn(3, 8).double()
    # One clip has two equally good queries: neither is behind.
    logits[1, 5] = logits[1, int((logits[1, :, 0] - logits[1, :, 1]).argmax())] + 0.5
    found = competition(logits, text_query)
    shares = set()
    for clip in range(3):
        weight = competition.alone.weight[0] @ text_query[clip] + competition.alone.bias[0]
        share = MAX_COMPETITION / (1 + math.exp(-float(weight)))
        leads = [float(referred - nothing) for referred, nothing in logits[clip]]
        for number, lead in enumerate(leads):
            expected = logits[clip, number, 0] - share * (max(leads) - lead)
            torch.testing.assert_close(found[clip, number, 0], expected, rtol=0, atol=1e-12)
            if lead >= max(leads) - 1e-12:
                torch.testing.assert_close(found[clip, number], logits[clip, number])
        shares.add(round(share, 3))
    assert torch.equal(found[..., 1], logits[..., 1])
    assert len(shares) == 3, "the sentence decides"
    # A sentence that may mean several objects leaves every score unchanged.
    torch.nn.init.constant_(competition.alone.bias, -1e3)
    assert torch.equal(competition(logits, text_query), logits)


def test_a_clips_last_frame_is_the_newest(tiny_network: RvosNetwork, text: TextFeatures) -> None:
    """A whole clip is decoded as in a stream after the last frame."""
    slots, dim = tiny_network.config.num_queries, tiny_network.config.dim
    clip = torch.randn(2, 4, slots, dim)
    caught: list[Tensor] = []
    hook = tiny_network.initializer.register_forward_hook(lambda _m, _i, out: caught.append(out))
    with torch.no_grad():
        output = tiny_network.decode_video(clip, clip[..., 0].argsort(dim=-1), text)
        hook.remove()
        expected = tiny_network.video_decoder(
            FrameMemory(
                output.aligned_queries,
                torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2),
                torch.zeros(2, 4, dtype=torch.bool),
            ),
            caught[0],
            text,
        )
    assert torch.equal(output.predictions[-1].queries, expected[-1].queries)
    assert torch.equal(output.predictions[-1].logits, expected[-1].logits)


def test_the_ages_tell_which_frames_are_missing(
    tiny_network: RvosNetwork, text: TextFeatures
) -> None:
    """Training reads a few frames of a video, and inference all; the ages say which."""
    slots, dim = tiny_network.config.num_queries, tiny_network.config.dim
    clip = torch.randn(2, 3, slots, dim)
    dense, sparse = torch.tensor([[2, 1, 0]] * 2), torch.tensor([[9, 4, 0]] * 2)
    with torch.no_grad():
        default, given, apart = (
            tiny_network.decode_video(clip, unchanged_order(clip), text, ages).predictions[-1]
            for ages in (None, dense, sparse)
        )
    assert_same(default, given)
    assert difference(default, apart) > DIFFERENT


def test_a_layer_reads_frames_then_text_then_itself(
    tiny_network: RvosNetwork, arguments: dict[str, Tensor]
) -> None:
    layer = tiny_network.video_decoder.layers[0]
    queries, position = arguments["video_queries"], torch.randn(20, 128)
    memory, where = torch.randn(2, 40, 128), torch.randn(40, 128)
    bias, text_bias = torch.randn(2, 1, 1, 40), torch.randn(2, 1, 1, 5)
    with torch.no_grad():
        output = layer(
            queries,
            position,
            AttentionMemory(memory, where, (bias,)),
            AttentionMemory(arguments["text"], None, (text_bias,)),
        )
        step = layer.memory_attention(queries, memory, position, where, (bias,))
        step = layer.text_attention(step, arguments["text"], position, biases=(text_bias,))
        expected = layer.ffn(layer.self_attention(step, position))
    assert torch.equal(output, expected)


def test_the_order_in_which_memory_is_stored_does_not_matter(
    tiny_network: RvosNetwork, arguments: dict[str, Tensor]
) -> None:
    """The rows of a ring buffer have any order, and their ages move with them."""
    empty = torch.tensor([[False] * 6, [True, False, False, True, False, False]])
    base = decode(tiny_network, arguments, empty=empty)
    for shuffle in (torch.randperm(LENGTH), torch.arange(LENGTH).roll(2)):
        stored = {name: arguments[name][:, shuffle] for name in ("memory", "ages")}
        again = decode(tiny_network, arguments, **stored, empty=empty[:, shuffle])
        assert_same(again, base)


def test_ages_matter(tiny_network: RvosNetwork, arguments: dict[str, Tensor]) -> None:
    base = decode(tiny_network, arguments)
    older = decode(tiny_network, arguments, ages=arguments["ages"] + 3)
    assert difference(base, older) > DIFFERENT
    whole = decode(tiny_network, arguments, ages=arguments["ages"].long())
    assert torch.equal(whole.queries, base.queries)


def test_empty_frames_have_no_influence(
    tiny_network: RvosNetwork, arguments: dict[str, Tensor]
) -> None:
    empty = torch.tensor([[True, True, False, False, False, False], [False] * 4 + [True, False]])
    base = decode(tiny_network, arguments, empty=empty)
    garbage = arguments["memory"].masked_fill(empty[:, :, None, None], 1e3)
    # The attention weight of a hidden key is exactly zero.
    again = decode(
        tiny_network,
        arguments,
        memory=garbage,
        empty=empty,
        ages=arguments["ages"].masked_fill(empty, 500),
    )
    assert torch.equal(again.queries, base.queries)
    # The answer is the same without the empty frames.
    for clip in range(2):
        kept = ~empty[clip]
        alone = {name: value[clip : clip + 1] for name, value in arguments.items()}
        for name in ("memory", "ages", "empty"):
            alone[name] = alone[name][:, kept]
        only = decode(tiny_network, alone)
        torch.testing.assert_close(only.queries[0], base.queries[clip], **ROUNDING)
    assert difference(base, decode(tiny_network, arguments)) > DIFFERENT


def test_the_memory_has_an_order_of_slots(
    tiny_network: RvosNetwork, arguments: dict[str, Tensor]
) -> None:
    base = decode(tiny_network, arguments)
    rolled = decode(tiny_network, arguments, memory=arguments["memory"].roll(1, dims=2))
    assert difference(base, rolled) > DIFFERENT


def test_a_bigger_batch_of_expressions_is_the_same_as_each_alone(
    tiny_network: RvosNetwork, arguments: dict[str, Tensor]
) -> None:
    base = decode(tiny_network, arguments)
    for clip in range(2):
        alone = decode(
            tiny_network, {name: value[clip : clip + 1] for name, value in arguments.items()}
        )
        torch.testing.assert_close(alone.queries[0], base.queries[clip], **ROUNDING)
        torch.testing.assert_close(alone.logits[0], base.logits[clip], **ROUNDING)


def test_text_and_sentence_matter_and_padding_does_not(
    tiny_network: RvosNetwork, arguments: dict[str, Tensor]
) -> None:
    base = decode(tiny_network, arguments)
    padding = arguments["padding"]
    assert padding[1].sum() == 2
    hidden = arguments["text"].masked_fill(padding[..., None], 1e3)
    assert torch.equal(decode(tiny_network, arguments, text=hidden).queries, base.queries)
    visible = arguments["text"].masked_fill(~padding[..., None], 0.3)
    assert difference(base, decode(tiny_network, arguments, text=visible)) > DIFFERENT
    # The score reads the sentence; the mask does not.
    other = decode(tiny_network, arguments, sentence=-arguments["sentence"])
    assert torch.equal(other.mask_embeddings, base.mask_embeddings)
    assert (other.logits - base.logits).abs().max() > DIFFERENT


def test_one_prediction_a_layer(tiny_network: RvosNetwork, arguments: dict[str, Tensor]) -> None:
    with torch.no_grad():
        predictions = decode_layers(tiny_network, arguments)
    assert len(predictions) == 2
    for prediction in predictions:
        assert prediction.queries.shape == (2, 20, 128)
        assert prediction.logits.shape == (2, 20, 2)
        assert prediction.mask_embeddings.shape == (2, 20, 128)
    assert difference(predictions[0], predictions[1]) > DIFFERENT
