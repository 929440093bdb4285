"""Test what a bundle loses against another one: counted by expression, limited, and reported."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rvos_deploy.benchmarks.studies import bundle_parity
from rvos_deploy.datasets import read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.errors import ParityError

APP = typer.Typer()
APP.command()(bundle_parity.main)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one short video with few expressions."""
    folder = tmp_path_factory.mktemp("agreement") / "data"
    config = WorldConfig(frames=8, expressions=(2, 2), emoji=False)
    write_mevis(folder, SplitSpec(seed=5, split="valid", videos=1, config=config))
    return folder


def test_a_bundle_loses_nothing_against_itself(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    arguments = ["tiny", "--reference", "tiny", "--data", str(data), "--limit", "0.002"]
    result = CliRunner().invoke(APP, [*arguments, "--json", str(file)])
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["lost"] == 0.0
    assert (found["moved"], found["largest_loss"]) == (0, 0.0)
    assert found["reference"] == found["offline"]
    assert found["expressions"] == len(read_mevis(data).videos[0].expressions)
    assert found["command"].endswith(f"tiny --reference tiny --data {data} --limit 0.002")


def scores(*values: float) -> tuple[SimpleNamespace, str]:
    rows = [
        SimpleNamespace(j_and_f=v, j=v, f=v, predicted_empty=False, no_target=False, kind="motion")
        for v in values
    ]
    return SimpleNamespace(scores=rows), "fp16"


def test_the_loss_is_the_difference_of_means(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    answers = {"reference": scores(0.5, 0.9, 0.7), "half": scores(0.5, 0.6, 0.705)}
    monkeypatch.setattr(bundle_parity, "_offline", lambda bundle, *_: answers[bundle.name])
    found = bundle_parity.compare_bundles(Path("half"), Path("reference"), read_mevis(data))
    assert found["lost"] == pytest.approx(np.mean([0.5, 0.9, 0.7]) - np.mean([0.5, 0.6, 0.705]))
    assert found["moved"] == 1
    assert found["largest_loss"] == pytest.approx(0.3)
    with pytest.raises(ParityError, match=r"loses 0\.0983 J&F, at most 0\.002 is allowed"):
        bundle_parity.require_parity(found, 0.002)
    bundle_parity.require_parity(found, 0.1)
    bundle_parity.require_parity(found, None)


def test_beyond_the_limit_the_exit_code_is_1_and_the_record_is_kept(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    answers = iter([scores(0.9), scores(0.8)])
    monkeypatch.setattr(bundle_parity, "_offline", lambda *_: next(answers))
    file = tmp_path / "a.json"
    arguments = ["tiny", "--reference", "tiny", "--data", str(data), "--json", str(file)]
    result = CliRunner().invoke(APP, [*arguments, "--limit", "0.002"])
    assert result.exit_code == 1
    assert "error: the bundle loses 0.1000 J&F" in result.output
    assert json.loads(file.read_text(encoding="utf-8"))["lost"] == pytest.approx(0.1)


@pytest.mark.parametrize("also", [[], ["--reference", "tiny", "--checkpoint", "c.safetensors"]])
def test_exactly_one_reference_is_required(data: Path, also: list[str]) -> None:
    result = CliRunner().invoke(APP, ["tiny", "--data", str(data), *also])
    assert result.exit_code == 2
    assert "pass --checkpoint FILE (PyTorch) or --reference BUNDLE" in result.output
