"""A bundle evaluated without a mask on disk: the stream's own masks, one backbone pass a frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import rvos_deploy as rvos
from rvos_deploy.datasets import read_mevis
from rvos_deploy.evaluation.bundle_masks import bundle_masks, bundle_settings, evaluate_bundle
from rvos_deploy.evaluation.evaluate import ScoringOptions, evaluate


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Iterator[rvos.Segmenter]:
    with rvos.load(tiny_bundle) as loaded:
        yield loaded


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_masks_are_the_streams(segmenter: rvos.Segmenter, split: Path, mode: str) -> None:
    settings = rvos.StreamSettings(mode=mode, threshold=0.0, size=(64, 96))
    video = read_mevis(split).videos[0]
    masks = np.stack(list(bundle_masks(segmenter, settings)(video)))
    assert masks.shape == (4, 3, 32, 48)
    with segmenter.stream([e.text for e in video.expressions], settings) as stream:
        wanted = [m.masks for t in range(4) for m in stream.push(video.image(t))]
        wanted += [m.masks for m in stream.flush()]
    assert np.array_equal(masks, wanted)
    assert masks.any()


def test_evaluation_equals_that_of_written_masks(
    segmenter: rvos.Segmenter,
    split: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = {"backbone": 0}
    graph = segmenter._session.graphs["backbone"]
    run = graph.run

    def counted(inputs):  # type: ignore[no-untyped-def]
        passes["backbone"] += 1
        return run(inputs)

    monkeypatch.setattr(graph, "run", counted)
    settings = rvos.StreamSettings(mode="offline", threshold=0.0, size=(64, 96))
    steps: list[tuple[str, int, int | None]] = []
    direct = evaluate_bundle(
        segmenter,
        split,
        options=ScoringOptions(progress=lambda *step: steps.append(step)),
        settings=settings,
        submission=tmp_path / "s.zip",
    )
    assert passes["backbone"] == 8  # frames of both videos, whatever the expressions
    assert ("frames", 8, 8) in steps
    assert steps[-1] == ("scores", 8, 8)
    import zipfile

    zipfile.ZipFile(tmp_path / "s.zip").extractall(tmp_path / "masks")
    written = evaluate(tmp_path / "masks", split)
    assert direct.scores == written.scores
    assert len({s.j for s in direct.scores}) > 1


def test_defaults_are_offline_with_the_protocols_fallback(
    segmenter: rvos.Segmenter, ref_davis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[rvos.StreamSettings] = []

    def stream(texts, settings, **options):  # type: ignore[no-untyped-def]
        used.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(segmenter, "stream", stream)
    with pytest.raises(KeyboardInterrupt):
        evaluate_bundle(segmenter, ref_davis, "ref-davis")
    assert (used[0].mode, used[0].fallback) == ("offline", "top1")


def test_settings_of_a_report_are_resolved(segmenter: rvos.Segmenter) -> None:
    config = segmenter.bundle.config
    found = bundle_settings(segmenter, rvos.StreamSettings(mode="online"))
    assert found["threshold"] == config.threshold
    assert (found["size"], found["short_side"]) == (list(config.input_size), None)
    assert found["memory"] == 64
    assert found["model"] == config.name
