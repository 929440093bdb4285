"""Recipes as TOML files: those of the package by name, others by path. Imports no torch.

The tables of a file are the fields of the dataclasses in recipe.py; what it leaves out has the
default that stands there.
"""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from rvos_deploy.datasets.moving_sprites.world import WorldConfig
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import ModelConfig, preset
from rvos_deploy.training.recipe import Augmentation, LossSettings, Recipe, Stage

_MAX_BYTES = 2**20


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
        text = _read(file)
    else:
        raise InputError(
            f"recipe {name} does not exist; give a .toml file, or one of {', '.join(packaged)}"
        )
    try:
        return parse_recipe(_toml(text))
    except RecursionError:
        raise InputError(f"recipe {name} is nested too deeply to be one") from None
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
    loss = values.get("loss", LossSettings())
    ready: dict[str, Any] = {name: value for name, value in values.items() if is_dataclass(value)}
    ready["stages"] = tuple(_stage(stage, loss) for stage in stages)
    plain = {name: value for name, value in values.items() if name not in ready}
    return _make(Recipe, plain, "recipe", ready)


def _stage(table: object, loss: LossSettings) -> Stage:
    """A stage; what its own loss table leaves out is the recipe's."""
    if not isinstance(table, dict) or "loss" not in table:
        return _make(Stage, table, "stage")
    changes = table["loss"]
    merged = {**asdict(loss), **changes} if isinstance(changes, dict) else changes
    plain = {name: value for name, value in table.items() if name != "loss"}
    return _make(Stage, plain, "stage", {"loss": _make(LossSettings, merged, "stage.loss")})


def _model(given: object) -> ModelConfig:
    if isinstance(given, str):
        return preset(given)
    if not isinstance(given, dict) or not isinstance(given.get("preset"), str):
        raise InputError("model must be a preset's name, or a table with 'preset' and its changes")
    changes = {key: value for key, value in given.items() if key != "preset"}
    return _make(ModelConfig, {**preset(given["preset"]).as_dict(), **changes}, "model")


_Made = TypeVar("_Made")


def _make(
    kind: type[_Made], table: object, where: str, ready: Mapping[str, Any] | None = None
) -> _Made:
    """An instance from a table, names and types checked by the fields; ``ready`` has further ones.

    Raises:
        InputError: a field that is unknown, missing, or of another type or value.
    """
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a table, found {reprlib.repr(table)}")
    ready, hints = ready or {}, get_type_hints(kind)
    if unknown := sorted(set(table) - set(hints)):
        raise InputError(
            f"{where} has unknown {reprlib.repr(unknown[0])}; known: {', '.join(hints)}"
        )
    values = dict(ready)
    for name, value in table.items():
        try:
            values[name] = msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise InputError(f"{where}: {name}: {error}") from None
    needed = [field.name for field in fields(kind) if _is_needed(field)]  # type: ignore[arg-type]
    if missing := [name for name in needed if name not in values]:
        raise InputError(f"{where} lacks {', '.join(missing)}")
    return kind(**values)


def _is_needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _read(file: Path) -> str:
    """The text of a file. InputError when it cannot be read, or is no text."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"recipe {file} has more than {_MAX_BYTES} bytes, so it is none")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"recipe {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {file} is not text in UTF-8 ({error})") from error


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    loaded: dict[str, Any] = tomllib.loads(text)
    return loaded
