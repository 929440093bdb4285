"""Test ``train`` by presets and with ``--set``: runs, records and messages."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from rvos_deploy.cpu_ops import ms_deform_attn
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.networks.pan2024.config import PRESETS
from rvos_deploy.training.recipe_file import packaged_recipes, read_recipe

SMALL = (
    "stage.0.steps=2", "stage.0.batch=1", "stage.0.length=2", "loss.num_points=16",
    "model.num_queries=6", "model.initializer=weighted", "augment.short_sides=[64]",
    "checkpoint_every=1", "workers=0",
)  # fmt: skip


def options(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


# Where no compiler was at the installation, training says that it is slower.
SLOW = (
    []
    if ms_deform_attn.available()
    else [f"warning: training is slower than it could be: {ms_deform_attn.NOT_BUILT}"]
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    world = WorldConfig(height=64, width=96, frames=8, objects=(2, 2), expressions=(1, 2))
    write_mevis(tmp_path / "data", SplitSpec(seed=1, split="train", videos=1, config=world))
    return tmp_path / "data"


def test_a_preset_trains_on_a_folder_and_its_run_goes_on(
    process: Callable, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["train", "tiny", "--data", data, "--out", run, "--no-preflight"]
    first = process(*command, *options(*SMALL), "--steps", 1)
    assert first.code == 0, first.stderr
    assert "step 1 of 2" in first.stdout
    warnings = first.stderr.splitlines()
    pattern = r"warning: the recipe validates every 2000 steps, but --valid is not"
    assert re.match(pattern, warnings[0])
    assert warnings[1:] == SLOW
    noted = [f"step 0: {line.removeprefix('warning: ')}" for line in warnings]
    assert (run / "warnings.txt").read_text().splitlines() == noted

    recorded = json.loads((run / "recipe.json").read_text())
    assert (recorded["data"], recorded["model"]["name"]) == ("mevis", "tiny")
    assert recorded["model"]["initializer"] == "weighted"
    assert recorded["model"]["num_queries"] == 6
    assert [stage["steps"] for stage in recorded["stages"]] == [2]
    assert recorded["loss"]["num_points"] == 16

    other = process(*command, *options(*SMALL, "stage.joint.batch=2"), "--resume")
    assert other.code == 2
    assert "was trained with another stage.0.batch" in other.error
    assert "--set" in other.error
    assert json.loads((run / "recipe.json").read_text()) == recorded

    # The former name of --no-preflight is accepted.
    former = [*command[:-1], "--no-gates"]
    last = process(*former, *options(*SMALL, "validate_every=0"), "--resume")
    assert last.code == 0, last.stderr
    assert "step 2 of 2" in last.stdout
    assert last.stderr.splitlines() == SLOW

    from rvos_deploy.export.source import find_source

    source = find_source(str(run))
    assert (source.config.initializer, source.config.num_queries) == ("weighted", 6)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("sprites_tiny", "stage.9.steps=1", "no such stage; known: stage.0.KEY (masks)"),
        ("sprites_tiny", "steps", "write KEY=VALUE"),
        ("mevis_large", "stage.joint.stepz=1", "unknown key 'stepz'; known: name, steps"),
        ("tiny", "model.dim=wide", "--set model.dim=wide: Expected int, got str"),
        ("tiny", "stage.masks.batch=0", "stage 'masks': batch must be at least 1, found 0"),
    ],
)
def test_a_wrong_change_is_one_line(
    rvos: Callable, tmp_path: Path, config: str, change: str, message: str
) -> None:
    result = rvos("train", config, "--out", tmp_path / "run", "--set", change)
    assert result.code == 2
    assert message in result.error
    assert not (tmp_path / "run").exists()


def test_help_names_what_there_is_to_train(rvos: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", rvos("train", "--help").stdout).split())
    for name in (*packaged_recipes(), *PRESETS):
        assert re.search(rf"\b{name}\b", shown), name
    assert "a checkpoint of Mask2Former or FC-CLIP" in shown
    assert "--set KEY=VALUE" in shown


DOCS = Path(__file__).parents[2] / "docs"


def documented() -> list[list[str]]:
    """Commands of docs/training.md, each from ``rvos-deploy`` on."""
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / "training.md").read_text(), re.DOTALL)
    words = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [line[line.index("rvos-deploy") + 1 :] for line in words if "rvos-deploy" in line]


def test_documented_commands_have_the_options_that_they_use(rvos: Callable) -> None:
    commands = documented()
    assert len(commands) > 10
    for command, *arguments in commands:
        shown = rvos(command, "--help").stdout
        for option in (word for word in arguments if word.startswith("--")):
            assert re.search(rf"{option}\b", shown), (command, option)


def test_documented_changes_fit_their_recipes() -> None:
    checked = 0
    for command, *arguments in documented():
        if command == "train":
            changes = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
            folder = ["data=mevis"] if "--data" in arguments else []
            recipe = read_recipe(arguments[0], [*folder, *changes])
            assert (recipe.data == "sprites") == ("--data" not in arguments)
            checked += len(changes)
    assert checked > 2
