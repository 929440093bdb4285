"""Streams of OnlineRefer against the plain float64 reference, which follows one expression alone.

The reference shares no code with the package (``reference.py``). Scores and mask logits may differ
by what float32 rounds in tens of layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from reference import Constants, Reference

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import resize_frame, upsample_mask
from rvos_deploy.graph_io.probe import probe_clip
from rvos_deploy.networks.online_refer.config import OnlineReferConfig
from rvos_deploy.networks.online_refer.modules.checkpoint import random_network
from rvos_deploy.networks.online_refer.tokenizer import RobertaTokenizer
from rvos_deploy.runtime.decided_frame import DecidedFrame
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import StreamSettings

SQUARE, DISC = "the square moving to the right", "the disc"
LONG = "the small thing at the left that stops, and turns back after a while"
TOLERANCE = 1e-4
SETTINGS = StreamSettings(short_side=64)
FRAMES = 6


@dataclass(frozen=True)
class Followed:
    """A sentence that is followed from frame ``first`` to before ``last``."""

    text: str
    first: int
    last: int = FRAMES


@dataclass(frozen=True)
class Found:
    """Score and mask logits [h,w] of an expression in a frame."""

    score: float
    logits: NDArray[np.floating]


@pytest.fixture(scope="module")
def segmenter(online_refer_bundle: Path) -> Iterator[Segmenter]:
    with load(online_refer_bundle, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def clip() -> NDArray[np.uint8]:
    return probe_clip(FRAMES)


Expect = Callable[[Sequence[NDArray[np.uint8]], StreamSettings, Followed], dict[int, Found]]


@pytest.fixture(scope="module")
def expect(segmenter: Segmenter) -> Expect:
    """The reference's answer for one expression alone, by frame."""
    config = segmenter.bundle.config
    assert isinstance(config, OnlineReferConfig)
    network = random_network(config, segmenter.bundle.manifest.weights.seed or 0)
    weights = {name: weight.numpy() for name, weight in network.state_dict().items()}
    reference = Reference(weights, Constants(text_heads=config.text_heads))
    file = segmenter.bundle.path / "tokenizer.json"
    tokenizer = RobertaTokenizer(file, file.read_bytes(), config.max_tokens)

    def answer(
        frames: Sequence[NDArray[np.uint8]], settings: StreamSettings, one: Followed
    ) -> dict[int, Found]:
        seen = [
            resize_frame(frame, segmenter.geometry((frame.shape[0], frame.shape[1]), settings))[0]
            for frame in frames
        ]
        part = np.stack(seen[one.first : one.last])
        (answers,) = reference.run(part, [tokenizer(one.text)], [0])
        return {
            one.first + t: Found(1 / (1 + np.exp(-a.logits[a.best])), a.masks[a.best])
            for t, a in answers.items()
        }

    return answer


def follow(
    segmenter: Segmenter,
    frames: Sequence[NDArray[np.uint8]],
    settings: StreamSettings,
    followed: Sequence[Followed],
) -> list[dict[int, Found]]:
    """What a stream gives for each of ``followed``, by frame."""
    numbers: dict[int, int] = {}
    found: list[dict[int, Found]] = [{} for _ in followed]

    def render(frame: DecidedFrame) -> NDArray[np.bool_]:
        logits = frame.mask_logits(np.full(len(frame.expressions), -1, np.float32))
        assert frame.scores.shape == (len(logits), 1)
        for row, number in enumerate(frame.expressions):
            found[numbers[number]][frame.index] = Found(float(frame.scores[row, 0]), logits[row])
        return np.zeros((len(logits), *frame.geometry.display), np.bool_)

    with segmenter.stream([], settings, render=render) as stream:
        for t, frame in enumerate(frames):
            for number, which in list(numbers.items()):
                if followed[which].last == t:
                    stream.remove_expression(number)
                    del numbers[number]
            for which, one in enumerate(followed):
                if one.first == t:
                    numbers[stream.add_expression(one.text)] = which
            stream.push(frame)
        for _ in stream.flush():
            pass
    return found


def assert_equal(found: dict[int, Found], wanted: dict[int, Found]) -> None:
    assert found.keys() == wanted.keys()
    for t, one in wanted.items():
        assert found[t].score == pytest.approx(one.score, abs=TOLERANCE), t
        assert found[t].logits.shape == one.logits.shape
        error = np.abs(found[t].logits - one.logits).max()
        assert error <= TOLERANCE * max(1.0, np.abs(one.logits).max()), t


SCENES = {
    "three join at different frames": [
        Followed(SQUARE, 0),
        Followed(DISC, 2),
        Followed(LONG, 3),
    ],
    "one leaves as another joins": [
        Followed(SQUARE, 0, 3),
        Followed(DISC, 0),
        Followed(LONG, 3),
    ],
    "more, then fewer": [
        Followed(SQUARE, 0, 2),
        Followed(DISC, 0),
        Followed("a dog", 1, 3),
        Followed(LONG, 1, 4),
        Followed("everything that is red", 2, 4),
    ],
    "nobody for some frames": [Followed(SQUARE, 0, 2), Followed(DISC, 4)],
    "nobody at first": [Followed(SQUARE, 2)],
    "the same sentence twice": [Followed(SQUARE, 0), Followed(SQUARE, 2)],
    "removed and added again": [Followed(DISC, 0), Followed(SQUARE, 0, 3), Followed(SQUARE, 3)],
}


@pytest.mark.parametrize("name", SCENES)
def test_scores_and_logits_equal_the_plain_reference(
    segmenter: Segmenter, clip: NDArray[np.uint8], expect: Expect, name: str
) -> None:
    found = follow(segmenter, clip, SETTINGS, SCENES[name])
    for one, given in zip(SCENES[name], found, strict=True):
        assert_equal(given, expect(clip, SETTINGS, one))


def test_an_expression_that_starts_anew_differs_from_one_that_was_followed(
    segmenter: Segmenter, clip: NDArray[np.uint8]
) -> None:
    """Otherwise the scenes above would not see a track that is lost, or kept for too long."""
    kept, anew = follow(segmenter, clip, SETTINGS, [Followed(SQUARE, 0), Followed(SQUARE, 3)])
    for t in range(3, FRAMES):
        assert np.abs(kept[t].logits - anew[t].logits).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((97, 161), StreamSettings(short_side=64)),
        ((161, 97), StreamSettings(short_side=40)),
        ((33, 400), StreamSettings(short_side=32)),
        ((7, 5), StreamSettings(short_side=64)),
        ((90, 157), StreamSettings(size=(96, 64))),
        ((90, 157), StreamSettings()),
    ],
    ids=str,
)
def test_frames_of_any_size_equal_the_plain_reference(
    segmenter: Segmenter,
    clip: NDArray[np.uint8],
    expect: Expect,
    size: tuple[int, int],
    settings: StreamSettings,
) -> None:
    from PIL import Image

    frames = [np.asarray(Image.fromarray(frame).resize(size[::-1])) for frame in clip[:3]]
    one = Followed(SQUARE, 0, 3)
    (found,) = follow(segmenter, frames, settings, [one])
    wanted = expect(frames, settings, one)
    assert_equal(found, wanted)
    with segmenter.stream([SQUARE], settings) as stream:
        results = [result for frame in frames for result in stream.push(frame)]
    geometry = segmenter.geometry(size, settings)
    for t, result in enumerate(results):
        mask = upsample_mask(wanted[t].logits.astype(np.float32), geometry)
        assert result.masks.shape == (1, *size)
        assert (result.masks[0] != mask).mean() <= 1e-3


def test_the_masks_of_these_tests_have_edges(segmenter: Segmenter, clip: NDArray[np.uint8]) -> None:
    for found in follow(segmenter, clip, SETTINGS, SCENES["three join at different frames"]):
        for one in found.values():
            assert 0.001 < (one.logits > 0).mean() < 0.999


def masks(
    segmenter: Segmenter, clip: NDArray[np.uint8], settings: StreamSettings
) -> list[tuple[int, NDArray[np.bool_], NDArray[np.float32]]]:
    """Index, masks and scores of every frame; the second expression joins in frame 2."""
    with segmenter.stream([SQUARE], settings) as stream:
        results = [result for frame in clip[:2] for result in stream.push(frame)]
        stream.add_expression(DISC)
        results += [result for frame in clip[2:] for result in stream.push(frame)]
        results += list(stream.flush())
    return [(result.index, result.masks, result.scores) for result in results]


@pytest.mark.parametrize(
    "changes",
    [
        {"lookahead": 1},
        {"lookahead": 20},
        {"mode": "offline"},
        {"mode": "offline", "mask_budget": 0},
        {"memory": 1, "anchors": 1},
    ],
    ids=str,
)
def test_waiting_changes_no_mask(
    segmenter: Segmenter, clip: NDArray[np.uint8], changes: dict[str, object]
) -> None:
    online = masks(segmenter, clip, SETTINGS)
    waited = masks(segmenter, clip, replace(SETTINGS, **changes))  # type: ignore[arg-type]
    assert [frame[0] for frame in waited] == list(range(FRAMES))
    for (_, ours, our_scores), (_, theirs, their_scores) in zip(waited, online, strict=True):
        assert np.array_equal(ours, theirs)
        assert np.array_equal(our_scores, their_scores)


def test_frames_that_wait_leave_out_what_went_meanwhile(
    segmenter: Segmenter, clip: NDArray[np.uint8]
) -> None:
    settings = replace(SETTINGS, lookahead=2)
    with segmenter.stream([SQUARE, DISC], settings) as stream:
        stream.push(clip[0])
        late = stream.add_expression(LONG)
        stream.push(clip[1])
        stream.remove_expression(0)
        results = [*stream.push(clip[2]), *stream.flush()]
    assert [result.expressions for result in results] == [(1,), (1, late), (1, late)]
    with segmenter.stream([DISC], SETTINGS) as stream:
        alone = [result for frame in clip[:3] for result in stream.push(frame)]
    for result, one in zip(results, alone, strict=True):
        assert np.array_equal(result.masks[0], one.masks[0])


def test_streams_in_step_equal_streams_of_their_own(
    segmenter: Segmenter, clip: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [
        SETTINGS,
        replace(SETTINGS, mode="offline", threshold=0.9),
        replace(SETTINGS, lookahead=2, fallback="top1", threshold=1.0),
    ]
    alone = []
    for settings in several:
        with segmenter.stream([SQUARE, DISC], settings) as stream:
            given = [result for frame in clip for result in stream.push(frame)]
            alone.append([result.masks for result in [*given, *stream.flush()]])
    calls = dict.fromkeys(("backbone", "frame_decoder"), 0)
    for name in calls:
        graph = segmenter._session.graphs[name]

        def counted(inputs, name=name, run=graph.run):  # type: ignore[no-untyped-def]
            calls[name] += 1
            return run(inputs)

        monkeypatch.setattr(graph, "run", counted)
    with segmenter.streams_in_step([SQUARE, DISC], several) as streams:
        together: list[list[NDArray[np.bool_]]] = [[] for _ in several]
        for frame in clip:
            for held, decided in zip(together, streams.push(frame), strict=True):
                held += [result.masks for result in decided]
        for held, stream in zip(together, streams.streams, strict=True):
            held += [result.masks for result in stream.flush()]
    assert calls == {"backbone": FRAMES, "frame_decoder": FRAMES}
    for ours, theirs in zip(together, alone, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("other", [{"short_side": 96}, {"size": (64, 96)}, {}], ids=str)
def test_streams_in_step_have_one_short_side(
    segmenter: Segmenter, other: dict[str, object]
) -> None:
    settings = [StreamSettings(short_side=64), StreamSettings(**other)]  # type: ignore[arg-type]
    with pytest.raises(InputError, match="streams in step need settings of one size"):
        segmenter.streams_in_step([DISC], settings)
    # The default is this short side.
    segmenter.streams_in_step([DISC], [StreamSettings(short_side=96), StreamSettings()]).close()


def test_a_threshold_empties_the_masks_of_frames_below_it_alone(
    segmenter: Segmenter, clip: NDArray[np.uint8]
) -> None:
    free = masks(segmenter, clip, SETTINGS)
    every = np.concatenate([scores for _, _, scores in free])
    threshold = float(np.median(every))
    assert every.min() < threshold < every.max()
    limited = masks(segmenter, clip, replace(SETTINGS, threshold=threshold))
    forced = masks(segmenter, clip, replace(SETTINGS, threshold=threshold, fallback="top1"))
    for one, other, top1 in zip(free, limited, forced, strict=True):
        assert np.array_equal(one[2], other[2])
        assert np.array_equal(one[1], top1[1])
        for mask, kept, score in zip(one[1], other[1], one[2], strict=True):
            assert mask.any()
            assert np.array_equal(kept, mask if score > threshold else np.zeros_like(mask))
    emptied = masks(segmenter, clip, replace(SETTINGS, threshold=1.0))
    assert not any(kept.any() for _, kept, _ in emptied)


def test_text_is_encoded_once_and_the_backbone_runs_once_a_frame(
    segmenter: Segmenter, clip: NDArray[np.uint8]
) -> None:
    stages: list[str] = []
    texts = [SQUARE, DISC, LONG, "a dog"]
    with segmenter.stream(texts, SETTINGS, on_stage=lambda s, t: stages.append(s)) as stream:
        for frame in clip:
            stream.push(frame)
    assert stages.count("backbone") == stages.count("frame_decoder") == FRAMES


def test_a_stream_that_follows_nobody_holds_no_tracks(
    segmenter: Segmenter, clip: NDArray[np.uint8]
) -> None:
    """They may lie on a GPU, and a closed stream may be kept."""
    stream = segmenter.stream([SQUARE], SETTINGS)
    stream.push(clip[0])
    steps = stream._steps
    assert steps._tracks.tensors  # type: ignore[attr-defined]
    stream.close()
    assert not steps._tracks.tensors  # type: ignore[attr-defined]
    assert steps._text is None  # type: ignore[attr-defined]
