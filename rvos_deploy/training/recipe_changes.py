"""Apply ``--set KEY=VALUE`` to a recipe before it is checked. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from rvos_deploy.datasets.moving_sprites.world import WorldConfig
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import RENAMED_ALIGNMENTS, RENAMED_KEYS, ModelConfig
from rvos_deploy.training.recipe import Augmentation, LossSettings, Recipe, Stage

TABLES: Mapping[str, type] = {
    "model": ModelConfig,
    "sprites": WorldConfig,
    "augment": Augmentation,
    "loss": LossSettings,
}
"""Tables of a recipe file, and the dataclasses of their fields."""

PLAIN_KEYS = tuple(f.name for f in fields(Recipe) if f.name not in (*TABLES, "stages"))
"""Keys of a recipe file outside its tables."""

RENAMED: Mapping[str, str] = {
    "gates": "preflight",
    **{f"model.{old}": f"model.{new}" for old, new in RENAMED_KEYS.items()},
}
"""Former names of keys, and their present names."""

_BARE_WORD = re.compile(r"[^\s\"'\[\]{},=#]+")


class Change(NamedTuple):
    """Hold one ``--set``: its text for errors, its dotted key, and its value."""

    text: str
    key: str
    value: Any

    def fault(self, problem: str) -> InputError:
        """Return an error of one line that begins with the option."""
        return InputError(f"--set {self.text}: {problem}")


def parse_change(text: str) -> Change:
    """Split ``KEY=VALUE``. The value has TOML syntax; a bare word is a string, ``none`` is None.

    Raises:
        InputError: ``=`` or the key is missing, or the value is not TOML.
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
    """Return the content of a recipe file with each ``KEY=VALUE`` applied, in order.

    Args:
        content: of a TOML file; it is not modified.
        texts: changes. A key names a plain key (``seed``), a key of a table (``loss.dice``), or a
            key of a stage by its number or name (``stage.0.steps``, ``stage.joint.loss.dice``).

    Raises:
        InputError: a key is unknown; the message names the known ones. Or a key or value has a
            former name; the message names the present one.
    """
    refuse_former_names(content)
    changed = dict(content)
    for text in texts:
        _apply(changed, parse_change(text))
    return changed


def refuse_former_names(content: Mapping[str, Any]) -> None:
    """Refuse a recipe with the former name of a key, or of a value of ``alignment``.

    Raises:
        InputError: the message names the present name.
    """
    model = content.get("model")
    fields_of_model = model if isinstance(model, dict) else {}
    for key in (*content, *(f"model.{field}" for field in fields_of_model)):
        if key in RENAMED:
            raise InputError(f"the key '{key}' is now named '{RENAMED[key]}'; rename it")
    alignment = fields_of_model.get("alignment")
    if isinstance(alignment, str) and alignment in RENAMED_ALIGNMENTS:
        raise InputError(
            f"model.alignment '{alignment}' is now named '{RENAMED_ALIGNMENTS[alignment]}'; "
            "rename it"
        )


def _apply(content: dict[str, Any], change: Change) -> None:
    if change.key in RENAMED:
        raise change.fault(f"the key '{change.key}' is now named '{RENAMED[change.key]}'")
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
        content[change.key] = change.value  # parse_recipe checks its content
    elif change.key in TABLES:
        raise change.fault(f"'{first}' is a table; set one of its keys, as {first}.KEY=VALUE")
    else:
        tables = ", ".join(f"{name}.KEY" for name in TABLES)
        raise change.fault(
            f"unknown key '{change.key}'; known: {', '.join(PLAIN_KEYS)}, {tables}, stage.N.KEY"
        )


def _name_preset(content: dict[str, Any]) -> None:
    """Expand ``model = "tiny"`` to a table with a preset."""
    if isinstance(content.get("model"), str):
        content["model"] = {"preset": content["model"]}


def _apply_to_stage(content: dict[str, Any], change: Change, rest: str) -> None:
    stages = content.get("stage", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return  # parse_recipe reports the fault
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
    """Return the number of the stage that a key names, and the rest of the key."""
    number, _, key = rest.partition(".")
    if number.isascii() and number.isdecimal():
        if len(number) < 10 and int(number) < len(stages):
            if not key:
                raise change.fault(f"name a key of the stage, for example stage.{number}.steps")
            return int(number), key
    else:
        # Names may contain dots.
        matching = [n for n, s in enumerate(stages) if rest.startswith(f"{s.get('name')}.")]
        if len(matching) == 1:
            return matching[0], rest.removeprefix(f"{stages[matching[0]]['name']}.")
        if matching:
            raise change.fault("several stages begin with this name; name the stage by its number")
    known = ", ".join(f"stage.{n}.KEY ({s.get('name')})" for n, s in enumerate(stages))
    raise change.fault(f"the recipe has no such stage; known: {known or 'none'}")


def _with_value(table: object, kind: type, key: str, change: Change) -> Any:
    """Return a copy of a table with one key set; parse_recipe refuses anything but a table."""
    value = _checked(change, kind, key)
    return {**table, key: value} if isinstance(table, dict) else table


def _checked(change: Change, kind: type, key: str) -> Any:
    """Return the value of a change, after checking key and type against the fields of ``kind``."""
    hints = get_type_hints(kind)
    if kind is ModelConfig:
        hints["preset"] = str
    if key not in hints:
        raise change.fault(f"unknown key '{key}'; known: {', '.join(hints)}")
    if change.value is None and type(None) not in get_args(hints[key]):
        raise change.fault(f"'{key}' cannot be none")
    if hints[key] == LossSettings | None:
        return change.value  # missing keys have the values of the recipe
    if get_origin(hints[key]) is Literal and change.value not in get_args(hints[key]):
        known = ", ".join(get_args(hints[key]))
        raise change.fault(f"unknown {key} '{change.value}'; known: {known}")
    try:
        msgspec.convert(change.value, hints[key])
    except msgspec.ValidationError as error:
        raise change.fault(str(error).replace("`", "")) from None
    return change.value


def _toml_value(text: str) -> Any:
    """Parse one TOML value. Raises ValueError for anything else, also for several values."""
    import tomllib

    if any(not character.isprintable() for character in text):
        raise ValueError("a value stands on one line")
    return tomllib.loads(f"value = {text}")["value"]
