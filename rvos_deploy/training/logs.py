"""What a run writes for people: CSV tables and TensorBoard, both cut back when a run goes on."""

from __future__ import annotations

import csv
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
"""Of the table of steps; stages that train a part leave some empty."""
TRAINING, VALIDATION, BOARD = "training.csv", "validation.csv", "tensorboard"


class RunLog:
    """Tables of one run. Rows after ``step`` are dropped: they will be written again."""

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "training logs need 'tensorboard'; pip install 'rvos-deploy[train]'"
            ) from error
        run.mkdir(parents=True, exist_ok=True)
        self._run = run
        for name in (TRAINING, VALIDATION):
            _cut(run / name, step)
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
            # A float is written so that it can be told exactly: runs are compared by these files.
            writer.writerow(row)


def _columns(file: Path) -> list[str]:
    """Names of a table's columns; none before it is begun."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return next(csv.reader(stream), [])


def read_log(file: Path) -> list[dict[str, str]]:
    """Rows of a table, by column; none where the file is not there."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _cut(file: Path, step: int) -> None:
    rows = read_log(file)
    # A row that a dying process left unfinished is of a step that comes again.
    kept = [row for row in rows if None not in row.values() and int(row["step"]) <= step]
    if len(kept) == len(rows):
        return
    with (
        replacing(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
