"""The initializer's three variants against loops, their invariances, and the stream's own sum."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_deploy.model.clip import TextFeatures
from rvos_deploy.model.network import RvosNetwork
from rvos_deploy.runtime.slots import OnlineSoftmax

MakeNetwork = Callable[..., RvosNetwork]
VARIANTS = ("aligned", "weighted", "sentence")
SLOTS = 5

# The weights over time are float32 by design, also in a float64 network.
FLOAT32_WEIGHTS = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def networks(make_network: MakeNetwork) -> dict[str, RvosNetwork]:
    """One a variant, all with the same parameters, in float64, with sharp weights over time."""
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


def initial_queries(network: RvosNetwork, frame_queries: Tensor, text: TextFeatures) -> Tensor:
    """What the whole network's video part starts its decoder from."""
    caught: list[Tensor] = []
    hook = network.initializer.register_forward_hook(lambda _m, _i, out: caught.append(out))
    network.decode_video(frame_queries, text)
    hook.remove()
    return caught[0]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def by_loops(network: RvosNetwork, frame_queries: Tensor, text: TextFeatures) -> np.ndarray:
    """One slot of one clip at a time; assignments by trying all 120 permutations."""
    value, weight = network.initializer.value, network.initializer.weight
    matrix, shift = value.weight.numpy(), value.bias.numpy()
    row, offset = weight.weight.numpy()[0], float(weight.bias)
    queries = frame_queries.numpy()
    output = np.zeros((queries.shape[0], SLOTS, queries.shape[3]))
    for b, clip in enumerate(queries):
        if network.config.initializer == "sentence":
            output[b] = text.sentence[b].numpy()
            continue
        tracks = [clip[0]]
        for frame in clip[1:]:
            similarity = [[cosine(a, c) for c in frame] for a in tracks[-1]]
            best: tuple[int, ...] = max(
                itertools.permutations(range(SLOTS)),
                key=lambda p, s=similarity: sum(s[i][p[i]] for i in range(SLOTS)),  # type: ignore[misc]
            )
            if network.config.initializer == "weighted":
                best = tuple(range(SLOTS))
            tracks.append(frame[list(best)])
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
    frame_queries = torch.randn(2, length, SLOTS, 128, dtype=torch.float64)
    queries = initial_queries(networks[variant], frame_queries, wide_text)
    expected = torch.from_numpy(by_loops(networks[variant], frame_queries, wide_text))
    torch.testing.assert_close(queries, expected, **FLOAT32_WEIGHTS)


def test_the_variants_differ(networks: dict[str, RvosNetwork], wide_text: TextFeatures) -> None:
    frame_queries = torch.randn(2, 4, SLOTS, 128, dtype=torch.float64)
    made = [initial_queries(networks[v], frame_queries, wide_text) for v in VARIANTS]
    for a, b in itertools.combinations(made, 2):
        assert (a - b).abs().max() > 0.1


def test_one_frame_has_all_the_weight(
    networks: dict[str, RvosNetwork], wide_text: TextFeatures
) -> None:
    frame_queries = torch.randn(2, 1, SLOTS, 128, dtype=torch.float64)
    for variant in ("aligned", "weighted"):
        queries = initial_queries(networks[variant], frame_queries, wide_text)
        expected = networks[variant].initializer.value(frame_queries[:, 0])
        torch.testing.assert_close(queries, expected, rtol=1e-12, atol=1e-12)


def test_the_sum_over_time_knows_no_order(networks: dict[str, RvosNetwork]) -> None:
    initializer = networks["aligned"].initializer
    frame_queries = torch.randn(2, 6, SLOTS, 128, dtype=torch.float64)
    sentence = torch.zeros(2, 128, dtype=torch.float64)
    queries = initializer(*initializer.per_frame(frame_queries), sentence)
    shuffled = frame_queries[:, torch.randperm(6)]
    again = initializer(*initializer.per_frame(shuffled), sentence)
    torch.testing.assert_close(again, queries, **FLOAT32_WEIGHTS)


def with_slots_shuffled(frame_queries: Tensor, first: int) -> Tensor:
    """Every frame from ``first`` on in an order of its own."""
    shuffled = frame_queries.clone()
    for clip in shuffled:
        for frame in clip[first:]:
            frame.copy_(frame[torch.randperm(SLOTS)])
    return shuffled


def test_the_order_of_slots_in_later_frames(
    networks: dict[str, RvosNetwork], wide_text: TextFeatures
) -> None:
    """Irrelevant to ``aligned`` up to its last output; not to ``weighted``; no matter at all to
    what ``sentence`` starts from."""
    objects = torch.randn(2, 1, SLOTS, 128, dtype=torch.float64)
    frame_queries = objects + 0.3 * torch.randn(2, 4, SLOTS, 128, dtype=torch.float64)
    shuffled = with_slots_shuffled(frame_queries, first=1)
    for variant, same in (("aligned", True), ("weighted", False), ("sentence", True)):
        network = networks[variant]
        before = initial_queries(network, frame_queries, wide_text)
        after = initial_queries(network, shuffled, wide_text)
        assert torch.equal(after, before) == same, variant
    aligned = networks["aligned"]
    before, after = (aligned.decode_video(q, wide_text) for q in (frame_queries, shuffled))
    assert torch.equal(after.aligned_queries, before.aligned_queries)
    assert torch.equal(after.predictions[-1].logits, before.predictions[-1].logits)


def test_the_first_frame_names_the_slots(
    networks: dict[str, RvosNetwork], wide_text: TextFeatures
) -> None:
    objects = torch.randn(2, 1, SLOTS, 128, dtype=torch.float64)
    frame_queries = objects + 0.3 * torch.randn(2, 4, SLOTS, 128, dtype=torch.float64)
    cycle = [1, 2, 3, 4, 0]
    renamed = frame_queries.clone()
    renamed[:, 0] = frame_queries[:, 0, cycle]
    before = initial_queries(networks["aligned"], frame_queries, wide_text)
    after = initial_queries(networks["aligned"], renamed, wide_text)
    torch.testing.assert_close(after, before[:, cycle], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("trend", [0.0, 1.0, -1.0])
def test_the_streams_running_mean_is_the_initializers(
    networks: dict[str, RvosNetwork], size: float, trend: float
) -> None:
    """After every frame; with logits that rise, that fall, and that would overflow an exp."""
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


def test_the_running_mean_keeps_no_hold_of_what_it_was_given() -> None:
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
