"""Test the whole network: shapes and sizes of all presets, trained parameters, switches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from rvos_deploy.networks.pan2024.config import ModelConfig, preset
from rvos_deploy.networks.pan2024.modules.clip import FrozenClip, ImageFeatures, TextFeatures
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import QueryDescriptors
from rvos_deploy.networks.pan2024.modules.mask_head import unite_masks
from rvos_deploy.networks.pan2024.modules.network import (
    NetworkOutput,
    RvosNetwork,
    build_network,
    referred_scores,
)

MakeNetwork = Callable[..., RvosNetwork]
TokenIds = Callable[[Sequence[int], int], Tensor]

# Float32 rounding through the whole network at random weights. The masked attention multiplies
# differences of logits by up to 50 a layer, where they lie near the threshold.
ROUNDING = {"rtol": 0, "atol": 5e-4}
# Presets: (trained, frozen) in millions of parameters; for the paper's scale model.md estimates
# about 44 and 350.
MILLIONS = {"large": (43.2, 351.8), "base": (42.7, 179.4), "tiny": (4.0, 11.0)}


def count(network: RvosNetwork, trained: bool) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad == trained)


@pytest.mark.parametrize("name", ["large", "base", "tiny"])
def test_shapes_and_sizes_of_all_presets(
    name: str, meta_clip: Callable[[ModelConfig], FrozenClip]
) -> None:
    """CLIP has shapes only (test_model_clip runs it); everything after CLIP runs."""
    config = preset(name)
    network = RvosNetwork(config, meta_clip(config)).eval()
    trained, frozen = MILLIONS[name]
    assert count(network, trained=True) / 1e6 == pytest.approx(trained, abs=0.1)
    assert count(network, trained=False) / 1e6 == pytest.approx(frozen, abs=0.1)
    layers = (
        len(network.encoder.layers),
        len(network.frame_decoder.layers),
        len(network.video_decoder.layers),
    )
    assert layers == ((3, 3, 2) if name == "tiny" else (6, 9, 6))
    dim, slots = config.dim, 20
    assert dim == (128 if name == "tiny" else 256)

    clip = network.clip
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    with torch.no_grad():
        features = ImageFeatures(
            *(torch.randn(4, c, *s) for c, s in zip(clip.image_channels, sizes, strict=True))
        )
        tokens, sentence = torch.randn(2, 77, clip.text_width), torch.randn(2, clip.embed_dim)
        padding = (torch.arange(77) > 9).expand(2, -1)
        words = torch.randn(2, 77, clip.text_width) if name == "tiny" else None
        text = network.text_resizer(TextFeatures(tokens, sentence, padding), words)
        assert text.tokens.shape == (2, 77, dim)
        assert text.sentence.shape == (2, dim)
        per_frame = TextFeatures(*(x.repeat_interleave(2, dim=0) for x in text))
        frames = network.decode_frames(features, per_frame)
        descriptors = QueryDescriptors(*(x.unflatten(0, (2, 2)) for x in frames.descriptors))
        order = network.slot_order(descriptors)
        video = network.decode_video(frames.queries.unflatten(0, (2, 2)), order, text)
        masks = network.mask_head(
            video.predictions[-1].mask_embeddings, frames.mask_features.unflatten(0, (2, 2))[:, 0]
        )
    assert frames.mask_features.shape == (4, dim, 16, 24)
    assert frames.queries.shape == (4, slots, dim)
    assert frames.descriptors.queries.shape == (4, slots, dim)
    assert frames.descriptors.position.shape == (4, slots, 5)
    assert frames.descriptors.content.shape == (4, slots, sum(clip.image_channels[1:]))
    assert frames.descriptors.score.shape == (4, slots)
    assert len(frames.predictions) == layers[1] + 1
    for prediction in frames.predictions:
        assert prediction.logits.shape == (4, slots, 2)
        assert prediction.mask_embeddings.shape == (4, slots, dim)
    assert video.aligned_queries.shape == (2, 2, slots, dim)
    assert video.order.shape == (2, 2, slots)
    assert len(video.predictions) == layers[2]
    for last in video.predictions:
        assert last.queries.shape == (2, slots, dim)
        assert last.logits.shape == (2, slots, 2)
        assert last.mask_embeddings.shape == (2, slots, dim)
    assert masks.shape == (2, slots, 16, 24)
    assert masks.isfinite().all()


def test_tiny_has_few_parameters() -> None:
    network = build_network(preset("tiny"))
    assert count(network, trained=True) + count(network, trained=False) < 16e6


@torch.no_grad()
def run(network: RvosNetwork, frames: Tensor, ids: Tensor) -> NetworkOutput:
    output: NetworkOutput = network(frames, ids)
    return output


def assert_same(a: NetworkOutput, b: NetworkOutput) -> None:
    torch.testing.assert_close(a.frames.mask_features, b.frames.mask_features, **ROUNDING)
    torch.testing.assert_close(a.frames.queries, b.frames.queries, **ROUNDING)
    for ours, theirs in zip(a.frames.descriptors, b.frames.descriptors, strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)
    assert torch.equal(a.video.order, b.video.order)
    for ours, theirs in (
        *zip(a.frames.predictions, b.frames.predictions, strict=True),
        *zip(a.video.predictions, b.video.predictions, strict=True),
    ):
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x, y, **ROUNDING)


def test_shapes_from_pixels_to_masks(
    tiny_network: RvosNetwork, frames: Tensor, token_ids: TokenIds
) -> None:
    output = run(tiny_network, frames, token_ids([7, 2], 12))
    assert output.frames.mask_features.shape == (6, 128, 16, 24)
    assert output.frames.queries.shape == (6, 20, 128)
    assert len(output.frames.predictions) == 4
    assert output.video.aligned_queries.shape == (2, 3, 20, 128)
    assert len(output.video.predictions) == 2
    last = output.video.predictions[-1]
    scores = referred_scores(last.logits)
    assert scores.shape == (2, 20)
    logits = tiny_network.mask_head(
        last.mask_embeddings[:, None], output.frames.mask_features.unflatten(0, (2, 3))
    )
    assert logits.shape == (2, 3, 20, 16, 24)
    united = unite_masks(logits[:, 0], scores, torch.full((2,), 0.5))
    assert united.shape == (2, 16, 24)


@pytest.mark.parametrize("length", [30, 77])
def test_text_padding_does_not_change_the_result(
    tiny_network: RvosNetwork, frames: Tensor, token_ids: TokenIds, length: int
) -> None:
    words = [7, 2]
    shortest = run(tiny_network, frames, token_ids(words, 9))
    assert_same(run(tiny_network, frames, token_ids(words, length)), shortest)


def test_a_batch_of_clips_is_each_clip_alone(
    tiny_network: RvosNetwork, frames: Tensor, token_ids: TokenIds
) -> None:
    ids = token_ids([7, 2], 12)
    together = run(tiny_network, frames, ids)
    for clip in range(2):
        alone = run(tiny_network, frames[clip : clip + 1], ids[clip : clip + 1])
        part = NetworkOutput(
            type(together.frames)(
                together.frames.mask_features.unflatten(0, (2, 3))[clip],
                together.frames.queries.unflatten(0, (2, 3))[clip],
                [
                    type(p)(*(x.unflatten(0, (2, 3))[clip] for x in p))
                    for p in together.frames.predictions
                ],
                together.frames.mask_embeddings.unflatten(0, (2, 3))[clip],
                type(together.frames.descriptors)(
                    *(x.unflatten(0, (2, 3))[clip] for x in together.frames.descriptors)
                ),
            ),
            type(together.video)(
                together.video.aligned_queries[clip : clip + 1],
                together.video.order[clip : clip + 1],
                [type(p)(*(x[clip : clip + 1] for x in p)) for p in together.video.predictions],
            ),
        )
        assert_same(alone, part)


def test_sentences_and_frames_change_the_result(
    tiny_network: RvosNetwork, frames: Tensor, token_ids: TokenIds
) -> None:
    ids = token_ids([7, 2], 12)
    base = run(tiny_network, frames, ids).video.predictions[-1]
    for other in (
        run(tiny_network, frames, ids.flip(0)),
        run(tiny_network, frames.flip(1), ids),
        run(tiny_network, 255 - frames, ids),
    ):
        assert (other.video.predictions[-1].queries - base.queries).abs().max() > 1e-2


def loss_of_everything(network: RvosNetwork, output: NetworkOutput) -> Tensor:
    """Return a loss with a term for each tensor that the training losses read.

    The terms cover scores, masks and similarity of every prediction of frames and video. Their
    weights are random, because norms make plain sums constant.
    """

    def term(x: Tensor) -> Tensor:
        return (x.float() * torch.randn_like(x)).mean()

    total = torch.zeros(())
    features = output.frames.mask_features
    for prediction in output.frames.predictions:
        masks = torch.einsum("bnc,bchw->bnhw", prediction.mask_embeddings, features)
        total = total + term(prediction.logits) + term(masks)
    batch = output.video.order.shape[0]
    for prediction in output.video.predictions:
        masks = network.mask_head(
            prediction.mask_embeddings[:, None],
            features.unflatten(0, (batch, -1)),
            output.video.frame_mask_embeddings,
        )
        total = total + term(prediction.logits) + term(masks)
    similarity = output.video.aligned_queries @ output.video.predictions[-1].queries[
        :, None
    ].transpose(-2, -1)
    return total + term(similarity)


SHIFTS = (".key.bias", "initializer.weight.bias")
"""They add the same to all logits of a softmax, whose gradient is therefore 0 but for rounding."""


def without_gradient(network: RvosNetwork) -> set[str]:
    """Return the names of trained parameters whose gradient is missing or zero."""
    return {
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not (parameter.grad.any() or name.endswith(SHIFTS)))
    }


def backward(network: RvosNetwork, frames: Tensor, ids: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    loss_of_everything(network, network(frames, ids)).backward()


def move_off_initial_values(network: RvosNetwork) -> None:
    """Change all parameters, as training does, so that none stays zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))


def test_gradients_reach_every_trained_parameter(
    make_network: MakeNetwork, frames: Tensor, token_ids: TokenIds
) -> None:
    network = make_network().train()
    assert network.config.text_fusion
    assert network.config.mask_position
    backward(network, frames, token_ids([7, 2], 12))
    # Deformable attention starts with offsets and weights that no token changes (Deformable DETR),
    # and positions act through these alone: the level embedding has to wait for the second step.
    assert without_gradient(network) == {"encoder.level_embedding"}
    move_off_initial_values(network)
    backward(network, frames, token_ids([7, 2], 12))
    assert without_gradient(network) == set()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({"mask_position": False}, ()),
        ({"mask_content": False}, ()),
        ({"initializer": "weighted"}, ()),
        # What the ablated network does not use; the fields stay, so that checkpoints fit.
        ({"initializer": "sentence"}, ("initializer.",)),
        # Without fusion the score still reads the words, so that nothing is left unused.
        ({"text_fusion": False}, ()),
        ({"text_words": False}, ()),
    ],
)
def test_ablations_build_run_and_train(
    make_network: MakeNetwork,
    frames: Tensor,
    token_ids: TokenIds,
    changes: dict[str, object],
    unused: tuple[str, ...],
) -> None:
    network = make_network(**changes).train()
    ids = token_ids([7, 2], 12)
    move_off_initial_values(network)
    backward(network, frames, ids)
    expected = {n for n, _ in network.named_parameters() if unused and n.startswith(unused)}
    assert without_gradient(network) == expected
    assert bool(expected) == bool(unused)
    whole = make_network()
    missing = set(dict(whole.named_parameters())) - set(dict(network.named_parameters()))
    (switch,) = changes
    if str(switch).startswith("mask_"):
        assert missing
        assert all(name.startswith(f"frame_decoder.{switch}.") for name in missing)
    elif "text_fusion" in changes:
        assert missing
        assert all(".fusion." in n or ".text_" in n for n in missing)
    elif "text_words" in changes:
        assert missing == {f"text_resizer.words.{n}" for n in ("0.weight", "1.weight", "1.bias")}
    else:
        assert not missing
    output = run(network.eval(), frames, ids)
    assert output.video.predictions[-1].queries.isfinite().all()


def test_ablations_keep_the_sentence(
    make_network: MakeNetwork, frames: Tensor, token_ids: TokenIds
) -> None:
    """Without fusion the sentence still initialises queries and affects scores (LMPM)."""
    network = make_network(text_fusion=False).eval()
    ids = token_ids([7, 2], 12)
    base = run(network, frames, ids)
    other = run(network, frames, ids.flip(0))
    assert torch.equal(base.frames.mask_features, other.frames.mask_features)
    difference = base.video.predictions[-1].logits - other.video.predictions[-1].logits
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("switch", ["mask_position", "mask_content"])
def test_tokens_encode_position_and_content_of_masks(
    make_network: MakeNetwork, frames: Tensor, token_ids: TokenIds, switch: str
) -> None:
    with_it, without = make_network().eval(), make_network(**{switch: False}).eval()
    without.load_state_dict(with_it.state_dict(), strict=False)
    ids = token_ids([7, 2], 12)
    a, b = run(with_it, frames, ids), run(without, frames, ids)
    assert (a.frames.queries - b.frames.queries).abs().max() > 1e-2
    # Slots are aligned by them all the same.
    for ours, theirs in zip(a.frames.descriptors, b.frames.descriptors, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(a.video.order, b.video.order)
    for ours, theirs in zip(a.frames.predictions, b.frames.predictions, strict=True):
        assert torch.equal(ours.logits, theirs.logits)


def test_a_training_step_does_not_change_frozen_parameters(
    make_network: MakeNetwork, frames: Tensor, token_ids: TokenIds
) -> None:
    network = make_network().train()
    assert not any(part.training for part in network.clip.modules())
    assert all(part.training for name, part in network.named_modules() if "clip" not in name)
    frozen = {n: v.clone() for n, v in network.clip.state_dict().items()}
    trained = [p for p in network.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    backward(network, frames, token_ids([7, 2], 12))
    optimizer.step()
    assert all(p.grad is None for p in network.clip.parameters())
    for name, value in network.clip.state_dict().items():
        assert torch.equal(value, frozen[name]), name
    assert all(not torch.equal(p, b) for p, b in zip(trained, before, strict=True))
    names = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert names == {n for n, _ in network.named_parameters() if n.startswith("clip.")}


def test_training_and_evaluation_compute_the_same(
    make_network: MakeNetwork, frames: Tensor, token_ids: TokenIds
) -> None:
    """Dropout is 0, and the trunk's drop path stays off."""
    network = make_network()
    ids = token_ids([7, 2], 12)
    a, b = run(network.train(), frames, ids), run(network.eval(), frames, ids)
    assert torch.equal(a.video.predictions[-1].logits, b.video.predictions[-1].logits)
    assert torch.equal(a.frames.mask_features, b.frames.mask_features)


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (96, 64)])
def test_any_size_in_multiples_of_32(
    tiny_network: RvosNetwork, token_ids: TokenIds, size: tuple[int, int]
) -> None:
    """The sizes include a coarsest map of one pixel, and clips of one frame."""
    frames = torch.randint(0, 256, (1, 1, *size, 3), dtype=torch.uint8)
    output = run(tiny_network, frames, token_ids([4], 6))
    assert output.frames.mask_features.shape == (1, 128, size[0] // 4, size[1] // 4)
    assert output.video.predictions[-1].logits.isfinite().all()


def test_further_sentences_affect_only_the_video_part(
    tiny_network: RvosNetwork, token_ids: TokenIds
) -> None:
    frames = torch.randint(0, 256, (2, 3, 64, 96, 3), dtype=torch.uint8)
    ids, ages = token_ids([5, 8, 4, 6], 10), torch.tensor([[7, 3, 0], [5, 4, 0]])
    with torch.inference_mode():
        both = tiny_network(frames, ids, ages)
        own = tiny_network(frames, ids[::2], ages)
        queries, order = own.frames.queries.unflatten(0, (2, 3)), own.video.order
        text = tiny_network.encode_text(ids[1::2])
        others = tiny_network.decode_video(queries, order, text, ages)
    torch.testing.assert_close(both.frames.queries, own.frames.queries, **ROUNDING)
    for rows, alone in ((slice(0, None, 2), own.video), (slice(1, None, 2), others)):
        torch.testing.assert_close(
            both.video.predictions[-1].logits[rows], alone.predictions[-1].logits, **ROUNDING
        )
