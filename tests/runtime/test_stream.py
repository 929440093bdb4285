"""The stream's promises, against the reference network run on whole clips.

Masks are compared pixel by pixel. Libraries differ by about 1e-6 in the mask logits, which moves a
mask's edge by less than 1e-5 of a pixel: no pixel may differ, but for logits that are zero to
within that. One pixel in ten thousand is allowed for those.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import letterbox, upsample_mask
from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import Frame

MOVING, DISC, THIRD = "the square moving to the right", "the disc", "everything that is red or blue"
SCORE_TOLERANCE = 1e-5
"""Softmax of logits that differ by about 1e-6 after tens of layers."""


def settings(**changes: object) -> StreamSettings:
    return StreamSettings(**{"size": PROBE_BOX, "fallback": "top1", **changes})  # type: ignore[arg-type]


def run_all(stream: Stream, clip: NDArray[np.uint8]) -> list[FrameMasks]:
    results = [result for frame in clip for result in stream.push(frame)]
    return results + list(stream.flush())


def assert_masks(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> None:
    assert found.shape == expected.shape
    assert (found != expected).mean() <= 1e-4


def expected_masks(reference, clip, text):  # type: ignore[no-untyped-def]
    logits, scores = reference(clip, text)
    geometry = letterbox(clip.shape[1:3], PROBE_BOX)
    masks = np.stack([upsample_mask(one, geometry) for one in logits])
    assert 0.001 < masks.mean() < 0.999, "an empty or full mask would prove nothing"
    return masks, scores


def test_offline_bundle_equals_offline_pytorch(segmenter: Segmenter, clip, reference) -> None:
    with segmenter.stream([MOVING, DISC], settings(mode="offline")) as stream:
        assert [stream.push(frame) for frame in clip] == [[]] * len(clip)
        results = list(stream.flush())
    assert [result.index for result in results] == list(range(len(clip)))
    for row, text in enumerate([MOVING, DISC]):
        masks, scores = expected_masks(reference, clip, text)
        assert_masks(np.stack([result.masks[row] for result in results]), masks)
        for result in results:
            assert result.scores[row] == pytest.approx(scores.max(), abs=SCORE_TOLERANCE)


def test_online_is_prefix_exact(segmenter: Segmenter, clip, reference) -> None:
    with segmenter.stream([MOVING], settings()) as stream:
        results = run_all(stream, clip)
    assert len(results) == len(clip)
    for t, result in enumerate(results):
        masks, scores = expected_masks(reference, clip[: t + 1], MOVING)
        assert_masks(result.masks[0], masks[-1])
        assert result.scores[0] == pytest.approx(scores.max(), abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("lookahead", [1, 3, 20])
def test_lookahead_is_the_network_on_what_was_seen(
    segmenter: Segmenter, clip, reference, lookahead: int
) -> None:
    with segmenter.stream([MOVING], settings(lookahead=lookahead)) as stream:
        pushed = [stream.push(frame) for frame in clip]
        flushed = list(stream.flush())
    assert [len(results) for results in pushed] == [int(t >= lookahead) for t in range(len(clip))]
    results = [result for results in pushed for result in results] + flushed
    assert [result.index for result in results] == list(range(len(clip)))
    for t, result in enumerate(results):
        masks, _ = expected_masks(reference, clip[: t + lookahead + 1], MOVING)
        assert_masks(result.masks[0], masks[t])


def test_five_expressions_equal_five_streams(segmenter: Segmenter, clip) -> None:
    texts = [MOVING, DISC, THIRD, "a dog", "the small thing at the left that stops and turns back"]
    with segmenter.stream(texts, settings(lookahead=1)) as stream:
        together = run_all(stream, clip)
    for row, text in enumerate(texts):
        with segmenter.stream([text], settings(lookahead=1)) as stream:
            alone = run_all(stream, clip)
        for one, all_of_them in zip(alone, together, strict=True):
            assert_masks(all_of_them.masks[row], one.masks[0])
            assert all_of_them.scores[row] == pytest.approx(one.scores[0], abs=SCORE_TOLERANCE)


def test_five_expressions_take_one_backbone_pass(segmenter: Segmenter, clip) -> None:
    stages: list[str] = []
    texts = [MOVING, DISC, THIRD, "a dog", "a cat"]
    with segmenter.stream(texts, settings(), on_stage=lambda s, t: stages.append(s)) as stream:
        run_all(stream, clip)
    assert stages.count("backbone") == stages.count("frame_decoder") == len(clip)


def test_an_expression_added_midway_equals_one_that_started_then(segmenter, clip) -> None:
    with segmenter.stream([MOVING], settings()) as stream:
        first = [r for frame in clip[:3] for r in stream.push(frame)]
        number = stream.add_expression(DISC)
        rest = [r for frame in clip[3:] for r in stream.push(frame)]
    with segmenter.stream([DISC], settings()) as stream:
        alone = run_all(stream, clip[3:])
    with segmenter.stream([MOVING], settings()) as stream:
        undisturbed = run_all(stream, clip)
    assert all(result.expressions == (0,) for result in first)
    for result, expected in zip(rest, alone, strict=True):
        assert result.expressions == (0, number)
        assert_masks(result.masks[1], expected.masks[0])
    for result, expected in zip(first + rest, undisturbed, strict=True):
        assert_masks(result.masks[0], expected.masks[0])


def test_frames_that_wait_leave_out_what_came_or_went_meanwhile(segmenter, clip) -> None:
    with segmenter.stream([MOVING, DISC], settings(lookahead=2)) as stream:
        stream.push(clip[0])
        late = stream.add_expression(THIRD)
        stream.push(clip[1])
        stream.remove_expression(0)
        (first,) = stream.push(clip[2])
        second, third = stream.flush()
    assert first.expressions == (1,)
    assert second.expressions == third.expressions == (1, late)
    assert first.masks.shape == (1, *clip.shape[1:3])
    with segmenter.stream([DISC], settings(lookahead=2)) as stream:
        expected = run_all(stream, clip[:3])
    for result, alone in zip([first, second, third], expected, strict=True):
        assert_masks(result.masks[0], alone.masks[0])


def test_a_stream_without_expressions_gives_empty_results(segmenter, clip) -> None:
    with segmenter.stream([], settings()) as stream:
        (result,) = stream.push(clip[0])
        assert result.masks.shape == (0, *clip.shape[1:3])
        stream.add_expression(DISC)
        (result,) = stream.push(clip[1])
        assert result.expressions == (0,)


def test_an_expression_added_after_the_last_frame_decides_nothing(segmenter, clip) -> None:
    with segmenter.stream([MOVING], settings(mode="offline")) as stream:
        stream.push(clip[0])
        stream.add_expression(DISC)
        (result,) = stream.flush()
    assert result.expressions == (0,)


def test_results_carry_index_and_pts_of_their_frames(segmenter, clip) -> None:
    frames = [Frame(index=10 + i, pts=0.3 + i * i, image=image) for i, image in enumerate(clip[:3])]
    with segmenter.stream([MOVING], settings(lookahead=1)) as stream:
        results = run_all(stream, frames)  # type: ignore[arg-type]
    assert [(r.index, r.pts) for r in results] == [(f.index, f.pts) for f in frames]


def test_sizes_may_change_within_a_stream(segmenter, clip) -> None:
    portrait = np.ascontiguousarray(clip[1].swapaxes(0, 1))
    with segmenter.stream([MOVING], settings(mode="offline")) as stream:
        stream.push(clip[0])
        stream.push(portrait)
        landscape_result, portrait_result = stream.flush()
    assert landscape_result.masks.shape == (1, 90, 157)
    assert portrait_result.masks.shape == (1, 157, 90)


def test_nothing_passes_without_fallback_where_no_score_reaches_the_threshold(segmenter, clip):
    with segmenter.stream([MOVING], settings(fallback="none", threshold=1.0)) as stream:
        results = run_all(stream, clip[:2])
    assert not any(result.masks.any() for result in results)


@pytest.mark.parametrize("budget", [0, 200_000])
def test_spilling_to_disk_changes_nothing(segmenter, clip, budget: int) -> None:
    with segmenter.stream([MOVING, DISC], settings(mode="offline")) as stream:
        in_memory = run_all(stream, clip)
    with segmenter.stream([MOVING, DISC], settings(mode="offline", mask_budget=budget)) as stream:
        spilled = run_all(stream, clip)
    for one, other in zip(in_memory, spilled, strict=True):
        assert (one.masks == other.masks).all()


def test_a_short_memory_forgets(segmenter, clip) -> None:
    """Only what is in the window counts for the video decoder: masks of other frames drop out."""
    with segmenter.stream([MOVING], settings(memory=2)) as stream:
        short = run_all(stream, clip)
    with segmenter.stream([MOVING], settings(memory=64)) as stream:
        long = run_all(stream, clip)
    assert short[1].scores == pytest.approx(long[1].scores, abs=SCORE_TOLERANCE)
    assert abs(short[-1].scores - long[-1].scores).max() > SCORE_TOLERANCE


def test_text_is_encoded_once(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = segmenter.encode_text("a text that no other test uses")
    monkeypatch.setattr(segmenter, "_tokenizer", None)
    assert segmenter.encode_text("a text that no other test uses") is first


def test_a_closed_stream_says_so(segmenter, clip) -> None:
    with segmenter.stream([MOVING], settings()) as stream:
        pass
    with pytest.raises(InputError, match="closed"):
        stream.push(clip[0])


def test_a_single_string_of_expressions_is_refused(segmenter) -> None:
    with pytest.raises(InputError, match=r"write \['the dog'\]"):
        segmenter.stream("the dog")


def test_two_threads_share_a_segmenter(segmenter: Segmenter, clip) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(text: str) -> list[FrameMasks]:
        with segmenter.stream([text], settings()) as stream:
            return run_all(stream, clip)

    texts = [MOVING, DISC]
    with ThreadPoolExecutor(2) as pool:
        side_by_side = list(pool.map(work, texts))
    for text, results in zip(texts, side_by_side, strict=True):
        for one, other in zip(results, work(text), strict=True):
            assert_masks(one.masks, other.masks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "later"}, "mode must be one of online, offline"),
        ({"mode": "offline", "lookahead": 2}, "no meaning offline"),
        ({"memory": 0}, "at least 1"),
        ({"threshold": 1.5}, "0..1"),
        ({"size": (100, 160)}, "nearest that is: 96x160"),
        ({"lookahead": -1}, "lookahead must be at least 0, found -1"),
        ({"masks": "gpu"}, "masks must be one of host, device"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_masks_on_a_device_are_refused_where_there_is_none(segmenter: Segmenter, tmp_path) -> None:
    from rvos_deploy.runtime.run import RunOptions, run

    with pytest.raises(InputError, match=r"backend='tensorrt'.*leave masks out"):
        segmenter.stream([MOVING], settings(masks="device"))
    options = RunOptions(settings(masks="device"))
    with pytest.raises(InputError, match="cannot be written into files"):
        run(segmenter, "video.mp4", [MOVING], tmp_path / "o", options=options)
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_resident_memory_is_flat(segmenter: Segmenter) -> None:
    from rvos_deploy.benchmarks.memory import benchmark_memory

    record = benchmark_memory(segmenter, 3000)
    assert record["growth"] <= 0.02, record["resident_bytes"]
