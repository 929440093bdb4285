"""J and F against the official DAVIS numbers, worked cases, and a plain implementation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.metrics import contour_accuracy, frame_scores, region_similarity

Mask = NDArray[np.bool_]
DAVIS = Path(__file__).resolve().parents[3] / "shared" / "davis"


def empty(height: int = 48, width: int = 90) -> Mask:
    return np.zeros((height, width), bool)


def rectangle(top: int, left: int, bottom: int, right: int, *, size: tuple[int, int]) -> Mask:
    mask = empty(*size)
    mask[top:bottom, left:right] = True
    return mask


# The plain, slow approach: a boundary map by the rules of the DAVIS code, a dilation with the disk.


def plain_boundary(mask: Mask) -> Mask:
    """The rules of the DAVIS code, one by one: inside, last row, last column; never the corner."""
    marks = np.zeros_like(mask)
    here, right, below = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1]
    marks[:-1, :-1] = (here != right) | (here != below) | (here != mask[1:, 1:])
    marks[-1, :-1] = mask[-1, :-1] != mask[-1, 1:]
    marks[:-1, -1] = mask[:-1, -1] != mask[1:, -1]
    return marks


def plain_f(prediction: Mask, truth: Mask, radius: int) -> float:
    span = np.arange(-radius, radius + 1)
    disk = span[:, None] ** 2 + span[None, :] ** 2 <= radius * radius
    ours, theirs = plain_boundary(prediction), plain_boundary(truth)
    n_ours, n_theirs = int(ours.sum()), int(theirs.sum())
    if n_ours == 0 or n_theirs == 0:
        return float(n_ours == n_theirs)
    precision = int((ours & ndimage.binary_dilation(theirs, disk)).sum()) / n_ours
    recall = int((theirs & ndimage.binary_dilation(ours, disk)).sum()) / n_theirs
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain_j(prediction: Mask, truth: Mask) -> float:
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else 1.0


def blobs(rng: np.random.Generator, height: int, width: int) -> tuple[Mask, Mask]:
    """Two masks that overlap in part, from smooth noise; sometimes empty, full or speckled."""
    smooth = rng.choice([0.4, 2.0, 5.0])
    first, second = (
        ndimage.gaussian_filter(rng.normal(size=(height, width)), smooth) for _ in range(2)
    )
    level = rng.normal() * first.std()
    return first > level, first + rng.uniform(0, 1) * second > level


@pytest.mark.skipif(not DAVIS.is_dir(), reason="../shared/davis is absent")
@pytest.mark.parametrize("sequence", ["libby", "bmx-trees"])
def test_every_official_davis_value(sequence: str) -> None:
    official = json.loads((DAVIS / "osvos_official_scores.json").read_text())[sequence]

    def read(folder: str) -> NDArray[np.uint8]:
        paths = sorted((DAVIS / folder / sequence).glob("*.png"))
        return np.stack([np.asarray(Image.open(path)).astype(np.uint8) for path in paths[1:-1]])

    scores = frame_scores(read("osvos"), read("Annotations"))
    assert len(scores.j) == len(official["J"])
    np.testing.assert_allclose(scores.j, official["J"], rtol=0, atol=0.0005 + 1e-9)
    np.testing.assert_allclose(scores.f, official["F"], rtol=0, atol=0.0005 + 1e-9)


# Widths around 64 exercise the words' edges, thin sizes the rows and columns that are missing.
@pytest.mark.parametrize("width", [1, 2, 7, 63, 64, 65, 129])
@pytest.mark.parametrize("height", [1, 2, 31])
def test_equals_the_plain_approach_exactly(height: int, width: int) -> None:
    rng = np.random.default_rng([height, width])
    for _ in range(6):
        prediction, truth = blobs(rng, height, width)
        assert region_similarity(prediction, truth) == plain_j(prediction, truth)
        for bound in (0.008, 0.05, 0, 1, 2, 5, 13):
            diagonal = float(np.linalg.norm(truth.shape))
            radius = bound if isinstance(bound, int) else int(np.ceil(bound * diagonal))
            expected = plain_f(prediction, truth, radius)
            assert contour_accuracy(prediction, truth, bound=bound) == expected


def f_by_distances(prediction: Mask, truth: Mask, radius: int) -> float:
    """F from every distance between boundary pixels: for the disks too large to dilate with."""
    ours, theirs = np.argwhere(plain_boundary(prediction)), np.argwhere(plain_boundary(truth))
    near = ((ours[:, None] - theirs[None, :]) ** 2).sum(axis=2) <= radius * radius
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


@pytest.mark.parametrize("radius", [8, 30, 63, 64, 65, 100, 1000])
def test_large_disks_match_by_distance(radius: int) -> None:
    rng = np.random.default_rng(radius)
    size = (30, 210)
    for _ in range(10):
        # Few pixels far apart, so that whether one is reached depends on the disk's outline.
        prediction, truth = empty(*size), empty(*size)
        prediction[tuple(rng.integers(0, size, (4, 2)).T)] = True
        truth[tuple(rng.integers(0, size, (4, 2)).T)] = True
        expected = f_by_distances(prediction, truth, radius)
        assert contour_accuracy(prediction, truth, bound=radius) == pytest.approx(expected)


def test_a_disk_reaches_exactly_its_radius() -> None:
    pixel = empty(30, 90)
    pixel[8, 60] = True
    for dy in range(12):
        for dx in range(12):
            moved = np.roll(pixel, (dy, dx), axis=(0, 1))
            expected = f_by_distances(pixel, moved, 8)
            assert contour_accuracy(pixel, moved, bound=8) == expected


def test_both_empty_is_perfect() -> None:
    assert region_similarity(empty(), empty()) == 1
    assert contour_accuracy(empty(), empty()) == 1


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_scores_zero(swap: bool) -> None:
    pair = [empty(), rectangle(10, 10, 20, 30, size=(48, 90))]
    first, second = reversed(pair) if swap else pair
    assert region_similarity(first, second) == 0
    assert contour_accuracy(first, second) == 0


def test_a_full_mask_has_no_boundary() -> None:
    """The DAVIS code repeats the edge pixels, so the image's border is no boundary."""
    assert not plain_boundary(~empty()).any()
    assert region_similarity(~empty(), empty()) == 0
    assert contour_accuracy(~empty(), empty()) == 1
    assert contour_accuracy(~empty(), rectangle(5, 5, 9, 9, size=(48, 90))) == 0


def test_one_pixel_objects() -> None:
    pixel, near, far = empty(), empty(), empty()
    pixel[20, 63] = near[20, 65] = far[40, 10] = True
    assert region_similarity(pixel, pixel) == contour_accuracy(pixel, pixel) == 1
    assert region_similarity(pixel, near) == 0
    assert contour_accuracy(pixel, near, bound=2) == 1
    # The 2x2 blocks of boundary are two columns apart: at radius 1 only the facing columns match.
    assert contour_accuracy(pixel, near, bound=1) == 0.5
    assert contour_accuracy(pixel, near, bound=0) == 0
    assert contour_accuracy(pixel, far) == 0


@pytest.mark.parametrize(
    ("corner", "length"), [((0, 0), 1), ((0, -1), 2), ((-1, 0), 2), ((-1, -1), 3)]
)
def test_pixel_in_a_corner_of_the_image(corner: tuple[int, int], length: int) -> None:
    """The boundary lies half a pixel towards the origin, so the image cuts it differently."""
    mask = empty(9, 70)
    mask[corner] = True
    assert int(plain_boundary(mask).sum()) == length
    board = np.indices(mask.shape).sum(axis=0) % 2 == 0  # all of it is boundary, but its last pixel
    boundary_pixels = mask.size - 1
    precision, recall = 1, length / boundary_pixels
    expected = 2 * precision * recall / (precision + recall)
    assert contour_accuracy(mask, board, bound=0) == pytest.approx(expected, abs=1e-15)


def test_masks_that_touch_the_border() -> None:
    size = (48, 90)
    left, wider = rectangle(0, 0, 48, 30, size=size), rectangle(0, 0, 48, 33, size=size)
    assert region_similarity(left, wider) == 30 / 33
    assert contour_accuracy(left, wider, bound=3) == 1
    assert contour_accuracy(left, wider, bound=2) == 0


def test_worked_precision_and_recall() -> None:
    size = (48, 90)
    # Two strips across the image have 48 boundary pixels at either side; the truth has one strip.
    truth = rectangle(0, 20, 48, 30, size=size)
    prediction = truth | rectangle(0, 60, 48, 70, size=size)
    assert region_similarity(prediction, truth) == 0.5
    assert contour_accuracy(prediction, truth) == pytest.approx(2 * 0.5 * 1 / 1.5, abs=1e-15)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_any_non_zero_value_is_foreground(dtype: type) -> None:
    rng = np.random.default_rng(3)
    prediction, truth = blobs(rng, 40, 100)
    values = rng.integers(1, 128, truth.shape)
    scores = frame_scores((prediction * values)[None].astype(dtype), truth[None] * np.uint8(255))
    assert scores.j[0] == region_similarity(prediction, truth)
    assert scores.f[0] == contour_accuracy(prediction, truth)


def test_sequence_equals_its_frames_and_has_means() -> None:
    rng = np.random.default_rng(4)
    pairs = [blobs(rng, 45, 77) for _ in range(5)] + [(empty(45, 77), ~empty(45, 77))]
    predictions, truths = (np.stack(masks) for masks in zip(*pairs, strict=True))
    scores = frame_scores(predictions[:, :, ::-1], truths[:, :, ::-1], bound=2)  # strided views
    flipped = [(a[:, ::-1], b[:, ::-1]) for a, b in pairs]
    assert scores.j.tolist() == [region_similarity(*pair) for pair in flipped]
    assert scores.f.tolist() == [contour_accuracy(*pair, bound=2) for pair in flipped]
    assert scores.j_mean == pytest.approx(np.mean(scores.j))
    assert scores.f_mean == pytest.approx(np.mean(scores.f))
    assert scores.j_and_f == pytest.approx((np.mean(scores.j) + np.mean(scores.f)) / 2)


def test_inputs_are_not_changed() -> None:
    prediction, truth = blobs(np.random.default_rng(5), 30, 64)
    before = prediction.copy(), truth.copy()
    frame_scores(prediction[None], truth[None])
    assert np.array_equal(prediction, before[0])
    assert np.array_equal(truth, before[1])


@pytest.mark.parametrize("measure", [region_similarity, contour_accuracy])
def test_sizes_that_differ(measure: Any) -> None:
    with pytest.raises(InputError, match=r"^prediction is 48x90 but truth is 90x48 .*resizing$"):
        measure(empty(48, 90), empty(90, 48))


def test_sequences_that_differ_in_length() -> None:
    masks = np.zeros((4, 6, 8), bool)
    with pytest.raises(InputError, match=r"prediction is 3x6x8 but truth is 4x6x8"):
        frame_scores(masks[:3], masks)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((6, 8)), "float64; pass masks as bool"),
        (np.zeros((1, 6, 8), bool), r"1x6x8; pass \[H, W\]"),
        (np.zeros((0, 8), bool), "0x8; pass"),
    ],
)
def test_masks_that_cannot_be_scored(mask: NDArray[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        region_similarity(mask, mask)


def test_no_frames() -> None:
    with pytest.raises(InputError, match="at least one frame"):
        frame_scores(np.zeros((0, 6, 8), bool), np.zeros((0, 6, 8), bool))


@pytest.mark.parametrize("bound", [-1, -0.1, 1.5, math.nan, math.inf, -math.inf])
def test_bounds_that_mean_nothing(bound: float) -> None:
    with pytest.raises(InputError, match="whole number of pixels"):
        contour_accuracy(empty(), empty(), bound=bound)


def test_torch_is_not_imported() -> None:
    code = "import sys, rvos_deploy.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
