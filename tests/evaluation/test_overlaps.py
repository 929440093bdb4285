"""Overlaps of objects: the argmax of mask logits at the displayed size, as Ref-DAVIS17 has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import rvos_deploy as rvos
from rvos_deploy.datasets import VideoRecord, read_ref_davis
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.bundle_masks import bundle_masks, evaluate_bundle
from rvos_deploy.evaluation.evaluate import ScoringOptions, evaluate
from rvos_deploy.evaluation.overlaps import resolve_overlaps
from rvos_deploy.evaluation.protocols import annotator_sets
from rvos_deploy.graph_io.frame_geometry import upsample_logits
from rvos_deploy.networks.selection import thresholds
from rvos_deploy.runtime.decided_frame import DecidedFrame

Logits = NDArray[np.float32]
ALL_QUERIES = rvos.StreamSettings(mode="offline", threshold=0.0, size=(64, 96))


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Iterator[rvos.Segmenter]:
    with rvos.load(tiny_bundle) as loaded:
        yield loaded


def plain(logits: Logits, rows: list[int]) -> NDArray[np.bool_]:
    """Masks of one multi-object prediction: a background of 0, then NumPy's argmax."""
    stacked = np.concatenate([np.zeros((1, *logits.shape[1:]), np.float32), logits[rows]])
    winner = stacked.argmax(axis=0)
    return np.stack([winner == 1 + place for place in range(len(rows))])


def test_three_overlapping_expressions() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0.3, 1.0, (4, 30, 50)).astype(np.float32)
    logits[:3, :5] = 1.5  # equal: the first has it
    logits[:3, 5:8] = -100  # nobody: background
    logits[0, 8] = np.inf
    masks = resolve_overlaps(logits, [[2, 0, 1]])
    assert np.array_equal(masks[[2, 0, 1]], plain(logits, [2, 0, 1]))
    assert np.array_equal(masks[3], logits[3] > 0)  # in no group
    assert masks[:3].sum(axis=0).max() == 1
    assert (logits[:3] > 0).sum(axis=0).max() == 3
    assert masks[2, :5].all()
    assert not masks[:3, 5:8].any()


def test_no_number_wins_no_pixel() -> None:
    logits = np.array([[[np.nan, np.nan]], [[1.0, -1.0]]], np.float32)
    assert resolve_overlaps(logits, [[0, 1]]).tolist() == [[[False, False]], [[True, False]]]


def reference(segmenter: rvos.Segmenter, video: VideoRecord) -> list[NDArray[np.bool_]]:
    """The masks of every frame, made from the stream's logits by plain NumPy."""

    frames = []

    def logits(frame: DecidedFrame) -> NDArray[np.bool_]:
        values = frame.mask_logits(thresholds(frame.scores, 0.0, "none"))
        frames.append(np.stack([upsample_logits(one, frame.geometry) for one in values]))
        return frames[-1] > 0

    texts = [expression.text for expression in video.expressions]
    with segmenter.stream(texts, ALL_QUERIES, render=logits) as stream:
        for index in range(len(video.frames)):
            assert stream.push(video.image(index)) == []
        assert len(list(stream.flush())) == len(frames) == len(video.frames)
    found = []
    for frame in frames:
        masks = np.zeros(frame.shape, np.bool_)
        for rows in ([0, 2], [1, 3]):  # the two annotators of the fixture
            masks[rows] = plain(frame, rows)
        found.append(masks)
    return found


def test_a_bundles_masks_are_those_of_a_plain_argmax(
    segmenter: rvos.Segmenter, ref_davis: Path
) -> None:
    (video,) = read_ref_davis(ref_davis).videos
    wanted = reference(segmenter, video)
    resolved = list(bundle_masks(segmenter, ALL_QUERIES, groups=annotator_sets)(video))
    assert np.array_equal(resolved, wanted)
    kept = np.array(list(bundle_masks(segmenter, ALL_QUERIES)(video)))
    assert kept.shape == (2, 4, 32, 48)
    assert (kept[:, 0] & kept[:, 2]).any()  # what is resolved does happen
    union = np.array(wanted)[:, 0] | np.array(wanted)[:, 2]
    assert np.array_equal(kept[:, 0] | kept[:, 2], union)


def test_ref_davis_resolves_overlaps_unless_told_otherwise(
    segmenter: rvos.Segmenter, ref_davis: Path
) -> None:
    direct = evaluate_bundle(segmenter, ref_davis, "ref-davis", ALL_QUERIES)
    by_hand = evaluate(lambda video: reference(segmenter, video), ref_davis, "ref-davis")
    assert direct.scores == by_hand.scores
    kept = evaluate_bundle(
        segmenter, ref_davis, "ref-davis", ALL_QUERIES, options=ScoringOptions(overlaps="keep")
    )
    masks = bundle_masks(segmenter, ALL_QUERIES)
    assert kept.scores == evaluate(masks, ref_davis, "ref-davis").scores
    assert kept.scores != direct.scores


def test_answers_of_their_own_have_no_overlaps(segmenter: rvos.Segmenter, split: Path) -> None:
    with pytest.raises(InputError, match="overlaps have no meaning in mevis"):
        evaluate_bundle(
            segmenter, split, "mevis", ALL_QUERIES, options=ScoringOptions(overlaps="argmax")
        )
