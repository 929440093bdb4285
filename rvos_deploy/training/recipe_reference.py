"""Write the reference of recipes as Markdown, from the dataclasses and their docstrings.

Run ``python -m rvos_deploy.training.recipe_reference docs/recipes.md``. Each meaning is written
once, in the ``Attributes:`` section of its dataclass, with a unit at its end in square brackets.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import typer

from rvos_deploy.datasets.moving_sprites.world import WorldConfig
from rvos_deploy.errors import InputError
from rvos_deploy.files import write_text
from rvos_deploy.networks.pan2024.config import PRESETS, ModelConfig
from rvos_deploy.training.recipe import Augmentation, LossSettings, Recipe, Stage

COMMAND = "python -m rvos_deploy.training.recipe_reference docs/recipes.md"

TABLES: Mapping[str, tuple[str, type]] = {
    "Plain keys": ("", Recipe),
    "Stages: `[[stage]]`": ("stage.N.", Stage),
    "Losses: `[loss]` and `[stage.loss]`": ("loss.", LossSettings),
    "Augmentation: `[augment]`": ("augment.", Augmentation),
    "Moving Sprites: `[sprites]`": ("sprites.", WorldConfig),
    "Network: `[model]`": ("model.", ModelConfig),
}
"""Headings, the prefix of their keys in ``--set``, and the dataclass of these keys."""


class Loss(NamedTuple):
    """Describe a loss: its column in ``training.csv``, the key of its weight, and its meaning."""

    name: str
    weight: str
    meaning: str


LOSSES = (
    Loss(
        "frame_class",
        "frame_class",
        "Whether each frame query has an object: cross-entropy, the weighted mean over queries and "
        "frames.",
    ),
    Loss(
        "frame_mask",
        "mask",
        "Masks of matched frame queries: binary cross-entropy, the mean over points, summed over "
        "objects and divided by their number.",
    ),
    Loss(
        "frame_dice",
        "dice",
        "Masks of matched frame queries: 1 minus the dice score at the same points, summed over "
        "objects and divided by their number.",
    ),
    Loss(
        "video_class",
        "video_class",
        "Whether each video query has an object that the sentence means: cross-entropy, the "
        "weighted mean over queries and clips.",
    ),
    Loss("video_mask", "mask", "Like `frame_mask`, for whole clips and the referred objects."),
    Loss("video_dice", "dice", "Like `frame_dice`, for whole clips and the referred objects."),
    Loss(
        "similarity",
        "similarity",
        "Whether matched frame and video queries of one clip are similar exactly if they have the "
        "same object: binary cross-entropy on their dot products, the mean over pairs.",
    ),
)

_HEAD = f"""# Recipe reference

<!-- Generated: change the docstrings of the dataclasses, then run {COMMAND} -->

A recipe is a TOML file that decides a whole training run. `rvos-deploy train CONFIG` takes a file,
the name of a packaged recipe, or a model preset; [training.md](training.md) says how to train.
`--set KEY=VALUE` changes a key on the command line, with the key from the tables below and the
value in TOML syntax. A word without quotes is a string, and `none` is none. Stages have numbers
and names: `--set stage.0.steps=200`, `--set stage.joint.loss.dice=2`.

```toml
data = "mevis"
model = "large"          # or a table [model] with preset = "large" and the keys that differ
[[stage]]
name = "joint"
steps = 55000
batch = 8
length = 8
learning_rate = 5e-5
```
"""

_LOSSES_HEAD = """## The losses, as `training.csv` names them

The total is the weighted sum of the losses. `training.csv` has the unweighted losses. The class,
mask and dice losses are sums over all layers of their decoder.
"""

_PRESETS_HEAD = """### Presets

Keys whose values differ between presets.
"""


class Row(NamedTuple):
    """Describe one key: name, type, default, unit and meaning, in Markdown."""

    key: str
    type: str
    default: str
    unit: str
    meaning: str


def reference() -> str:
    """Return the document. Raises InputError without the docstring parser of the extra ``dev``."""
    parts = [_HEAD]
    for heading, (prefix, kind) in TABLES.items():
        parts.append(f"## {heading}\n\n{_introduction(kind)}\n")
        listed = _network_rows() if kind is ModelConfig else rows(kind, prefix)
        parts.append(_table(Row._fields, listed))
        if kind is LossSettings:
            parts += [_LOSSES_HEAD, _losses_table()]
        if kind is ModelConfig:
            parts += [_PRESETS_HEAD, _presets_table()]
    return "\n".join(parts)


def rows(kind: type, prefix: str = "") -> list[Row]:
    """Return a row for each field of a dataclass, with keys that begin with ``prefix``.

    Raises:
        InputError: a field has no meaning, or a meaning has no field.
    """
    meanings, hints = _meanings(kind), get_type_hints(kind)
    listed = fields(kind)
    if odd := {field.name for field in listed} ^ set(meanings):
        raise InputError(
            f"{kind.__name__}: {', '.join(sorted(odd))} must be both a field and in 'Attributes:'"
        )
    found = []
    for field in listed:
        meaning, unit = _split_unit(meanings[field.name])
        key = "stage" if (kind, field.name) == (Recipe, "stages") else field.name
        shown = _type_name(hints[field.name])
        found.append(Row(f"`{prefix}{key}`", shown, _default(field), unit, meaning))
    return found


def _network_rows() -> list[Row]:
    """Return the rows of ``[model]``, whose defaults are those of the preset."""
    preset = (
        "Preset whose values the other keys change. `model = NAME` is short for this key alone."
    )
    names = " or ".join(f"`{json.dumps(name)}`" for name in PRESETS)
    found = [Row("`model.preset`", names, "required", "", preset)]
    for field, row in zip(fields(ModelConfig), rows(ModelConfig, "model."), strict=True):
        values = _preset_values(field.name)
        default = _value(values[0]) if len(set(values)) == 1 else "the preset's"
        found.append(row._replace(default=default))
    return found


def _preset_values(name: str) -> list[Any]:
    return [getattr(config, name) for config in PRESETS.values()]


def _introduction(kind: type) -> str:
    parsed = _parse(kind)
    text = parsed.short_description or ""
    more = f"\n\n{parsed.long_description}" if parsed.long_description else ""
    return _markdown(text) + _markdown(more)


def _meanings(kind: type) -> dict[str, str]:
    params = _parse(kind).params
    return {param.arg_name: " ".join((param.description or "").split()) for param in params}


def _parse(kind: type) -> Any:
    try:
        import docstring_parser
    except ImportError as error:
        raise InputError(
            "the recipe reference needs 'docstring_parser'; pip install 'rvos-deploy[dev]'"
        ) from error
    google = docstring_parser.DocstringStyle.GOOGLE
    return docstring_parser.parse(kind.__doc__ or "", style=google)


def _split_unit(meaning: str) -> tuple[str, str]:
    """Split a meaning from the unit at its end in square brackets."""
    match = re.fullmatch(r"(.*?)\s*\[([^\[\]]+)\]", meaning)
    return (_markdown(match[1]), match[2]) if match else (_markdown(meaning), "")


def _markdown(text: str) -> str:
    return text.replace("``", "`")


_TYPES = {int: "integer", float: "number", bool: "true or false", str: "string", type(None): "none"}


def _type_name(hint: Any) -> str:
    if hint in _TYPES:
        return _TYPES[hint]
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if is_dataclass(hint):
        return "string or table" if hint is ModelConfig else "table"
    if get_origin(hint) is tuple and is_dataclass(arguments[0]):
        return "list of tables"
    if get_origin(hint) is tuple and arguments[-1] is ...:
        return f"list of {_type_name(arguments[0])}s"
    if get_origin(hint) is tuple and len(set(arguments)) == 1:
        return f"list of {len(arguments)} {_type_name(arguments[0])}s"
    raise TypeError(f"a recipe has no fields of type {hint}")


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "required" if field.default_factory is MISSING else "the defaults of its keys"
    return _value(field.default)


def _value(value: Any) -> str:
    """Return a value in the syntax of a recipe."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`" if value != int(value) else f"`{value}`"
    return f"`{json.dumps(value)}`"  # JSON and TOML share strings, lists, integers and booleans


def _losses_table() -> str:
    defaults = LossSettings()
    return _table(
        ("loss", "weight", "default weight", "meaning"),
        [
            (f"`{x.name}`", f"`loss.{x.weight}`", _value(getattr(defaults, x.weight)), x.meaning)
            for x in LOSSES
        ],
    )


def _presets_table() -> str:
    different = [
        (f"`{field.name}`", *(_value(value) for value in _preset_values(field.name)))
        for field in fields(ModelConfig)
        if len(set(_preset_values(field.name))) > 1 and field.name != "name"
    ]
    return _table(("key", *(f"`{name}`" for name in PRESETS)), different)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n"
        for row in (head, rule, *lines)
    )


def main(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Markdown file to write.")],
) -> None:
    """Write the recipe reference."""
    write_text(file, reference())


if __name__ == "__main__":
    from rvos_deploy.console.error_lines import with_error_lines

    typer.run(with_error_lines(main))
