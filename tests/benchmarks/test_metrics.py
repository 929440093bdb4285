"""Test the benchmark of J and F: equal numbers, the ratio, a complete record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.benchmarks import metrics
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.evaluation.metrics import FrameScores


def test_at_least_twenty_times_the_plain_approach() -> None:
    record = metrics.benchmark_metrics(frames=5)
    assert record["equal"]
    assert record["ratio"] >= 20
    assert record["masks"] == {"frames": 5, "height": 480, "width": 854, "seed": 0}


def test_masks_are_seeded_objects_of_several_sizes() -> None:
    predictions, truths = metrics.render_masks(5, seed=3)
    again, _ = metrics.render_masks(5, seed=3)
    assert np.array_equal(predictions, again)
    assert not np.array_equal(predictions, metrics.render_masks(5, seed=4)[0])
    areas = truths.mean(axis=(1, 2))
    assert 0 < areas.min() < 0.005
    assert areas.max() > 0.03
    scores = metrics.frame_scores(predictions, truths)
    assert scores.j.min() > 0.5
    assert scores.j.max() < 1


def test_a_wrong_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one_ulp(predictions: metrics.Masks, truths: metrics.Masks) -> FrameScores:
        scores = metrics.plain_scores(predictions, truths)
        return FrameScores(j=scores.j, f=np.nextafter(scores.f, 0))

    monkeypatch.setattr(metrics, "frame_scores", off_by_one_ulp)
    with pytest.raises(ParityError, match="2 of 2 frames differ"):
        metrics.benchmark_metrics(frames=2)


def test_no_frames_are_refused() -> None:
    with pytest.raises(InputError, match="pass at least 1"):
        metrics.benchmark_metrics(frames=0)


def test_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    command = [sys.executable, "-m", "rvos_deploy.benchmarks.metrics", "--frames", "2"]
    done = subprocess.run(
        [*command, "--json", str(out)], capture_output=True, text=True, check=True
    )
    record = json.loads(out.read_text())
    assert {"schema", "command", "versions", "machine", "plain", "packed", "ratio"} <= set(record)
    assert record["command"].endswith("--frames 2 --seed 0")
    assert list(record["packed"]["milliseconds"]) == ["p50", "p90", "p95", "p99"]
    assert "equal numbers" in done.stdout
    assert f"{record['packed']['frames_per_second']:.1f}" in done.stdout
