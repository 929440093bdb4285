"""A sweep's rows are those of separate evaluations, and nothing is computed twice for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rvos_deploy as rvos
from rvos_deploy.datasets import DataSplit, read_mevis, read_ref_davis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation import sweep_scoring, threshold_sweep
from rvos_deploy.evaluation.bundle_masks import evaluate_bundle
from rvos_deploy.evaluation.evaluate import ScoringOptions
from rvos_deploy.evaluation.sweep_report import best_row, sweep_report
from rvos_deploy.evaluation.threshold_sweep import GRID, distinct_answers, sweep_thresholds
from rvos_deploy.runtime.decided_frame import DecidedFrame

ONLINE = rvos.StreamSettings(lookahead=2, memory=4, anchors=1, size=(64, 96))
OFFLINE = rvos.StreamSettings(mode="offline", size=(64, 96))


@pytest.fixture(scope="module")
def segmenter() -> Iterator[rvos.Segmenter]:
    """The trained network: its scores lie far apart."""
    with rvos.load("tiny") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> DataSplit:
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    root = tmp_path_factory.mktemp("sprites") / "valid"
    write_mevis(root, SplitSpec(seed=4, split="valid", videos=2, config=config))
    return read_mevis(root)


def count_calls(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of the first argument of every call."""
    sizes: list[int] = []
    function = getattr(owner, name)

    def counted(first: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(first))
        return function(first, *rest, **options)

    monkeypatch.setattr(owner, name, counted)
    return sizes


def test_every_row_is_a_separate_evaluation(segmenter: rvos.Segmenter, sprites: DataSplit) -> None:
    sprites = DataSplit(sprites.meta, sprites.videos[:1])
    swept = sweep_thresholds(segmenter, sprites, online=ONLINE, at=(0.2, 0.8))
    assert swept.thresholds == (0.2, 0.6, 0.8)  # 0.6 is the bundle's own
    assert any(score.no_target for score in swept.scores["online"][0])
    rows = sweep_report(swept, segmenter)["modes"]
    for mode, settings in (("offline", OFFLINE), ("online", ONLINE)):
        for index, value in enumerate(swept.thresholds):
            at = replace(settings, threshold=value)
            alone = evaluate_bundle(segmenter, sprites, settings=at)
            assert swept.scores[mode][index] == alone.scores
        found = [row["j_and_f"] for row in rows[mode]["rows"]]
        assert len(set(found)) == 3
        assert all(row["n_acc"] is not None for row in rows[mode]["rows"])


def test_one_pass_and_every_answer_once(
    segmenter: rvos.Segmenter, sprites: DataSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_heads = expected_scores = 0
    for video in sprites.videos:
        texts = [expression.text for expression in video.expressions]
        for settings in (OFFLINE, ONLINE):
            decided: list[NDArray[np.float32]] = []

            def render(frame: DecidedFrame, to: list = decided) -> NDArray[np.bool_]:
                to.append(frame.scores)
                return np.zeros((len(frame.scores), 0, 0), np.bool_)

            with segmenter.stream(texts, settings, render=render) as stream:
                for index in range(len(video.frames)):
                    stream.push(video.image(index))
                assert len(list(stream.flush())) <= len(decided) == len(video.frames)
            for scores in decided:
                sets = [
                    {tuple(line > np.float32(value)) for value in (*GRID, 0.6)} for line in scores
                ]
                expected_heads += max(map(len, sets))
                expected_scores += sum(map(len, sets))
    graphs = segmenter._session.graphs
    calls = {
        name: count_calls(graphs[name], "run", monkeypatch)
        for name in ("backbone", "frame_decoder", "mask_head")
    }
    scored = count_calls(sweep_scoring, "frame_scores", monkeypatch)
    sweep_thresholds(segmenter, sprites, online=ONLINE)
    assert len(calls["backbone"]) == len(calls["frame_decoder"]) == 16
    assert len(calls["mask_head"]) == expected_heads
    assert expected_heads < 32 * len(GRID)  # frames of two modes
    assert sum(scored) == expected_scores


def test_distinct_answers() -> None:
    # Four thresholds, three expressions, two queries.
    passing = np.array(
        [
            [[1, 1], [1, 0], [0, 0]],
            [[1, 1], [1, 0], [0, 0]],
            [[0, 1], [0, 0], [0, 0]],
            [[0, 0], [0, 0], [0, 0]],
        ],
        bool,
    )
    answers, first = distinct_answers(passing, [[0], [1], [2]])
    assert answers.T.tolist() == [[0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert first.T.tolist() == [[0, 2, 3], [0, 2, 2], [0, 0, 0]]
    # Masks that depend on one another differ where any of them chooses otherwise.
    answers, first = distinct_answers(passing, [[0, 1], [2]])
    assert answers.T.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [0, 0, 0, 0]]
    assert first.T.tolist() == [[0, 2, 3], [0, 2, 3], [0, 0, 0]]


@pytest.mark.parametrize("overlaps", ["argmax", "keep"])
def test_objects_of_several_annotators(tiny_bundle: Path, ref_davis: Path, overlaps: Any) -> None:
    split = read_ref_davis(ref_davis)
    with rvos.load(tiny_bundle) as segmenter:
        online = rvos.StreamSettings(fallback="top1", size=(64, 96))
        at = (0.0, 1.0)
        swept = sweep_thresholds(
            segmenter, split, "ref-davis", online, options=ScoringOptions(overlaps=overlaps), at=at
        )
        assert swept.overlaps == overlaps
        for mode in ("offline", "online"):
            for index, value in enumerate(swept.thresholds):
                settings = replace(online, mode=mode, threshold=value)
                alone = evaluate_bundle(
                    segmenter,
                    split,
                    "ref-davis",
                    settings,
                    options=ScoringOptions(overlaps=overlaps),
                )
                assert swept.scores[mode][index] == alone.scores
            # The fallback holds at every threshold: the best query answers even at 1.
            assert not all(score.predicted_empty for score in swept.scores[mode][-1])
            assert swept.scores[mode][0] != swept.scores[mode][-1]


def test_processes_and_small_chunks_say_the_same(
    segmenter: rvos.Segmenter, sprites: DataSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = sweep_thresholds(segmenter, sprites, online=ONLINE, at=(0.2, 0.8))
    monkeypatch.setattr(threshold_sweep, "_CHUNK_BYTES", 1)
    steps: list[tuple[str, int, int | None]] = []
    many = sweep_thresholds(
        segmenter,
        sprites,
        options=ScoringOptions(jobs=2, progress=lambda *step: steps.append(step)),
        online=ONLINE,
        at=(0.2, 0.8),
    )
    assert many.scores == alone.scores
    assert steps[-1] == ("scores", 32, 32)
    assert ("frames", 16, 16) in steps


def test_the_best_row() -> None:
    rows = [{"threshold": t, "j_and_f": q} for t, q in ((0.2, 0.5), (0.4, 0.7), (0.6, 0.7))]
    assert best_row(rows, own=0.65)["threshold"] == 0.6
    assert best_row(rows, own=0.1)["threshold"] == 0.4


def test_refusals(segmenter: rvos.Segmenter, sprites: DataSplit) -> None:
    with pytest.raises(InputError, match=r"threshold must lie in 0\.\.1, found 1\.5"):
        sweep_thresholds(segmenter, sprites, at=(0.5, 1.5))
    with pytest.raises(InputError, match="overlaps have no meaning in mevis"):
        sweep_thresholds(segmenter, sprites, options=ScoringOptions(overlaps="argmax"))
    both: list[Callable[[], rvos.StreamSettings]] = [lambda: OFFLINE, rvos.StreamSettings]
    with pytest.raises(InputError, match="streams in step need settings of one size"):
        segmenter.streams_in_step(["a square"], [make() for make in both])
