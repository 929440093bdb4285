"""Expressions are independent of each other; half precision keeps places and scores."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.graph_io.probe import probe_clip
from rvos_deploy.networks.modules.precision import DTYPES
from rvos_deploy.networks.online_refer.config import PADDING_ID, preset
from rvos_deploy.networks.online_refer.modules.checkpoint import random_network
from rvos_deploy.networks.online_refer.modules.network import FrameOutput, OnlineRefer, Track
from rvos_deploy.networks.online_refer.modules.precision import set_precision

SENTENCES = ([0, 5, 9, 30, 2], [0, 77, 200, 8, 14, 99, 2], [0, 300, 2])
WIDE = ("scores", "boxes", "box", "mask_logits")


def frames(count: int, height: int, width: int) -> list[Tensor]:
    """Frames uint8 [1,H,W,3] of the probe clip."""
    clip = torch.from_numpy(np.asarray(probe_clip(count))).permute(0, 3, 1, 2).float()
    sized = F.interpolate(clip, (height, width), mode="bilinear").round().to(torch.uint8)
    return list(sized.permute(0, 2, 3, 1)[:, None])


def first_track(network: OnlineRefer, count: int) -> Track:
    """What ``count`` expressions have before their first frame; its numbers are not read."""
    dtype = network.track_embed.norm.weight.dtype
    unused = torch.full((count, network.config.dim), 3.0, dtype=dtype)
    box = torch.full((count, 4), 0.7)
    joined = torch.ones(count, dtype=torch.bool)
    return Track(unused, unused, box, joined, torch.zeros(count, network.config.num_queries))


def next_track(found: FrameOutput) -> Track:
    preference = torch.zeros_like(found.scores)
    tracked = torch.zeros(len(found.best), dtype=torch.bool)
    return Track(found.content, found.position, found.box, tracked, preference)


@torch.inference_mode()
def run(network: OnlineRefer, clip: list[Tensor], starts: dict[int, int]) -> list[FrameOutput]:
    """Run sentences, each from its frame on (``starts``: sentence to frame), all in one batch."""
    found: list[FrameOutput] = []
    track: Track | None = None
    for t, frame in enumerate(clip):
        here = [sentence for sentence, start in starts.items() if start <= t]
        joining = sum(start == t for start in starts.values())
        new = first_track(network, joining)
        if track is not None:
            new = Track(*(torch.cat(pair) for pair in zip(track, new, strict=True)))
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(SENTENCES[sentence]) for sentence in here], True, PADDING_ID
        )
        tokens = network.text_tokens(ids, ids == PADDING_ID)
        features = network.image_features(frame)
        found.append(network.decode_frame(features, tokens, ids == PADDING_ID, new))
        track = next_track(found[-1])
    return found


def test_expressions_that_join_later_are_as_alone(tiny_online_refer: OnlineRefer) -> None:
    """Sizes whose maps are odd: 3 x 5 pixels at stride 32."""
    network = copy.deepcopy(tiny_online_refer).double()
    clip = frames(4, 96, 160)
    starts = {0: 0, 1: 2, 2: 3}
    together = run(network, clip, starts)
    for row, (sentence, start) in enumerate(starts.items()):
        alone = run(network, clip[start:], {sentence: 0})
        for t, wanted in enumerate(alone):
            found = together[start + t]
            for name, value in wanted._asdict().items():
                ours = getattr(found, name)[row]
                torch.testing.assert_close(ours, value[0], rtol=0, atol=1e-9, msg=f"{name} {t}")


def test_a_tracked_expression_has_one_query(tiny_online_refer: OnlineRefer) -> None:
    first, second = run(tiny_online_refer, frames(2, 64, 96), {0: 0, 1: 1})
    assert (first.scores > 0).all()
    assert (second.scores[0, 1:] == 0).all()
    assert second.scores[0, 0] > 0
    assert (second.scores[1] > 0).all()
    assert second.best[0] == 0


@torch.inference_mode()
def test_the_preference_decides_among_real_queries(tiny_online_refer: OnlineRefer) -> None:
    network, (frame,) = tiny_online_refer, frames(1, 64, 96)
    ids = torch.tensor([SENTENCES[0]] * 2)
    padding = torch.zeros_like(ids, dtype=torch.bool)
    tokens, features = network.text_tokens(ids, padding), network.image_features(frame)
    plain = first_track(network, 2)._replace(joined=torch.tensor([True, False]))
    free = network.decode_frame(features, tokens, padding, plain)
    assert free.best[0] == free.scores[0].argmax()
    wish = (int(free.best[0]) + 2) % 5
    preference = F.one_hot(torch.tensor([wish, 3]), 5) * 100.0
    found = network.decode_frame(features, tokens, padding, plain._replace(preference=preference))
    assert found.best.tolist() == [wish, 0]
    assert torch.equal(found.scores, free.scores)
    assert torch.equal(found.box[0], free.boxes[0, wish])
    assert not torch.equal(found.mask_logits[0], free.mask_logits[0])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 160), (96, 64), (160, 224)])
def test_masks_have_stride_4_at_every_multiple_of_32(
    tiny_online_refer: OnlineRefer, height: int, width: int
) -> None:
    for found in run(tiny_online_refer, frames(2, height, width), {0: 0}):
        assert found.mask_logits.shape == (1, height // 4, width // 4)
        assert bool(torch.isfinite(found.mask_logits).all())


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_give_masks_with_edges(seed: int) -> None:
    network = random_network(preset("onlinerefer-tiny"), seed)
    for found in run(network, frames(4, 96, 160), {0: 0, 1: 0, 2: 0}):
        share = (found.mask_logits > 0).float().mean((1, 2))
        assert bool(((share > 0.03) & (share < 0.8)).all()), share
        assert float(found.mask_logits.abs().max()) < 20
        assert bool(((found.scores[:, 0] > 0.02) & (found.scores[:, 0] < 0.98)).all())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("bf16", 0.15)])
def test_half_precision_is_near(
    tiny_online_refer: OnlineRefer, precision: Precision, tolerance: float
) -> None:
    """Of the largest magnitude; one frame, because the best of nearly equal queries may differ."""
    half = set_precision(copy.deepcopy(tiny_online_refer), precision)
    clip = frames(1, 96, 160)
    (wide,), (narrow,) = (run(network, clip, {0: 0, 1: 0}) for network in (tiny_online_refer, half))
    assert narrow.content.dtype == narrow.position.dtype == DTYPES[precision]
    for name in ("scores", "boxes"):
        ours, theirs = getattr(narrow, name), getattr(wide, name)
        assert (ours - theirs).abs().max() < tolerance * theirs.abs().max(), name
    for name in WIDE:
        assert getattr(narrow, name).dtype == torch.float32, name


def test_places_and_heads_stay_in_float32(tiny_online_refer: OnlineRefer) -> None:
    half = set_precision(copy.deepcopy(tiny_online_refer), "bf16")
    wide = {name for name, x in half.state_dict().items() if x.dtype == torch.float32}
    parts = {name.split(".")[0] for name in wide if not name.startswith("backbone")}
    assert parts == {"bbox_embed", "class_embed", "controller", "query_embed", "transformer"}
    assert {name for name in wide if name.startswith("transformer") and "bbox" not in name} == {
        "transformer.reference_points.weight",
        "transformer.reference_points.bias",
    }
    trunk = {name.rsplit(".", 1)[0].rsplit(".", 1)[1] for name in wide if "backbone" in name}
    assert trunk == {"bn1", "bn2", "bn3", "1"}
    assert half.backbone[0].mean.dtype == torch.float32
    assert half.transformer.level_embed.dtype == torch.bfloat16


def test_a_weight_beyond_the_range_is_refused(tiny_online_refer: OnlineRefer) -> None:
    network = copy.deepcopy(tiny_online_refer)
    with torch.no_grad():
        network.resizer.fc.weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"resizer.fc.weight holds 1e\+05, which float16 cannot"):
        set_precision(network, "fp16")
    assert network.resizer.fc.weight.dtype == torch.float32
