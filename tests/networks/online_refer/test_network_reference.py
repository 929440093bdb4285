"""The network, which batches expressions and pads texts and queries, gives the plain reference.

Both read the same random weights. Three expressions of different lengths join at different frames,
so a batch holds padded texts, and five queries of one expression beside one of another.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rvos_deploy.networks.online_refer.config import OnlineReferConfig, preset
from rvos_deploy.networks.online_refer.modules.network import OnlineRefer

sys.path.insert(0, str(Path(__file__).parent))
from batched import frame_outputs
from reference import Answer, Constants, Reference

FRAMES = 5
JOINS = (0, 1, 3)
LENGTHS = (4, 17, 9)
GAP = 1e-3
"""By so much the best query leads at least, so that rounding cannot choose another."""


@dataclass(frozen=True)
class Case:
    """A clip uint8 [T,H,W,3], token ids of every expression, and the reference's answers."""

    network: OnlineRefer
    frames: NDArray[np.uint8]
    sentences: list[NDArray[np.int64]]
    answers: list[dict[int, Answer]]


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> NDArray:
    """Numbers that keep magnitudes: every layer matters, and no mask is empty or full.

    They do not depend on the order of the names.
    """
    x = np.random.RandomState([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    kind = name.rsplit(".", 1)[-1]
    if kind == "running_var":
        return 1 + 0.1 * np.abs(x)
    if kind in ("bias", "running_mean", "in_proj_bias"):
        return 0.1 * x
    if len(shape) == 1:
        return 1 + 0.1 * x
    if name == "query_embed.weight":
        return x
    if name.startswith("text_encoder.embeddings"):
        return 0.5 * x
    if "bbox_embed" in name and ".layers.2." in name:
        return 0.3 * x / np.sqrt(shape[1])
    return x / np.sqrt(np.prod(shape[1:]))


def make_case(config: OnlineReferConfig, size: tuple[int, int], seed: int) -> Case:
    random = np.random.RandomState(seed)
    network = OnlineRefer(config).eval()
    weights = {
        name: random_weight(name, tuple(value.shape), seed).astype(np.float32)
        for name, value in network.state_dict().items()
    }
    for name in weights:
        if name.startswith("transformer.decoder.bbox_embed"):
            weights[name] = weights[name.removeprefix("transformer.decoder.")]
    scale_mask_parameters(weights["controller.layers.2.weight"], config)
    scale_mask_parameters(weights["controller.layers.2.bias"], config)
    # Blobs rather than noise, or all pixels would look alike to the coarse levels.
    coarse = random.randint(0, 256, (FRAMES, size[0] // 16, size[1] // 16, 3))
    frames = coarse.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)
    sentences = [random.randint(4, config.text_vocabulary, length) for length in LENGTHS]
    for ids in sentences:
        ids[0], ids[-1] = 0, 2
    constants = Constants(
        config.num_heads,
        config.text_heads,
        config.norm_groups,
        config.pixel_norm_groups,
        config.mask_channels,
    )
    reference = Reference(weights, constants)
    answers = reference.run(frames, sentences, JOINS)
    # The last bias moves all of a mask's logits.
    weights["controller.layers.2.bias"][-1] -= np.median(
        np.concatenate([x.masks[x.best].ravel() for rows in answers for x in rows.values()])
    )
    answers = Reference(weights, constants).run(frames, sentences, JOINS)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return Case(network, frames, sentences, answers)


def scale_mask_parameters(rows: NDArray, config: OnlineReferConfig) -> None:
    """Make the dynamic convolutions keep magnitudes, too; rows of the controller's last layer.

    Coordinates reach hundreds of pixels, and biases differ by query: they would decide the masks.
    """
    dim, inner = config.dim, config.mask_channels
    ends = np.cumsum([inner * (dim + 2), inner * (inner + 1)])
    first, second, biases = np.split(rows, ends)
    columns = first.reshape(inner, dim + 2, -1)
    columns[:, :dim] *= 4 / np.sqrt(dim)
    columns[:, dim:] *= 0.02
    second *= 4 / np.sqrt(inner)
    biases *= 0.1


def check(case: Case, tolerance: float) -> None:
    outputs = frame_outputs(case.network, case.frames, case.sentences, JOINS)
    for t, present, output in outputs:
        for row, e in enumerate(present):
            answer, first = case.answers[e][t], JOINS[e] == t
            queries = len(answer.logits)
            assert queries == (case.network.config.num_queries if first else 1)
            what = f"expression {e}, frame {t}"
            near(output.scores[row, :queries], sigmoid(answer.logits), tolerance, what)
            assert (output.scores[row, queries:] == 0).all()
            assert output.best[row] == answer.best, what
            near(output.boxes[row, :queries], answer.boxes, tolerance, what)
            near(output.box[row], answer.boxes[answer.best], tolerance, what)
            near(output.content[row], answer.track[0], tolerance, what)
            near(output.mask_logits[row], answer.masks[answer.best], tolerance, what)


def near(found: torch.Tensor, expected: NDArray, tolerance: float, what: str) -> None:
    error = np.abs(found.double().numpy() - expected).max()
    assert error < tolerance, (
        f"{what}: {error:.2g} at magnitudes up to {np.abs(expected).max():.3g}"
    )


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def check_that_it_means_something(case: Case) -> None:
    """Masks are neither empty nor full, choices are clear and differ, frames and boxes differ."""
    inside = [
        (answer.masks[answer.best] > 0).mean() for rows in case.answers for answer in rows.values()
    ]
    assert min(inside) > 0.02
    assert max(inside) < 0.98
    starts = [rows[join] for rows, join in zip(case.answers, JOINS, strict=True)]
    for start in starts:
        first, second = np.sort(start.logits)[::-1][:2]
        assert first - second > GAP
    assert any(start.best != 0 for start in starts)
    for rows in case.answers:
        boxes = np.stack([answer.boxes[answer.best] for answer in rows.values()])
        assert (np.ptp(boxes, axis=0) > 1e-3).any()


TINY = preset("onlinerefer-tiny")
ODD = replace(
    TINY,
    name="odd",
    resnet_blocks=(1, 2, 1, 1),
    resnet_width=8,
    text_layers=1,
    text_width=36,
    text_heads=3,
    text_ffn=50,
    text_vocabulary=300,
    max_tokens=20,
    dim=48,
    num_heads=4,
    num_queries=3,
    encoder_layers=1,
    decoder_layers=3,
    ffn=40,
    num_points=2,
    norm_groups=16,
    pixel_norm_groups=6,
    mask_channels=5,
)
"""No number is the published one, so that none can be written into the network."""
SMALL = (
    (TINY, (96, 160), 11),
    (TINY, (160, 96), 11),
    (TINY, (32, 32), 1),
    (TINY, (64, 224), 17),
    (ODD, (96, 160), 13),
)
"""Configuration, (height, width), and the seed of the weights."""


@pytest.fixture(
    scope="module", params=SMALL, ids=lambda case: "{}-{}x{}".format(case[0].name, *case[1])
)
def small_case(request: pytest.FixtureRequest) -> Case:
    return make_case(*request.param)


def test_small_networks(small_case: Case) -> None:
    check_that_it_means_something(small_case)
    small_case.network.float()
    check(small_case, 1e-4)


def test_small_networks_in_float64(small_case: Case) -> None:
    """Sine positions stay float32, so no more than its precision is to be expected."""
    small_case.network.double()
    check(small_case, 1e-5)


@pytest.mark.slow
def test_the_published_layout() -> None:
    case = make_case(preset("onlinerefer-r50"), (96, 160), 2)
    check_that_it_means_something(case)
    check(case, 1e-4)
