"""``--set KEY=VALUE``: change single keys of a recipe before it is checked. Imports no torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from rvos_deploy.datasets.moving_sprites.world import WorldConfig
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.training.recipe import Augmentation, LossSettings, Recipe, Stage

TABLES: Mapping[str, type] = {
    "model": ModelConfig,
    "sprites": WorldConfig,
    "augment": Augmentation,
    "loss": LossSettings,
}
"""Tables of a recipe file, and the dataclass whose fields each one holds."""

PLAIN_KEYS = tuple(f.name for f in fields(Recipe) if f.name not in (*TABLES, "stages"))
"""Keys of a recipe file that stand in no table."""

_BARE_WORD = re.compile(r"[^\s\"'\[\]{},=#]+")


class Change(NamedTuple):
    """One ``--set``: its text for errors, its dotted key, and its value."""

    text: str
    key: str
    value: Any

    def fault(self, problem: str) -> InputError:
        """An error of one line that begins with the option."""
        return InputError(f"--set {self.text}: {problem}")


def parse_change(text: str) -> Change:
    """Split ``KEY=VALUE``. The value has TOML syntax; a bare word is a string, ``none`` is None.

    Raises:
        InputError: there is no ``=``, no key, or the value is not TOML.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    change = Change(" ".join(text.split()), key, None)
    if not equals or not key or not value:
        raise change.fault("write KEY=VALUE, for example stage.0.steps=200")
    if value == "none":
        return change
    try:
        return change._replace(value=_toml_value(value))
    except ValueError:
        if not _BARE_WORD.fullmatch(value):
            raise change.fault(
                'the value is not in TOML syntax; write 0.5, true, word, "some words" or [1, 2]'
            ) from None
        return change._replace(value=value)


def apply_changes(content: Mapping[str, Any], texts: Iterable[str]) -> dict[str, Any]:
    """Return the content of a recipe file with each ``KEY=VALUE`` applied, later ones last.

    Args:
        content: what a TOML file holds; it stays as it is.
        texts: changes. A key names a plain key (``seed``), a key of a table (``loss.dice``), or a
            key of a stage by its number or name (``stage.0.steps``, ``stage.joint.loss.dice``).

    Raises:
        InputError: names the key, and what is known instead.
    """
    changed = dict(content)
    for text in texts:
        _apply(changed, parse_change(text))
    return changed


def _apply(content: dict[str, Any], change: Change) -> None:
    first, _, rest = change.key.partition(".")
    if first == "stage" and rest:
        _apply_to_stage(content, change, rest)
    elif first in TABLES and rest:
        if first == "model":
            _name_preset(content)
        content[first] = _with_value(content.get(first, {}), TABLES[first], rest, change)
    elif change.key in PLAIN_KEYS:
        content[change.key] = _checked(change, Recipe, change.key)
    elif change.key in TABLES and isinstance(change.value, (dict, str)):
        content[change.key] = change.value  # parse_recipe checks what it holds
    elif change.key in TABLES:
        raise change.fault(f"'{first}' is a table; set one of its keys, as {first}.KEY=VALUE")
    else:
        tables = ", ".join(f"{name}.KEY" for name in TABLES)
        raise change.fault(
            f"unknown key '{change.key}'; known: {', '.join(PLAIN_KEYS)}, {tables}, stage.N.KEY"
        )


def _name_preset(content: dict[str, Any]) -> None:
    """``model = "tiny"`` is short for a table with a preset alone."""
    if isinstance(content.get("model"), str):
        content["model"] = {"preset": content["model"]}


def _apply_to_stage(content: dict[str, Any], change: Change, rest: str) -> None:
    stages = content.get("stage", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return  # parse_recipe says what is wrong with them
    number, key = _find_stage(stages, change, rest)
    stages = list(stages)
    if key == "loss" and change.value is None:
        stages[number] = {name: v for name, v in stages[number].items() if name != "loss"}
    elif key.startswith("loss."):
        loss = _with_value(stages[number].get("loss", {}), LossSettings, key[5:], change)
        stages[number] = {**stages[number], "loss": loss}
    else:
        stages[number] = _with_value(stages[number], Stage, key, change)
    content["stage"] = stages


def _find_stage(stages: list[dict[str, Any]], change: Change, rest: str) -> tuple[int, str]:
    """The number of the stage that a key names, and the rest of the key."""
    number, _, key = rest.partition(".")
    if number.isascii() and number.isdecimal():
        if len(number) < 10 and int(number) < len(stages):
            if not key:
                raise change.fault(f"name a key of the stage, for example stage.{number}.steps")
            return int(number), key
    else:
        # Names may have dots in them.
        matching = [n for n, s in enumerate(stages) if rest.startswith(f"{s.get('name')}.")]
        if len(matching) == 1:
            return matching[0], rest.removeprefix(f"{stages[matching[0]]['name']}.")
        if matching:
            raise change.fault("several stages begin with this name; name the stage by its number")
    known = ", ".join(f"stage.{n}.KEY ({s.get('name')})" for n, s in enumerate(stages))
    raise change.fault(f"the recipe has no such stage; known: {known or 'none'}")


def _with_value(table: object, kind: type, key: str, change: Change) -> Any:
    """A copy of a table with one key set; anything but a table is left for parse_recipe."""
    value = _checked(change, kind, key)
    return {**table, key: value} if isinstance(table, dict) else table


def _checked(change: Change, kind: type, key: str) -> Any:
    """The value of a change, once its key and type are those of a field of ``kind``."""
    hints = get_type_hints(kind)
    if kind is ModelConfig:
        hints["preset"] = str
    if key not in hints:
        raise change.fault(f"unknown key '{key}'; known: {', '.join(hints)}")
    if change.value is None and type(None) not in get_args(hints[key]):
        raise change.fault(f"'{key}' cannot be none")
    if hints[key] == LossSettings | None:
        return change.value  # what it leaves out is the recipe's
    if get_origin(hints[key]) is Literal and change.value not in get_args(hints[key]):
        known = ", ".join(get_args(hints[key]))
        raise change.fault(f"unknown {key} '{change.value}'; known: {known}")
    try:
        msgspec.convert(change.value, hints[key])
    except msgspec.ValidationError as error:
        raise change.fault(str(error).replace("`", "")) from None
    return change.value


def _toml_value(text: str) -> Any:
    """Parse one value. ValueError when it is not TOML, or more than one value."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if any(not character.isprintable() for character in text):
        raise ValueError("a value stands on one line")
    return tomllib.loads(f"value = {text}")["value"]
