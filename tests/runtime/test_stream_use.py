"""How a stream may be used: order, closing, flush, threads, results as values; and its memory."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import rvos_deploy as rvos
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.networks.pan2024.query_memory import FIRST_CAPACITY, token_bytes
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import Frame

Clip = NDArray[np.uint8]
TEXT, OTHER = "the disc", "the square moving to the right"


def settings(**changes: object) -> StreamSettings:
    return StreamSettings(**{"size": PROBE_BOX, "fallback": "top1", **changes})  # type: ignore[arg-type]


def test_results_are_values_that_can_be_compared_and_kept(segmenter: Segmenter, clip: Clip) -> None:
    with segmenter.stream([TEXT], settings()) as stream:
        (one,), (other,) = stream.push(clip[0]), stream.push(clip[1])
    same = one
    assert one == same
    assert one != other
    assert {one: 1, other: 2}[one] == 1
    assert [one, other].index(other) == 1


def test_a_removed_expressions_text_stays_with_its_results(
    segmenter: Segmenter, clip: Clip
) -> None:
    with segmenter.stream([TEXT, OTHER], settings()) as stream:
        (before,) = stream.push(clip[0])
        stream.remove_expression(0)
        (after,) = stream.push(clip[1])
        assert stream.expressions == {1: OTHER}
    assert (before.expressions, before.texts) == ((0, 1), (TEXT, OTHER))
    assert (after.expressions, after.texts) == ((1,), (OTHER,))


USES: list[Callable[[Stream, Clip], object]] = [
    lambda stream, clip: stream.push(clip[0]),
    lambda stream, clip: stream.flush(),
    lambda stream, clip: stream.add_expression(OTHER),
    lambda stream, clip: stream.remove_expression(0),
    lambda stream, clip: stream.expressions,
    lambda stream, clip: stream.record_choices(),
]
USE_NAMES = ["push", "flush", "add", "remove", "expressions", "record_choices"]


@pytest.mark.parametrize("use", USES, ids=USE_NAMES)
def test_a_closed_stream_says_so_everywhere(segmenter: Segmenter, clip: Clip, use) -> None:  # type: ignore[no-untyped-def]
    stream = segmenter.stream([TEXT], settings(mode="offline"))
    stream.push(clip[0])
    flushed = stream.flush()
    stream.close()
    stream.close()
    with pytest.raises(InputError, match=r"stream is closed; open another with segmenter\.stream"):
        use(stream, clip)
    with pytest.raises(InputError, match="stream is closed"):
        next(flushed)


@pytest.mark.parametrize("use", USES, ids=USE_NAMES)
def test_the_streams_of_a_closed_segmenter_say_so(tiny_bundle: Path, clip: Clip, use) -> None:  # type: ignore[no-untyped-def]
    segmenter = rvos.load(tiny_bundle)
    stream = segmenter.stream([TEXT], settings(mode="offline"))
    stream.push(clip[0])
    segmenter.close()
    with pytest.raises(InputError, match=r"segmenter of this stream is closed; load the bundle"):
        use(stream, clip)
    stream.close()


def test_a_closed_segmenter_says_so(tiny_bundle: Path) -> None:
    segmenter = rvos.load(tiny_bundle)
    segmenter.encode_text(TEXT)
    segmenter.close()
    segmenter.close()
    for use in (segmenter.stream, lambda: segmenter.encode_text(TEXT)):
        with pytest.raises(InputError, match="segmenter is closed; load the bundle again"):
            use()


@pytest.mark.parametrize("changes", [{"mode": "offline"}, {"lookahead": 2}])
def test_flush_decides_when_it_is_called(segmenter: Segmenter, clip: Clip, changes) -> None:  # type: ignore[no-untyped-def]
    """Not when it is first read: what came or went in between changes nothing of it."""
    with segmenter.stream([TEXT], settings(**changes)) as stream:
        decided = [result for frame in clip[:4] for result in stream.push(frame)]
        expected = [*decided, *stream.flush()]
    stages: list[str] = []
    with segmenter.stream(
        [TEXT], settings(**changes), on_stage=lambda stage, _: stages.append(stage)
    ) as stream:
        decided = [result for frame in clip[:4] for result in stream.push(frame)]
        stages.clear()
        flushed = stream.flush()
        assert stages.count("video_decoder") == 1
        assert "mask_head" not in stages, "the masks of a clip are never in memory together"
        stream.add_expression(OTHER)
        found = [*decided, *flushed]
        assert stages.count("video_decoder") == 1
        assert list(flushed) == list(stream.flush()) == []
    assert [result.index for result in found] == [0, 1, 2, 3]
    for one, other in zip(found, expected, strict=True):
        assert one.expressions == (0,)
        assert (one.masks == other.masks).all()


def test_a_flush_that_is_not_read_loses_nothing(segmenter: Segmenter, clip: Clip) -> None:
    with segmenter.stream([TEXT], settings(mode="offline")) as stream:
        for frame in clip[:3]:
            stream.push(frame)
        stream.flush()
        with pytest.raises(InputError, match=r"3 frames of flush\(\) were not read.*loop over"):
            stream.push(clip[3])
        assert next(iter(stream.flush())).index == 0
        with pytest.raises(InputError, match=r"2 frames of flush\(\) were not read"):
            stream.push(clip[3])
        assert [result.index for result in stream.flush()] == [1, 2]
        stream.push(clip[3])
        assert [result.index for result in stream.flush()] == [3]


def test_a_flush_that_is_read_ends_for_good(segmenter: Segmenter, clip: Clip) -> None:
    """As Python asks of iterators: it gives nothing of what is flushed later."""
    with segmenter.stream([TEXT], settings(mode="offline")) as stream:
        stream.push(clip[0])
        first = stream.flush()
        assert len(list(first)) == 1
        stream.push(clip[1])
        second = stream.flush()
        assert list(first) == []
        assert [result.index for result in second] == [1]
    assert list(second) == []


def test_a_flush_that_is_called_too_early(segmenter: Segmenter, clip: Clip) -> None:
    """``chain(pushes, stream.flush())`` calls it before the first push: never a silent nothing."""
    with segmenter.stream([TEXT], settings(mode="offline")) as stream:
        early = stream.flush()
        for frame in clip[:2]:
            stream.push(frame)
        with pytest.raises(InputError, match=r"2 frames were pushed after this flush\(\)"):
            next(early)
        assert len(list(stream.flush())) == 2


BARE, FRAMES = "push one kind only", "order of their times"


@pytest.mark.parametrize(
    ("pushed", "message"),
    [
        ([(0, 0.0), (0, 0.1)], r"frame 0 at 0\.1 s does not come after frame 0 at 0 s.*" + FRAMES),
        ([(3, 0.3), (2, 0.4)], r"frame 2 at 0\.4 s does not come after frame 3 at 0\.3 s"),
        ([(0, 0.5), (1, 0.5)], r"frame 1 at 0\.5 s does not come after frame 0 at 0\.5 s"),
        ([(0, 0.5), (1, 0.4)], FRAMES),
        ([(10, 0.3), None], r"frame 1 at 1 s does not come after frame 10 at 0\.3 s.*" + BARE),
        ([None, None, (2, 0.2)], r"frame 2 at 0\.2 s does not come after frame 1 at 1 s.*" + BARE),
        ([None, (0, 7.0)], BARE),
    ],
)
def test_time_never_stands_still_or_goes_back(
    segmenter: Segmenter, clip: Clip, pushed: list[tuple[int, float] | None], message: str
) -> None:
    frames = [
        clip[row] if at is None else Frame(*at, image=clip[row]) for row, at in enumerate(pushed)
    ]
    with segmenter.stream([TEXT], settings()) as stream:
        for frame in frames[:-1]:
            stream.push(frame)
        with pytest.raises(InputError, match=message):
            stream.push(frames[-1])
        # Refused before anything was done: the stream goes on.
        (result,) = stream.push(Frame(50, 60.0, clip[-1]))
    assert result.index == 50
    assert result.scores.shape == (1,)


def test_a_frame_that_is_refused_leaves_no_trace(segmenter: Segmenter, clip: Clip) -> None:
    with segmenter.stream([TEXT], settings()) as stream:
        expected = [result for frame in clip[:3] for result in stream.push(frame)]
    # What no frame could pass is refused before the first one.
    with pytest.raises(InputError, match="size 32x32000 is too large"):
        segmenter.stream([TEXT], StreamSettings(size=(32, 32_000), fallback="top1"))
    with segmenter.stream([TEXT], settings()) as stream:
        found = stream.push(clip[0])
        for wrong in (clip[0].astype(np.float32), clip[0][..., 0], None, "frame.png", [clip[0]]):
            with pytest.raises(InputError, match=r"an image must be"):
                stream.push(wrong)
        found += [result for frame in clip[1:3] for result in stream.push(frame)]
    for one, other in zip(found, expected, strict=True):
        assert one.index == other.index
        assert (one.masks == other.masks).all()


def test_two_threads_on_one_stream_are_told(segmenter: Segmenter, clip: Clip) -> None:
    """The second is refused while the first is inside; the first's results are as if alone."""
    with segmenter.stream([TEXT], settings()) as stream:
        expected = [result for frame in clip for result in stream.push(frame)]
    inside, tried = threading.Event(), threading.Event()

    def stage(name: str, seconds: float) -> None:
        if name == "backbone":
            inside.set()
            assert tried.wait(60)

    with (
        segmenter.stream([TEXT], settings(), on_stage=stage) as stream,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(stream.push, clip[0])
        assert inside.wait(60)
        for use in (*USES[:4], USES[5]):
            with pytest.raises(InputError, match=r"in use by another thread.*open one in each"):
                use(stream, clip)
        tried.set()
        found = first.result() + [r for frame in clip[1:] for r in stream.push(frame)]
    for one, other in zip(found, expected, strict=True):
        assert (one.masks == other.masks).all()
        assert one.scores.tobytes() == other.scores.tobytes()


def test_threads_may_take_turns(segmenter: Segmenter, clip: Clip) -> None:
    with segmenter.stream([TEXT], settings()) as stream, ThreadPoolExecutor(1) as pool:
        results = [pool.submit(stream.push, clip[0]).result(), stream.push(clip[1])]
    assert [one.index for (one,) in results] == [0, 1]


def test_a_callback_that_uses_its_own_stream(segmenter: Segmenter, clip: Clip) -> None:
    def stage(name: str, seconds: float) -> None:
        stream.add_expression(OTHER)

    with (
        segmenter.stream([TEXT], settings(), on_stage=stage) as stream,
        pytest.raises(InputError, match="or by a callback of its own"),
    ):
        stream.push(clip[0])


def test_closing_while_another_thread_is_inside(segmenter: Segmenter, clip: Clip) -> None:
    """The call in progress ends as it would, and what the stream held is freed by then."""
    inside, closed = threading.Event(), threading.Event()

    def stage(name: str, seconds: float) -> None:
        if name == "backbone":
            inside.set()
            assert closed.wait(60)

    stream = segmenter.stream([TEXT], settings(mode="offline", mask_budget=0), on_stage=stage)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stream.push, clip[0])
        assert inside.wait(60)
        stream.close()
        closed.set()
        assert first.result() == []
    assert len(stream._store) == 0
    with pytest.raises(InputError, match="closed"):
        stream.push(clip[1])


def test_a_segmenter_that_is_closed_under_a_stream(tiny_bundle: Path, clip: Clip) -> None:
    """From another thread, at any stage: an error of ours, never one of Python's."""
    for at in ("backbone", "frame_decoder", "alignment", "video_decoder"):
        segmenter = rvos.load(tiny_bundle)

        def stage(name: str, seconds: float, at: str = at, opened: Segmenter = segmenter) -> None:
            if name == at:
                opened.close()

        stream = segmenter.stream([TEXT], settings(), on_stage=stage)

        def use(stream: Stream = stream) -> None:
            for frame in clip[:2]:
                stream.push(frame)

        with pytest.raises(RvosError):
            use()
        stream.close()


def kept_bytes(stream: Stream) -> int:
    return stream._steps._memory._tensor.nbytes


def capacity(frames: int) -> int:
    """Places of an offline memory of so many frames."""
    return max(FIRST_CAPACITY, 1 << (frames - 1).bit_length())


@pytest.mark.parametrize("expressions", [1, 3])
def test_the_law_of_offline_memory(segmenter: Segmenter, clip: Clip, expressions: int) -> None:
    """Tokens take exactly what is said, doubled as they grow; all else grows by at most 1.5 KiB a
    frame and 0.5 KiB a frame and expression (Python's objects for what waits; measured: 1 and
    0.35).
    """
    config, frames = segmenter.bundle.config, 64
    small = settings(mode="offline", mask_budget=0, size=(32, 32))
    with segmenter.stream([f"{TEXT} {n}" for n in range(expressions)], small) as stream:
        # The first frames make what stays: the trackers' arrays, the store's file.
        for number in range(16):
            stream.push(clip[number % len(clip)])
        before = 0
        tracemalloc.start()
        try:
            for number in range(2 * frames):
                if number == frames:
                    gc.collect()
                    before = tracemalloc.get_traced_memory()[0]
                stream.push(clip[number % len(clip)])
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        # The frame pushed last is not in the memory yet.
        seen = [16 + frames - 1, 16 + 2 * frames - 1]
        held = [token_bytes(capacity(n), expressions, config.num_queries, config.dim) for n in seen]
        assert kept_bytes(stream) == held[1]
        law = held[1] - held[0]
        assert law == held[0]
        assert law <= grown <= law + frames * (1536 + 512 * expressions)
        assert stream._store.bytes_in_memory == 0


def test_a_memory_bounds_tokens_offline_too(segmenter: Segmenter, clip: Clip) -> None:
    config = segmenter.bundle.config
    with segmenter.stream([TEXT], settings(mode="offline", memory=3)) as stream:
        for frame in clip[:6]:
            stream.push(frame)
        assert kept_bytes(stream) == token_bytes(3, 1, config.num_queries, config.dim)


def test_results_survive_their_stream(segmenter: Segmenter, clip: Clip) -> None:
    with segmenter.stream([TEXT], settings()) as stream:
        results: list[FrameMasks] = [r for frame in clip[:2] for r in stream.push(frame)]
    assert [result.masks.shape for result in results] == [(1, *clip.shape[1:3])] * 2
