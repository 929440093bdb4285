"""Recipes as TOML files: those of the package by name, others by path. Imports no torch.

The keys of a file are the fields of the dataclasses in recipe.py, and so are the defaults of keys
that a file leaves out (docs/recipes.md lists them all).
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from rvos_deploy.datasets.detection import find_layout
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import PRESETS, ModelConfig, preset
from rvos_deploy.training.recipe import LossSettings, Recipe, Stage
from rvos_deploy.training.recipe_changes import (
    PLAIN_KEYS,
    TABLES,
    apply_changes,
    parse_change,
)

_MAX_BYTES = 2**20


def read_recipe(
    name: str | os.PathLike[str],
    changes: Sequence[str] = (),
    data: str | os.PathLike[str] | None = None,
) -> Recipe:
    """Read a recipe: a TOML file, a name of those that come with the package, or a model preset.

    A preset is trained by the stages of a packaged recipe that suit it, on the data set in
    ``data``, whose layout (MeViS or Ref-YouTube-VOS) is detected.

    Args:
        name: path of a file, or name of a recipe or preset.
        changes: ``KEY=VALUE`` of single keys, as
            :func:`rvos_deploy.training.recipe_changes.apply_changes` takes them.
        data: folder of the train split, for a preset.

    Raises:
        InputError: there is no such recipe, or it is wrong; names the file and what is wrong.
    """
    filled: dict[str, str] = {}
    source = name
    if str(name) in PRESETS:
        filled = _preset_keys(str(name), changes, data)
        source = _recipe_of_preset(str(name), filled.get("data"))
    text = _read_text(source)
    try:
        return parse_recipe(apply_changes({**_toml(text), **filled}, changes))
    except RecursionError:
        raise InputError(f"recipe {name} is nested too deeply to be one") from None
    except ValueError as error:  # InputError is one
        raise InputError(f"recipe {name}: {error}") from error


def _preset_keys(
    name: str, changes: Sequence[str], data: str | os.PathLike[str] | None
) -> dict[str, str]:
    """Give ``model`` and, where it is known, ``data`` of the recipe for a preset."""
    named = [change.value for change in map(parse_change, changes) if change.key == "data"]
    if named:
        return {"model": name, "data": str(named[-1])}
    if data is None:
        return {"model": name}
    layout = find_layout(data)
    if layout is None:
        raise InputError(f"{data} has no ground truth; train on a split that has masks")
    return {"model": name, "data": layout}


def _recipe_of_preset(name: str, data: str | None) -> str:
    """Name the packaged recipe whose stages suit a preset and the data."""
    if name != "tiny":
        return "mevis_large"
    return "sprites_tiny" if data in (None, "sprites") else "mevis_tiny"


def _read_text(name: str | os.PathLike[str]) -> str:
    """Read the text of a packaged recipe or of a file. InputError when there is none."""
    packaged = packaged_recipes()
    if str(name) in packaged:
        return packaged[str(name)]
    if Path(name).is_file():
        return _read(Path(name))
    raise InputError(
        f"recipe {name} does not exist; give a .toml file, a recipe of the package "
        f"({', '.join(packaged)}), or a preset ({', '.join(PRESETS)})"
    )


def packaged_recipes() -> dict[str, str]:
    """Read the texts of the recipes in ``rvos_deploy/configs``, by name."""
    folder = resources.files("rvos_deploy") / "configs"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """Make a recipe from the content of a TOML file.

    ``model`` is the name of a preset, or a table with ``preset`` and the fields that differ.

    Raises:
        InputError: a table or key is unknown, missing, or has a wrong type or value; names it.
    """
    values = dict(content)
    if unknown := sorted(set(values) - {*PLAIN_KEYS, *TABLES, "stage"}):
        known = ", ".join((*PLAIN_KEYS, *TABLES, "stage"))
        raise InputError(f"recipe has unknown {reprlib.repr(unknown[0])}; known: {known}")
    stages = values.pop("stage", [])
    if not isinstance(stages, list):
        raise InputError("stages are written as [[stage]], found one table [stage]")
    if "model" not in values or "data" not in values:
        raise InputError("a recipe needs 'model' and 'data'")
    values["model"] = _model(values["model"])
    for name, kind in TABLES.items():
        if name in values and name != "model":
            values[name] = _make(kind, values[name], name)
    loss = values.get("loss", LossSettings())
    values["stages"] = tuple(_stage(stage, loss) for stage in stages)
    return _make(Recipe, values, "recipe")


def _stage(table: object, loss: LossSettings) -> Stage:
    """Make a stage; what its own loss table leaves out is the recipe's."""
    if not isinstance(table, dict) or "loss" not in table:
        return _make(Stage, table, "stage")
    changes = table["loss"]
    merged = {**asdict(loss), **changes} if isinstance(changes, dict) else changes
    return _make(Stage, {**table, "loss": _make(LossSettings, merged, "stage.loss")}, "stage")


def _model(given: object) -> ModelConfig:
    if isinstance(given, str):
        return preset(given)
    if not isinstance(given, dict) or not isinstance(given.get("preset"), str):
        raise InputError("model must be a preset's name, or a table with 'preset' and its changes")
    changes = {key: value for key, value in given.items() if key != "preset"}
    return _make(ModelConfig, {**preset(given["preset"]).as_dict(), **changes}, "model")


_Made = TypeVar("_Made")


def _make(kind: type[_Made], table: object, where: str) -> _Made:
    """Make an instance from a table; values of the tables in it may be instances already.

    Raises:
        InputError: a field that is unknown, missing, or of another type or value.
    """
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a table, found {reprlib.repr(table)}")
    hints = get_type_hints(kind)
    if unknown := sorted(set(table) - set(hints)):
        raise InputError(
            f"{where} has unknown {reprlib.repr(unknown[0])}; known: {', '.join(hints)}"
        )
    values = {}
    for name, value in table.items():
        try:
            values[name] = msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise InputError(f"{where}: {name}: {error}") from None
    missing = [
        field.name
        for field in fields(kind)  # type: ignore[arg-type]
        if field.name not in values and field.default is field.default_factory is MISSING
    ]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}")
    return kind(**values)


def _read(file: Path) -> str:
    """Read the text of a file. InputError when it cannot be read, or is no text."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"recipe {file} has more than {_MAX_BYTES} bytes, so it is none")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"recipe {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {file} is not text in UTF-8 ({error})") from error


def _toml(text: str) -> dict[str, Any]:
    import tomllib

    loaded: dict[str, Any] = tomllib.loads(text)
    return loaded
