"""Test the study of a lower precision: its rule, its interval, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rvos_deploy.benchmarks.studies import lower_precision
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.errors import ParityError

APP = typer.Typer()
APP.command()(lower_precision.main)


def rows(*pairs: tuple[float, float], kind: str = "motion") -> list[dict[str, Any]]:
    return [
        {"expression": str(number), "kind": kind, "fp32": wide, "bf16": narrow}
        for number, (wide, narrow) in enumerate(pairs)
    ]


def test_the_loss_is_the_mean_over_expressions() -> None:
    by_video = {"a": rows((0.9, 0.8), (0.5, 0.5)), "b": rows((0.2, 0.6), kind="plural")}
    found = lower_precision.summarise(by_video, "bf16")
    assert found["lost"] == pytest.approx(-0.1)
    assert found["j_and_f"]["fp32"] - found["j_and_f"]["bf16"] == pytest.approx(-0.1)
    assert found["lost_by_kind"] == pytest.approx({"motion": 0.05, "plural": -0.4})
    moved = {"worse": 1, "better": 1, "largest_loss": 0.1, "largest_gain": 0.4}
    assert found["moved"] == pytest.approx(moved)
    assert (found["expressions"], found["videos"]) == (3, 2)


def test_the_interval_is_that_of_videos_not_of_expressions() -> None:
    generator = np.random.default_rng(1)
    of_video = generator.normal(0, 0.1, 60)
    # All expressions of a video err alike, so ten of them tell no more than one.
    by_video = {str(v): rows(*[(0.5 + loss, 0.5)] * 10) for v, loss in enumerate(of_video)}
    found = lower_precision.interval(by_video, "bf16")
    assert found is not None
    standard_error = of_video.std(ddof=1) / 60**0.5
    # A percentile of 9,999 resamples errs by about 3 %, and 60 videos are not normal exactly.
    expected = of_video.mean() + 1.96 * standard_error * np.array([-1, 1])
    assert np.allclose(found, expected, atol=0.2 * standard_error)
    assert lower_precision.interval({"a": rows((0.5, 0.4))}, "bf16") is None
    assert lower_precision.interval({"a": rows((1, 1)), "b": rows((0, 0))}, "bf16") is None


@pytest.mark.parametrize(
    ("expressions", "lost", "message"),
    [(499, 0.0, "499 expressions decide nothing"), (500, 0.0021, r"loses 0\.0021 J&F")],
)
def test_the_rule_needs_enough_expressions_and_a_small_loss(
    expressions: int, lost: float, message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        lower_precision.require_allowed({"expressions": expressions, "lost": lost})
    lower_precision.require_allowed({"expressions": 500, "lost": 0.002})
    lower_precision.require_allowed({"expressions": 500, "lost": -0.5})
    lower_precision.require_allowed({"expressions": 500, "lost": 0.005}, 0.005)
    with pytest.raises(ParityError, match=r"at most 0\.005 is allowed"):
        lower_precision.require_allowed({"expressions": 500, "lost": 0.0051}, 0.005)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two short videos with few expressions."""
    folder = tmp_path_factory.mktemp("hint") / "data"
    config = WorldConfig(frames=8, expressions=(2, 2), emoji=False)
    write_mevis(folder, SplitSpec(seed=5, split="valid", videos=2, config=config))
    return folder


def test_a_stopped_run_goes_on_and_another_runs_file_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str | None] = []
    measured: list[str] = []

    class Loaded:
        backend = SimpleNamespace(describe=lambda: {"name": "openvino"})
        bundle = SimpleNamespace(precision="fp32")

        def __enter__(self) -> Loaded:
            return self

        def __exit__(self, *_: object) -> None: ...

    def load(bundle: Path, backend: str, precision_hint: str | None = None) -> Loaded:
        loaded.append(precision_hint)
        return Loaded()

    def measure(segmenters: Any, split: Any, mode: str) -> Any:
        (video,) = split.videos
        measured.append(video.name)
        assert list(segmenters) == ["fp32", "bf16"]
        return rows((0.5, 0.4)), {"fp32": 2.0, "bf16": 1.0}

    monkeypatch.setattr(lower_precision, "load", load)
    monkeypatch.setattr(lower_precision, "measure_video", measure)
    file = tmp_path / "a.json"
    arguments = ["tiny", "--data", str(data), "--json", str(file)]
    for wrong in ([], ["--hint", "bf16", "--bundle", "tiny"]):
        neither = CliRunner().invoke(APP, [*arguments, *wrong])
        assert neither.exit_code == 2
        assert "exactly one thing to measure" in neither.output
    arguments += ["--hint", "bf16"]
    first = CliRunner().invoke(APP, [*arguments, "--videos", "1"])
    assert first.exit_code == 1
    assert "1 expressions decide nothing" in first.output
    CliRunner().invoke(APP, arguments)
    assert len(measured) == len(set(measured)) == 2
    assert loaded == [None, "bf16"] * 2
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["seconds"] == {"fp32": 4.0, "bf16": 2.0}
    assert list(found["by_video"]) == measured
    other = CliRunner().invoke(APP, [*arguments, "--mode", "online"])
    assert other.exit_code == 2
    assert "holds something else" in other.output
    assert json.loads(file.read_text(encoding="utf-8")) == found


def test_another_bundle_is_measured_as_it_is(data: Path, tmp_path: Path) -> None:
    """The same bundle twice loses nothing, and the record names what was compared."""
    file = tmp_path / "a.json"
    arguments = ["tiny", "--bundle", "tiny", "--data", str(data), "--json", str(file)]
    done = CliRunner().invoke(APP, [*arguments, "--backend", "onnxruntime", "--videos", "1"])
    assert done.exit_code == 1  # too few expressions
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["lost"] == 0.0
    assert found["run"]["measured"] == "--bundle tiny"
    assert found["versions"]["backend"]["name"] == "onnxruntime"
