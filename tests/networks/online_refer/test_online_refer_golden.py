"""The network gives the authors' numbers. See ../shared/onlinerefer/golden_weights.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_deploy.networks.online_refer.config import PADDING_ID, preset
from rvos_deploy.networks.online_refer.modules.checkpoint import is_ignored
from rvos_deploy.networks.online_refer.modules.network import OnlineRefer, Track

Golden = Mapping[str, np.ndarray]
FRAMES = 4
RECORDED = ("encode", "stride_4", "decode")
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-4}
"""Of the largest magnitude. float32: tens of layers. float64: the stored values are float32, and so
are the sine positions of both sides."""


@pytest.fixture(scope="module")
def golden(published: Path) -> tuple[Golden, Golden]:
    return tuple(dict(np.load(published / name)) for name in ("golden.npz", "golden_b.npz"))


@pytest.fixture(scope="module")
def network(golden_weight: Callable[[str, tuple[int, ...]], np.ndarray]) -> OnlineRefer:
    made = OnlineRefer(preset("onlinerefer-r50")).eval()
    state = {
        name: torch.from_numpy(golden_weight(name, tuple(weight.shape)))
        for name, weight in made.state_dict().items()
    }
    made.load_state_dict(state)
    return made


def test_names_and_shapes_are_the_published_ones(published: Path) -> None:
    with torch.device("meta"):
        state = OnlineRefer(preset("onlinerefer-r50")).state_dict()
    lines = (published / "names.txt").read_text().splitlines()
    wanted = dict(line.split(" ", 1) for line in lines)
    ours = {name: str(list(weight.shape)) for name, weight in state.items()}
    assert ours == {name: shape for name, shape in wanted.items() if not is_ignored(name)}
    assert len(ours) == len(lines) - 1  # criterion.empty_weight


def sentences(*golden: Golden) -> tuple[Tensor, Tensor]:
    """Token ids [E,L] and their padding."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(one["token_ids"]) for one in golden], True, PADDING_ID
    )
    return ids, ids == PADDING_ID


def recorded(network: OnlineRefer, *names: str) -> dict[str, object]:
    """Make these methods keep their last result in the dictionary that is returned."""
    results: dict[str, object] = {}
    for name in names:
        method = getattr(type(network), name)

        def call(*args: object, name: str = name, method: object = method) -> object:
            results[name] = method(network, *args)
            return results[name]

        setattr(network, name, call)
    return results


def answers(network: OnlineRefer, frames: Tensor, *golden: Golden) -> Iterator[dict[str, Tensor]]:
    """Every value of every frame, by the name in the files, for E sentences: [E,...]."""
    ids, padding = sentences(*golden)
    tokens = network.text_tokens(ids, padding)
    zero = torch.zeros(len(ids), network.config.dim, dtype=tokens.dtype)
    preference = torch.zeros(len(ids), network.config.num_queries)
    joined = torch.ones(len(ids), dtype=torch.bool)
    track = Track(zero, zero, zero[:, :4], joined, preference)
    parts = recorded(network, *RECORDED)
    for frame in frames:
        found = network.decode_frame(network.image_features(frame[None]), tokens, padding, track)
        pyramid, stride_4, decoded = (parts[name] for name in RECORDED)
        pairs = zip(decoded.outputs.unbind(1), decoded.boxes.unbind(1), strict=True)
        masks = torch.stack([network.masks(stride_4, *pair) for pair in pairs], 1)
        rows = torch.arange(len(ids))
        assert torch.equal(found.mask_logits, masks[rows, found.best])
        assert torch.equal(found.box, decoded.boxes[rows, found.best])
        yield {
            "text_tokens": tokens,
            "memory": pyramid.tokens,
            "mask_features": network.pixel_decoder.mask_features(stride_4),
            "logits": decoded.logits,
            "boxes": found.boxes,
            "masks": masks,
            "outputs": decoded.outputs,
            "track": found.content[:, None],
        }
        track = Track(found.content, found.position, found.box, ~joined, preference)


def check(network: OnlineRefer, *golden: Golden, frames: np.ndarray) -> None:
    dtype = network.query_embed.weight.dtype
    with torch.inference_mode():
        found = answers(network, torch.from_numpy(frames), *golden)
        for t, values in enumerate(found):
            for e, wanted in enumerate(golden):
                compared = 0
                for name, ours in values.items():
                    key = name if name == "text_tokens" else f"{name}_{t}"
                    if key not in wanted:
                        continue
                    theirs = torch.from_numpy(wanted[key]).to(dtype)
                    error = (ours[e, : len(theirs)] - theirs).abs().max() / theirs.abs().max()
                    assert error < TOLERANCES[dtype], (key, e, float(error))
                    compared += 1
                assert compared >= 5
    assert t == FRAMES - 1


def test_both_sentences_in_one_batch(network: OnlineRefer, golden: tuple[Golden, Golden]) -> None:
    """They have 7 and 11 tokens, so the first is padded."""
    check(network, *golden, frames=golden[0]["frames"])


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_one_sentence(network: OnlineRefer, golden: tuple[Golden, Golden], index: int) -> None:
    check(network, golden[index], frames=golden[0]["frames"])


@pytest.mark.slow
def test_float64(network: OnlineRefer, golden: tuple[Golden, Golden]) -> None:
    """Both in one batch, then each alone."""
    network.double()
    try:
        for some in (golden, golden[:1], golden[1:]):
            check(network, *some, frames=golden[0]["frames"])
    finally:
        network.float()
