"""Recipes as TOML files: those of the package by name, others by path. Imports no torch.

The tables of a file are the fields of the dataclasses in recipe.py; what it leaves out has the
default that stands there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from rvos_deploy.errors import InputError
from rvos_deploy.model.config import ModelConfig, preset
from rvos_deploy.sprites.world import WorldConfig
from rvos_deploy.training.recipe import Augmentation, LossSettings, Recipe, Stage


def read_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe: a TOML file, or a name of those that come with the package.

    Raises:
        InputError: neither, or not a recipe; names the file and what is wrong in it.
    """
    file = Path(name)
    packaged = packaged_recipes()
    if str(name) in packaged:
        text = packaged[str(name)]
    elif file.is_file():
        text = file.read_text(encoding="utf-8")
    else:
        raise InputError(
            f"recipe {name} does not exist; give a .toml file, or one of {', '.join(packaged)}"
        )
    try:
        return parse_recipe(_toml(text))
    except ValueError as error:  # InputError is one
        raise InputError(f"recipe {name}: {error}") from error


def packaged_recipes() -> dict[str, str]:
    """Texts of the recipes in ``rvos_deploy/configs``, by name."""
    folder = resources.files("rvos_deploy") / "configs"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """Make a recipe of what a TOML file holds. InputError for anything unknown or of a wrong type.

    ``model`` is the name of a preset, or a table of its fields with the name as ``preset``.
    """
    values = dict(content)
    stages = values.pop("stage", [])
    if not isinstance(stages, list):
        raise InputError("stages are written as [[stage]], found one table [stage]")
    if "model" not in values or "data" not in values:
        raise InputError("a recipe needs 'model' and 'data'")
    values["model"] = _model(values["model"])
    for name, kind in (("sprites", WorldConfig), ("augment", Augmentation), ("loss", LossSettings)):
        if name in values:
            values[name] = _make(kind, values[name], name)
    values["stages"] = tuple(_stage(stage, values.get("loss", LossSettings())) for stage in stages)
    return _make(Recipe, values, "recipe")


def _stage(table: object, loss: LossSettings) -> Stage:
    """A stage; what its own loss table leaves out is the recipe's."""
    if isinstance(table, dict) and "loss" in table:
        changes = table["loss"]
        merged = {**asdict(loss), **changes} if isinstance(changes, dict) else changes
        table = {**table, "loss": _make(LossSettings, merged, "stage.loss")}
    return _make(Stage, table, "stage")


def _model(given: object) -> ModelConfig:
    if isinstance(given, str):
        return preset(given)
    if not isinstance(given, dict) or "preset" not in given:
        raise InputError("model must be a preset's name, or a table with 'preset' and its changes")
    changes = {key: value for key, value in given.items() if key != "preset"}
    return ModelConfig.from_dict({**preset(given["preset"]).as_dict(), **changes})


_TYPES = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": ()}
_Made = TypeVar("_Made")


def _make(kind: type[_Made], table: object, where: str) -> _Made:
    """An instance from a table, types checked by the annotations."""
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a table, found {table!r}")
    known = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - set(known)):
        raise InputError(f"{where} has unknown '{unknown[0]}'; known: {', '.join(known)}")
    ready = {}
    for key, value in table.items():
        ready[key] = tuple(value) if isinstance(value, list) else value
        allowed: list[Any] = [
            t for part in known[key].split(" | ") for t in _TYPES.get(part, (None,))
        ]
        if value is None and known[key].endswith("| None"):
            continue
        wrong_bool = isinstance(value, bool) and bool not in allowed
        if None not in allowed and (wrong_bool or not isinstance(value, tuple(allowed))):
            raise InputError(f"{where}: {key} must be of type {known[key]}, found {value!r}")
        if known[key].startswith("tuple") and not isinstance(ready[key], tuple):
            raise InputError(f"{where}: {key} must be a list, found {value!r}")
    try:
        return kind(**ready)
    except TypeError as error:
        missing = str(error).split("argument", 1)[-1].lstrip("s: ")
        raise InputError(f"{where} lacks {missing}") from None


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    loaded: dict[str, Any] = tomllib.loads(text)
    return loaded
