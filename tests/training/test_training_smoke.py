"""Test smoke runs: a recipe with less of everything, also at the paper's scale on a CPU."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.training.logs import read_log
from rvos_deploy.training.recipe_file import packaged_recipes, parse_recipe, read_recipe
from rvos_deploy.training.smoke import smoke_recipe

SMALLER = {
    "model.clip_pretrained", "model.input_size", "workers", "validation_videos", "preflight",
    "augment.short_sides", "augment.long_side", "loss.num_points", "stages.steps", "stages.length",
    "stages.cached", "stages.cached_length", "stages.loss.num_points",
}  # fmt: skip


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return every plain value by its dotted name, with the stages numbered."""
    if isinstance(values, dict):
        parts = [flat(v, f"{prefix}.{k}" if prefix else k).items() for k, v in values.items()]
        return {name: value for part in parts for name, value in part}
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], dict):
        stages = [flat(stage, prefix) for stage in values]
        names = {name for stage in stages for name in stage}
        return {name: tuple(stage.get(name) for stage in stages) for name in names}
    return {prefix: values}


@pytest.mark.parametrize("name", packaged_recipes())
def test_only_amounts_are_reduced(name: str) -> None:
    whole, small = (flat(asdict(r)) for r in (read_recipe(name), smoke_recipe(read_recipe(name))))
    assert whole.keys() == small.keys()
    assert {field for field in whole if whole[field] != small[field]} <= SMALLER
    assert set(small["stages.steps"]) == {2}
    assert max(small["stages.length"]) <= 2


def test_a_smoke_run_of_the_paper_keeps_network_precision_batch_and_mixed_sizes() -> None:
    recipe = smoke_recipe(read_recipe("mevis_large"))
    large = preset("large").as_dict()
    changed = {k for k, v in recipe.model.as_dict().items() if v != large[k]}
    assert changed == {"clip_pretrained", "input_size"}
    assert recipe.precision == "bf16-mixed"
    (stage,) = recipe.stages
    assert (stage.batch, stage.accumulate) == (8, 0)
    assert len(recipe.augment.short_sides) > 1
    assert recipe.augment.crop > 0


def test_no_amount_of_a_short_recipe_grows() -> None:
    table = {"name": "a", "steps": 1, "batch": 1, "length": 1, "learning_rate": 1e-3}
    recipe = parse_recipe(
        {"model": "tiny", "data": "sprites", "stage": [table], "loss": {"num_points": 16}}
    )
    small = smoke_recipe(recipe)
    assert small.stages == recipe.stages
    assert small.loss == recipe.loss
    assert small.workers == 0


@pytest.mark.slow
def test_the_paper_scale_recipe_runs_on_a_cpu(rvos: Any, tmp_path: Path) -> None:
    """The commands of docs/training.md need a minute of two cores and 4 GiB."""
    data, run = tmp_path / "sprites", tmp_path / "smoke"
    for split, videos in (("train", 4), ("valid", 1)):
        made = ("--split", split, "--videos", videos, "--frames", 8)
        assert rvos("make-data", "sprites", "--out", data, *made).code == 0
    folders = ("--data", data / "train", "--valid", data / "valid", "--out", run)
    result = rvos("train", "mevis_large", *folders, "--smoke")
    assert result.code == 0, result.stderr
    assert f"{run / 'checkpoints' / 'step-00000002'}: step 2 of 2" in result.stdout
    rows = read_log(run / "training.csv")
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(row["total"])) for row in rows)
    assert all(float(row["gradient_norm"]) > 0 for row in rows)
    (scored,) = read_log(run / "validation.csv")
    assert 0 <= float(scored["j_and_f"]) <= 1
    recorded = json.loads((run / "recipe.json").read_text())
    assert recorded["model"]["clip"] == "convnext_large_d_320"
    assert (run / "clip.safetensors").stat().st_size > 1e9
    shutil.rmtree(run)
