"""Test that docs/recipes.md is generated from the dataclasses and describes every key."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

from rvos_deploy.datasets.moving_sprites.world import KINDS
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import ModelConfig, preset
from rvos_deploy.training import losses, recipe_reference
from rvos_deploy.training.logs import COLUMNS
from rvos_deploy.training.losses import LossWeights, TubeLosses
from rvos_deploy.training.recipe import DATA, SCHEDULES, LossSettings, Recipe, Stage
from rvos_deploy.training.recipe_file import packaged_recipes
from rvos_deploy.training.recipe_reference import LOSSES, TABLES, Row, reference, rows

FILE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_document_equals_the_generated_one() -> None:
    assert FILE.read_text(encoding="utf-8") == reference(), f"run {recipe_reference.COMMAND}"


@pytest.mark.parametrize(
    ("prefix", "kind"), TABLES.values(), ids=lambda v: getattr(v, "__name__", v)
)
def test_every_field_has_a_meaning_in_whole_sentences(prefix: str, kind: type) -> None:
    found = rows(kind, prefix)
    assert len(found) == len(fields(kind))  # type: ignore[arg-type]
    for row in found:
        assert re.fullmatch(r"([A-Z]|open_clip).{8,}\.", row.meaning), row
        assert row.type, row
        assert row.default, row
        assert "``" not in row.meaning
        assert "[" not in re.sub(r"`[^`]*`", "", row.meaning), "a unit that was not recognised"


def test_a_field_without_a_meaning_is_refused() -> None:
    @dataclass
    class Forgetful:
        """Has two keys.

        Attributes:
            told: What it means.
        """

        told: int
        untold: int = 0

    with pytest.raises(InputError, match="Forgetful: untold must be both"):
        rows(Forgetful)

    @dataclass
    class Stale:
        """Had two keys.

        Attributes:
            told: What it means.
            gone: What it meant.
        """

        told: int

    with pytest.raises(InputError, match="Stale: gone must be both"):
        rows(Stale)


def test_a_row_has_type_default_and_unit() -> None:
    by_key = {
        row.key: row for row in (*rows(Stage, "stage.N."), *rows(Recipe), *rows(LossSettings))
    }
    assert by_key["`stage.N.window`"][:4] == (
        "`stage.N.window`",
        "integer or none",
        "none",
        "frames",
    )
    assert by_key["`stage.N.steps`"].default == "required"
    assert by_key["`stage.N.weight_decay`"].default == "`0.05`"
    assert by_key["`stage`"].type == "list of tables"
    assert by_key["`match_class`"].type == "number or none"
    assert by_key["`preflight`"] == Row(
        "`preflight`", "true or false", "`true`", "", by_key["`preflight`"].meaning
    )


@pytest.mark.parametrize(
    ("kind", "key", "choices"),
    [
        (Recipe, "data", DATA),
        (Stage, "schedule", SCHEDULES),
        (Stage, "kinds", KINDS),
        (LossSettings, "frame_objects", ("all", "referred")),
    ],
)
def test_meanings_name_all_choices(kind: type, key: str, choices: tuple[str, ...]) -> None:
    (meaning,) = (row.meaning for row in rows(kind) if row.key == f"`{key}`")
    assert all(f'"{choice}"' in meaning for choice in choices)


def test_switches_marked_as_ours_are_off_in_large_paper() -> None:
    paper, plain = preset("large-paper"), preset("large")
    switches = {
        row.key.strip("`") for row in rows(ModelConfig) if re.search(r"\b[Oo]urs\b", row.meaning)
    }
    assert len(switches) == 12
    for name in switches:
        assert getattr(paper, name) in (False, "cosine", "linear", "threshold", "separate"), name
        assert getattr(paper, name) != getattr(plain, name) or name == "text_words"


def test_the_losses_are_those_of_the_log_with_their_weights() -> None:
    begin, end = COLUMNS.index("stage") + 1, COLUMNS.index("total")
    assert tuple(loss.name for loss in LOSSES) == COLUMNS[begin:end]
    one = torch.ones(())
    tubes = TubeLosses(one, one, one, one)
    zero = dict.fromkeys(("frame_class", "video_class", "mask", "dice", "similarity"), 0.0)
    for weight in zero:
        total = losses._named(tubes, tubes, one, LossWeights(**{**zero, weight: 1.0}))["total"]
        assert total == sum(loss.weight == weight for loss in LOSSES)


def test_the_text_names_existing_keys_and_recipes() -> None:
    training = (FILE.parent / "training.md").read_text(encoding="utf-8")
    for name in packaged_recipes():
        assert f"`{name}`" in training
