"""Write the logs of a run: CSV tables and TensorBoard, truncated when the run resumes."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rvos_deploy.errors import InputError
from rvos_deploy.files import replacing

COLUMNS = (
    "step",
    "stage",
    "frame_class",
    "frame_mask",
    "frame_dice",
    "video_class",
    "video_mask",
    "video_dice",
    "similarity",
    "total",
    "gradient_norm",
    "learning_rate",
    "seconds",
)
"""Columns of the table of steps; stages that train only a part leave some empty."""
TRAINING, VALIDATION, BOARD = "training.csv", "validation.csv", "tensorboard"
WARNINGS = "warnings.txt"
"""File of warnings, with the step at which the run started or resumed."""


class RunLog:
    """Write the tables of one run; rows after ``step`` are dropped and written again."""

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "training logs need 'tensorboard'; pip install 'rvos-deploy[train]'"
            ) from error
        run.mkdir(parents=True, exist_ok=True)
        self._run, self._begin = run, step
        tables = [(run / name, read_log(run / name)) for name in (TRAINING, VALIDATION)]
        kept = [(file, rows, _until(file, rows, step)) for file, rows in tables]
        for file, rows, until in kept:
            if len(until) < len(rows):
                _write(file, until)
        self._board = SummaryWriter(str(run / BOARD), purge_step=step + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._board.close()

    def warn(self, text: str) -> None:
        """Show a warning on standard error, and keep it in ``warnings.txt`` and TensorBoard."""
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        with (self._run / WARNINGS).open("a", encoding="utf-8") as stream:
            stream.write(f"step {self._begin}: {text}\n")
        self._board.add_text("warnings", text, self._begin)

    def training(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Log a step: its losses, rate, gradient norm and seconds."""
        self._row(TRAINING, {"step": step, "stage": stage, **values})
        for name, value in values.items():
            self._board.add_scalar(f"training/{name}", value, step)

    def validation(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Log a validation: J&F and its parts."""
        self._row(VALIDATION, {"step": step, "stage": stage, **values})
        for name, value in values.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        self._board.flush()

    def _row(self, name: str, row: Mapping[str, Any]) -> None:
        file = self._run / name
        columns = _columns(file)
        with file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns or (COLUMNS if name == TRAINING else list(row)))
            if not columns:
                writer.writeheader()
            # Floats are written exactly, because tests compare runs by these files.
            try:
                writer.writerow(row)
            except ValueError as error:  # the table lacks a column
                raise InputError(
                    f"{file} is of another run ({error}); move it elsewhere"
                ) from error


def _columns(file: Path) -> list[str]:
    """Return the names of a table's columns; none if there is no table."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return next(csv.reader(stream), [])


def read_log(file: Path) -> list[dict[str, str]]:
    """Return the rows of a table by column; none without a file. Raises InputError if damaged."""
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file} is no table of a run ({error}); move it elsewhere") from error


def _until(file: Path, rows: list[dict[str, str]], step: int) -> list[dict[str, str]]:
    """Return the rows up to a step. Raises InputError if the file is no table of steps."""
    try:
        # An unfinished row of a killed process belongs to a step that runs again.
        whole = [row for row in rows if None not in row.values() and None not in set(row)]
        return [row for row in whole if int(row["step"]) <= step]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{file} is no table of a run (no number in the column 'step'); move it elsewhere"
        ) from error


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    columns = _columns(file)
    with (
        replacing(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
