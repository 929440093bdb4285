"""Read which expressions belong to which videos: CSV, JSON, Parquet, or MeViS."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.datasets.entries import Entry, read_json
from rvos_deploy.datasets.layout import FRAMES, expression_text
from rvos_deploy.errors import InputError, one_line

VIDEO, EXPRESSION = "video", "expression"
_FORMS = (
    'a list of texts, a list of {"video", "expression"}, an object {video: [texts]}, or a MeViS '
    "meta_expressions.json"
)


@dataclass(frozen=True)
class Row:
    """Hold one expression.

    Args:
        video: the video as the file names it; None: the expression belongs to every video.
        text: the expression.
        place: place in the file, for errors.
    """

    video: str | None
    text: str
    place: str


@dataclass(frozen=True)
class ExpressionsFile:
    """Hold the rows of a file, in their order.

    ``folder``: where the file's relative names of videos begin.
    """

    path: Path
    folder: Path
    rows: tuple[Row, ...]


def read_expressions(path: Path) -> ExpressionsFile:
    """Read a file of expressions by its suffix: .csv, .json or .parquet.

    CSV and Parquet have the columns ``video`` and ``expression``, or ``expression`` alone: then
    every expression belongs to every video.

    Raises:
        InputError: the file cannot be read, has another form, or has a blank text; or pyarrow is
            not installed for Parquet.
    """
    folder = path.parent
    match path.suffix.lower():
        case ".csv":
            rows = _read_csv(path)
        case ".json":
            content = read_json(path)
            if _is_mevis(content):
                folder = path.parent / FRAMES
            rows = _rows_of_json(content)
        case ".parquet":
            rows = _read_parquet(path)
        case suffix:
            raise InputError(
                f"{path}: {suffix or 'no suffix'} is not a known kind of expressions file; give "
                ".csv, .json or .parquet"
            )
    if not rows:
        raise InputError(f"{path} holds no expression; write one row for each")
    return ExpressionsFile(path, folder, tuple(rows))


def _read_csv(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or ())
            return [
                _table_row(path, row, f"line {reader.line_num}")
                for row in reader
                if any(map(_is_given, row.values()))
            ]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path} is not valid CSV: {one_line(error)}; quote texts: "
                         '"the dog, running"') from error  # fmt: skip


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            f"{path}: pyarrow reads Parquet and is not installed; pip install pyarrow, or give a "
            ".csv or .json"
        ) from error
    try:
        names = parquet.read_schema(path).names
        _check_columns(path, names)
        kept = [name for name in (VIDEO, EXPRESSION) if name in names]
        rows = parquet.read_table(path, columns=kept).to_pylist()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    except ArrowException as error:
        raise InputError(f"{path} is not valid Parquet: {one_line(error)}") from error
    return [_table_row(path, row, f"row {number}") for number, row in enumerate(rows)]


def _check_columns(path: Path, names: Iterable[str]) -> None:
    found = list(names)
    if EXPRESSION not in found or len(set(found)) < len(found):
        raise InputError(
            f"{path}: the columns must be '{VIDEO}' and '{EXPRESSION}', or '{EXPRESSION}' alone; "
            f"found {one_line(', '.join(map(str, found)) or 'none')}"
        )


def _is_given(value: object) -> bool:
    return bool(value) and bool(str(value).strip())


def _table_row(path: Path, row: Mapping[str, object], place: str) -> Row:
    if None in row:  # where DictReader puts surplus cells
        raise InputError(
            f'{path}: {place}: more cells than columns; quote texts that hold a comma: "a, b"'
        )
    video = _cell(path, row, VIDEO, place) if VIDEO in row else None
    return Row(video, _cell(path, row, EXPRESSION, place), place)


def _cell(path: Path, row: Mapping[str, object], name: str, place: str) -> str:
    value = row[name]
    if value is not None and not isinstance(value, str):
        raise InputError(
            f"{path}: {place}: '{name}' is not text, but {type(value).__name__}; make it text"
        )
    if not value or not value.strip():
        raise InputError(f"{path}: {place}: '{name}' is blank; fill it, or delete the row")
    return value


def _is_mevis(content: Entry) -> bool:
    """Tell MeViS from an object whose keys are videos; one of these may be called "videos"."""
    return isinstance(content.value, dict) and isinstance(content.value.get("videos"), dict)


def _rows_of_json(content: Entry) -> list[Row]:
    if _is_mevis(content):
        return [
            Row(video, expression_text(expression), expression.where)
            for video, entry in content.get("videos").named_items()
            for _, expression in entry.get("expressions").named_items()
        ]
    if isinstance(content.value, dict):
        return [
            Row(video, _text(text), text.where)
            for video, texts in content.items()
            for text in texts.elements()
        ]
    if not isinstance(content.value, list):
        raise content.fault(f"expected {_FORMS}")
    return [_listed_row(element) for element in content.elements()]


def _listed_row(element: Entry) -> Row:
    if isinstance(element.value, str):
        return Row(None, _text(element), element.where)
    video = _text(element.get(VIDEO)) if element.has(VIDEO) else None
    return Row(video, _text(element.get(EXPRESSION)), element.where)


def _text(entry: Entry) -> str:
    text = entry.as_text()
    if not text.strip():
        raise entry.fault("the text is blank")
    return text
