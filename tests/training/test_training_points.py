"""Test points and targets: bilinear sampling, the choice of points, valid targets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rvos_deploy.errors import InputError
from rvos_deploy.training.points import (
    PointSampling,
    choose_points,
    draw_points,
    sample_points,
    sample_scene,
)
from rvos_deploy.training.targets import ClipTargets

# Sums of a few dozen float64 products: rounding is near 1e-15, and the grid is scaled twice.
EXACT = {"rtol": 1e-10, "atol": 1e-10}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def bilinear_by_hand(image: torch.Tensor, x: float, y: float) -> float:
    """Return the value of [H,W] at (x, y) in 0..1; border values extend outside."""
    height, width = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    left, top = math.floor(column), math.floor(row)
    value = 0.0
    for i, wy in ((top, 1 - (row - top)), (top + 1, row - top)):
        for j, wx in ((left, 1 - (column - left)), (left + 1, column - left)):
            pixel = image[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
            value += wy * wx * float(pixel)
    return value


def test_sampling_equals_four_corners_by_hand() -> None:
    image = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    points = torch.rand(2, 40, 2, dtype=torch.float64)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.999, 0.001]])
    sampled = sample_points(image, points)
    assert sampled.shape == (2, 3, 40)
    for b in range(2):
        for c in range(3):
            for p in range(40):
                expected = bilinear_by_hand(image[b, c], *points[b, p].tolist())
                assert float(sampled[b, c, p]) == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_sampling_at_finer_centres_equals_the_upsampling_of_inference() -> None:
    image = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    y, x = torch.meshgrid(
        (torch.arange(24, dtype=torch.float64) + 0.5) / 24,
        (torch.arange(32, dtype=torch.float64) + 0.5) / 32,
        indexing="ij",
    )
    sampled = sample_points(image, torch.stack((x, y), dim=-1).view(1, -1, 2))
    enlarged = F.interpolate(image, size=(24, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(sampled, enlarged.flatten(2), **EXACT)


def test_sampling_features_commutes_with_the_dot_product_and_its_bias() -> None:
    features = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    embeddings = torch.randn(1, 3, 4, dtype=torch.float64)
    points = torch.rand(1, 50, 2, dtype=torch.float64)
    masks = torch.einsum("bnc,bchw->bnhw", embeddings, features) + 7.0
    torch.testing.assert_close(
        sample_points(masks, points), embeddings @ sample_points(features, points) + 7.0, **EXACT
    )


def test_sampling_differentiates() -> None:
    image = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    points = torch.rand(1, 9, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sample_points(x, points), (image,))


def test_points_come_from_the_generator_alone() -> None:
    sampling = PointSampling(64)
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    draw_points(5, sampling, generator, CPU)
    state = generator.get_state()
    following = draw_points(5, sampling, generator, CPU)
    torch.manual_seed(1)
    generator.set_state(state)
    assert torch.equal(draw_points(5, sampling, generator, CPU), following)
    assert following.shape == (5, 64 * 3 + 16, 2)
    assert float(following.min()) >= 0
    assert float(following.max()) < 1
    # 1040 points: the mean of a uniform variable has a standard deviation of 0.009.
    assert following.flatten(0, 1).mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)


def test_the_papers_numbers_are_the_default() -> None:
    sampling = PointSampling()
    assert (sampling.num_points, sampling.candidates) == (12544, 37632)
    assert (sampling.uncertain, sampling.drawn) == (9408, 37632 + 3136)


@pytest.mark.parametrize("importance", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("num_points", [1, 7, 40])
def test_the_choice_is_the_candidates_nearest_to_zero_and_uniform_points(
    num_points: int, importance: float
) -> None:
    sampling = PointSampling(num_points, importance=importance)
    logits = torch.randn(6, sampling.drawn)
    # Points drawn for the uniform part must be taken as they come, however certain or not.
    logits[:, sampling.candidates :] *= 0.0 if importance else 1e6
    chosen = choose_points(logits, sampling)
    assert chosen.shape == (6, num_points)
    for row in range(6):
        candidates = logits[row, : sampling.candidates].abs()
        nearest = candidates.sort().indices[: sampling.uncertain].tolist()
        rest = list(range(sampling.candidates, sampling.drawn))
        assert sorted(chosen[row].tolist()) == sorted(nearest + rest)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_points": 0}, "num_points must be at least 1, found 0"),
        ({"oversample": 0.5}, "found 0.5 and 0.75"),
        ({"importance": 1.5}, "found 3.0 and 1.5"),
    ],
)
def test_impossible_numbers_of_points(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PointSampling(**values)  # type: ignore[arg-type]


def two_clips() -> ClipTargets:
    first = torch.rand(3, 2, 8, 12) > 0.5
    first[1, 1] = False
    second = torch.rand(1, 2, 8, 12) > 0.5
    return ClipTargets((first, second), (torch.tensor([True, False, True]), torch.tensor([True])))


def test_targets_are_padded_and_have_visibility() -> None:
    targets = two_clips()
    padded = targets.padded_masks()
    assert padded.shape == (2, 2, 3, 8, 12)
    assert padded.dtype == torch.float32
    for t in range(2):
        for k in range(3):
            assert torch.equal(padded[0, t, k].bool(), targets.masks[0][k, t])
    assert torch.equal(padded[1, :, 0].bool(), targets.masks[1][0])
    assert not padded[1, :, 1:].any()
    assert targets.visible().tolist() == [
        [[True, True, True], [True, False, True]],
        [[True, False, False], [True, False, False]],
    ]
    assert targets.padded_referred().tolist() == [[True, False, True], [True, False, False]]
    assert (targets.batch, targets.length) == (2, 2)


def test_targets_move_to_a_device() -> None:
    moved = two_clips().to("meta")
    assert moved.device.type == "meta"
    assert all(x.device.type == "meta" for x in (*moved.masks, *moved.referred))


def test_clips_without_objects_are_padded_to_an_absent_one() -> None:
    none = torch.zeros(0, 2, 8, 12, dtype=torch.bool)
    targets = ClipTargets((none,), (torch.zeros(0, dtype=torch.bool),))
    assert targets.padded_masks().shape == (1, 2, 1, 8, 12)
    assert not targets.visible().any()
    assert not targets.padded_referred().any()


def test_scene_holds_the_targets_at_its_points() -> None:
    targets, sampling = two_clips(), PointSampling(10)
    features = torch.randn(4, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    scene = sample_scene(features, targets, sampling, torch.Generator().manual_seed(0))
    assert scene.labels.shape == (2, 2, 3, sampling.drawn)
    assert not scene.point_features.requires_grad
    for b, t, k in ((0, 0, 1), (0, 1, 2), (1, 1, 0)):
        for p in (0, 11, sampling.drawn - 1):
            x, y = scene.points[b, t, p].tolist()
            expected = bilinear_by_hand(targets.masks[b][k, t].double(), x, y)
            assert float(scene.labels[b, t, k, p]) == pytest.approx(expected, abs=1e-10)
            if p < 10:
                feature = bilinear_by_hand(features[b * 2 + t, 3].detach(), x, y)
                assert float(scene.point_features[b, t, 3, p]) == pytest.approx(feature, abs=1e-10)


MASKS = torch.zeros(2, 3, 8, 12, dtype=torch.bool)
FLAGS = torch.zeros(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("masks", "referred", "message"),
    [
        ((), (), "at least one"),
        ((MASKS, MASKS), (FLAGS, FLAGS, FLAGS), "found 2 and 3"),
        ((MASKS.float(),), (FLAGS,), "clip 0: masks must be bool"),
        ((MASKS,), (FLAGS.long(),), "referred bool"),
        ((MASKS[0],), (FLAGS,), r"found torch.bool \[3, 8, 12\]"),
        ((MASKS, MASKS[:, :2]), (FLAGS, FLAGS), r"clip 1: masks of T,H,W \[2, 8, 12\]"),
        ((MASKS[:, :0],), (FLAGS,), "none of it 0"),
        ((MASKS,), (FLAGS[:1],), r"clip 0: 2 objects, but referred has shape \[1\]"),
    ],
)
def test_targets_that_do_not_fit(
    masks: tuple[torch.Tensor, ...], referred: tuple[torch.Tensor, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ClipTargets(masks, referred)
