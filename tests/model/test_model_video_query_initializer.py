"""Test the initializer's variants against loops, their invariances, and the stream's sum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_deploy.networks.pan2024.modules.clip import TextFeatures
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import QueryDescriptors
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.slot_alignment import gather_slots
from rvos_deploy.networks.pan2024.slots import OnlineSoftmax

MakeNetwork = Callable[..., RvosNetwork]
VARIANTS = ("aligned", "weighted", "sentence")
SLOTS = 5

# The weights over time are float32 by design, also in a float64 network.
FLOAT32_WEIGHTS = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def networks(make_network: MakeNetwork) -> dict[str, RvosNetwork]:
    """Return a network for each variant, with equal parameters, in float64."""
    made: dict[str, RvosNetwork] = {}
    for variant in VARIANTS:
        network = make_network(initializer=variant, num_queries=SLOTS).eval()
        network.initializer.double().requires_grad_(False)
        network.initializer.weight.weight *= 8
        network.video_decoder.double().requires_grad_(False)
        made[variant] = network
    return made


@pytest.fixture
def wide_text(text: TextFeatures) -> TextFeatures:
    return TextFeatures(text.tokens.double(), text.sentence.double(), text.padding)


def make_descriptors(network: RvosNetwork, length: int) -> QueryDescriptors:
    """Return descriptors of five distant objects in two clips, shuffled from the second frame on.

    Queries are unrelated to the objects.
    """
    angles = torch.arange(SLOTS) * (2 * math.pi / SLOTS)
    position = torch.full((2, length, SLOTS, 5), 0.2)
    position[..., :2] = 0.8 * torch.stack((angles.cos(), angles.sin()), dim=-1)
    content = torch.randn(2, length, SLOTS, sum(network.clip.image_channels[1:]))
    descriptors = QueryDescriptors(
        torch.randn(2, length, SLOTS, 128, dtype=torch.float64),
        position,
        0.2 * content + content[:, :1],
        torch.full((2, length, SLOTS), 0.9),
    )
    return shuffle_slots(descriptors, first=1)


def shuffle_slots(descriptors: QueryDescriptors, first: int) -> QueryDescriptors:
    """Shuffle every frame from ``first`` on."""
    order = torch.arange(SLOTS).repeat(*descriptors.score.shape[:2], 1)
    for clip, t in itertools.product(range(len(order)), range(first, order.shape[1])):
        order[clip, t] = torch.randperm(SLOTS)
    return QueryDescriptors(*(gather_slots(x, order) for x in descriptors))


def initial_queries(
    network: RvosNetwork,
    descriptors: QueryDescriptors,
    text: TextFeatures,
    order: Tensor | None = None,
) -> Tensor:
    """Return the initial video queries of the network, for its own or a given order of slots."""
    caught: list[Tensor] = []
    hook = network.initializer.register_forward_hook(lambda _m, _i, out: caught.append(out))
    network.decode_video(
        descriptors.queries, network.slot_order(descriptors) if order is None else order, text
    )
    hook.remove()
    return caught[0]


def by_loops(
    network: RvosNetwork, frame_queries: Tensor, order: Tensor, text: TextFeatures
) -> np.ndarray:
    """Compute one slot of one clip at a time."""
    value, weight = network.initializer.value, network.initializer.weight
    matrix, shift = value.weight.numpy(), value.bias.numpy()
    row, offset = weight.weight.numpy()[0], float(weight.bias)
    queries = frame_queries.numpy()
    output = np.zeros((queries.shape[0], SLOTS, queries.shape[3]))
    for b, clip in enumerate(queries):
        if network.config.initializer == "sentence":
            output[b] = text.sentence[b].numpy()
            continue
        tracks = [
            frame[list(chosen)] for frame, chosen in zip(clip, order[b].tolist(), strict=True)
        ]
        for slot in range(SLOTS):
            sources = [matrix @ frame[slot] + shift for frame in tracks]
            logits = np.array([row @ source + offset for source in sources])
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            output[b, slot] = sum(s * x for s, x in zip(shares, sources, strict=True))
    return output


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_against_loops(
    networks: dict[str, RvosNetwork], wide_text: TextFeatures, variant: str, length: int
) -> None:
    """Every variant uses the given order of the slots."""
    network = networks[variant]
    descriptors = make_descriptors(network, length)
    order = torch.stack([torch.randperm(SLOTS) for _ in range(2 * length)]).view(2, length, SLOTS)
    queries = initial_queries(network, descriptors, wide_text, order)
    expected = torch.from_numpy(by_loops(network, descriptors.queries, order, wide_text))
    torch.testing.assert_close(queries, expected, **FLOAT32_WEIGHTS)


def test_only_the_variant_aligned_moves_queries_between_slots(
    networks: dict[str, RvosNetwork],
) -> None:
    descriptors = make_descriptors(networks["aligned"], 4)
    stay = torch.arange(SLOTS).expand(2, 4, SLOTS)
    for variant in ("weighted", "sentence"):
        assert torch.equal(networks[variant].slot_order(descriptors), stay)
    found = networks["aligned"].slot_order(descriptors)
    assert found.dtype == torch.int64
    assert not torch.equal(found, stay)
    # Where the first frame saw an object, its slot is in every frame.
    placed = gather_slots(descriptors.position, found)
    assert torch.equal(placed, descriptors.position[:, :1].expand_as(placed))


def test_only_contents_at_stride_8_align_slots(
    networks: dict[str, RvosNetwork],
) -> None:
    """Contents at strides 16 and 32 follow those at stride 8 and have no effect."""
    network = networks["aligned"]
    width = network.clip.image_channels[1]
    descriptors = make_descriptors(network, 4)
    descriptors = descriptors._replace(position=torch.full_like(descriptors.position, 0.2))
    order = network.slot_order(descriptors)
    assert not torch.equal(order, torch.arange(SLOTS).expand(2, 4, SLOTS))
    noise = torch.randn_like(descriptors.content)
    fine, coarse = descriptors.content.clone(), descriptors.content.clone()
    fine[..., :width], coarse[..., width:] = noise[..., :width], noise[..., width:]
    assert torch.equal(network.slot_order(descriptors._replace(content=coarse)), order)
    assert not torch.equal(network.slot_order(descriptors._replace(content=fine)), order)


def test_the_variants_differ(networks: dict[str, RvosNetwork], wide_text: TextFeatures) -> None:
    descriptors = make_descriptors(networks["aligned"], 4)
    made = [initial_queries(networks[v], descriptors, wide_text) for v in VARIANTS]
    for a, b in itertools.combinations(made, 2):
        assert (a - b).abs().max() > 0.1


def test_one_frame_has_all_the_weight(
    networks: dict[str, RvosNetwork], wide_text: TextFeatures
) -> None:
    descriptors = make_descriptors(networks["aligned"], 1)
    for variant in ("aligned", "weighted"):
        queries = initial_queries(networks[variant], descriptors, wide_text)
        expected = networks[variant].initializer.value(descriptors.queries[:, 0])
        torch.testing.assert_close(queries, expected, rtol=1e-12, atol=1e-12)


def test_the_sum_over_time_is_independent_of_order(networks: dict[str, RvosNetwork]) -> None:
    initializer = networks["aligned"].initializer
    frame_queries = torch.randn(2, 6, SLOTS, 128, dtype=torch.float64)
    sentence = torch.zeros(2, 128, dtype=torch.float64)
    queries = initializer(*initializer.per_frame(frame_queries), sentence)
    shuffled = frame_queries[:, torch.randperm(6)]
    again = initializer(*initializer.per_frame(shuffled), sentence)
    torch.testing.assert_close(again, queries, **FLOAT32_WEIGHTS)


def test_the_order_of_slots_in_later_frames(
    networks: dict[str, RvosNetwork], wide_text: TextFeatures
) -> None:
    """``aligned`` does not depend on it, ``weighted`` does, and ``sentence`` reads no slot."""
    descriptors = make_descriptors(networks["aligned"], 4)
    shuffled = shuffle_slots(descriptors, first=1)
    for variant, same in (("aligned", True), ("weighted", False), ("sentence", True)):
        network = networks[variant]
        before = initial_queries(network, descriptors, wide_text)
        after = initial_queries(network, shuffled, wide_text)
        assert torch.equal(after, before) == same, variant
    aligned = networks["aligned"]
    before, after = (
        aligned.decode_video(f.queries, aligned.slot_order(f), wide_text)
        for f in (descriptors, shuffled)
    )
    assert not torch.equal(after.order, before.order)
    assert torch.equal(after.aligned_queries, before.aligned_queries)
    assert torch.equal(after.predictions[-1].logits, before.predictions[-1].logits)


def test_mask_embeddings_are_ordered_with_their_queries(
    networks: dict[str, RvosNetwork], wide_text: TextFeatures
) -> None:
    network = networks["aligned"]
    descriptors = make_descriptors(network, 4)
    video = network.decode_video(
        descriptors.queries,
        network.slot_order(descriptors),
        wide_text,
        mask_embeddings=2 * descriptors.queries,
    )
    assert not torch.equal(video.aligned_queries, descriptors.queries)
    assert torch.equal(video.frame_mask_embeddings, 2 * video.aligned_queries)


def test_the_first_frame_defines_the_slots(
    networks: dict[str, RvosNetwork], wide_text: TextFeatures
) -> None:
    descriptors = make_descriptors(networks["aligned"], 4)
    cycle = [1, 2, 3, 4, 0]
    renamed = QueryDescriptors(*(x.clone() for x in descriptors))
    for new, old in zip(renamed, descriptors, strict=True):
        new[:, 0] = old[:, 0, cycle]
    before = initial_queries(networks["aligned"], descriptors, wide_text)
    after = initial_queries(networks["aligned"], renamed, wide_text)
    torch.testing.assert_close(after, before[:, cycle], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("trend", [0.0, 1.0, -1.0])
def test_the_streams_running_mean_is_the_initializers(
    networks: dict[str, RvosNetwork], size: float, trend: float
) -> None:
    """The test covers logits that rise, fall, or would overflow an exp, after every frame."""
    initializer = networks["aligned"].initializer
    values = torch.randn(1, 12, SLOTS, 128)
    logits = size * (torch.randn(1, 12, SLOTS) + trend * torch.arange(12.0)[:, None])
    running = OnlineSoftmax()
    for t in range(12):
        running.update(values[0, t].numpy(), logits[0, t].numpy())
        expected = initializer(values[:, : t + 1], logits[:, : t + 1], torch.zeros(1, 128))[0]
        mean = running.mean()
        assert mean.dtype == np.float32
        # Float32 softmax and sum on one side, float64 on the other.
        torch.testing.assert_close(torch.from_numpy(mean), expected, **FLOAT32_WEIGHTS)


def test_the_running_mean_does_not_keep_its_inputs() -> None:
    running = OnlineSoftmax()
    values, logits = np.ones((2, 3), np.float32), np.zeros(2, np.float32)
    running.update(values, logits)
    values[:], logits[:] = 7, 7
    assert np.array_equal(running.mean(), np.ones((2, 3), np.float32))


def test_gradients_reach_every_frame(networks: dict[str, RvosNetwork]) -> None:
    initializer = networks["aligned"].initializer
    frame_queries = torch.randn(1, 4, SLOTS, 128, dtype=torch.float64, requires_grad=True)
    queries = initializer(
        *initializer.per_frame(frame_queries), torch.zeros(1, 128, dtype=torch.float64)
    )
    (queries * torch.randn_like(queries)).sum().backward()
    assert frame_queries.grad is not None
    assert (frame_queries.grad.abs().amax(-1) > 0).all()
