"""Run training in the processes of test_training_distributed.py, and record what each one did.

Arguments: the folder, which holds ``sprites.toml`` and ``mevis.toml``, and data for the latter.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from rvos_deploy.errors import InputError, ParityError, RvosError
from rvos_deploy.training import distributed, trainer, validation
from rvos_deploy.training.clips import Batch
from rvos_deploy.training.preparation import make_fabric
from rvos_deploy.training.recipe_file import read_recipe


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    seen: dict[str, Any] = {"evaluated": [], "rendered": 0, "clips": []}
    evaluate, write_mevis, forward = (
        validation.evaluate,
        validation.write_mevis,
        trainer.Objective.forward,
    )

    def noting_evaluate(predictions: Any, data: Any, *arguments: Any) -> Any:
        seen["evaluated"] += [video.name for video in data.videos]
        return evaluate(predictions, data, *arguments)

    def noting_write(*arguments: Any, **options: Any) -> Any:
        seen["rendered"] += 1
        return write_mevis(*arguments, **options)

    def noting_forward(self: Any, batch: Batch, generator: torch.Generator) -> Any:
        seen["clips"].append(list(batch.frames.shape))
        return forward(self, batch, generator)

    validation.evaluate, validation.write_mevis = noting_evaluate, noting_write
    trainer.Objective.forward = noting_forward  # type: ignore[method-assign]
    for name, options in (
        ("sprites", {}),
        ("mevis", {"data": folder / "train", "valid": folder / "valid"}),
    ):
        recipe = read_recipe(folder / f"{name}.toml")
        given = trainer.TrainingOptions(accelerator="cpu", **options)
        result = trainer.train(recipe, folder / name, given)
        seen["best"] = result.best
        (folder / f"{name}-{rank}.json").write_text(json.dumps(seen))
        seen = {"evaluated": [], "rendered": 0, "clips": []}
    found = gathered(folder, rank)
    if rank == 0:
        found["left alone"] = left_alone(folder)
    (folder / f"gathered-{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # as a process that is killed: without a word to the others


def gathered(folder: Path, rank: int) -> dict[str, Any]:
    """Return the results of ``gather`` in this process, and the errors that it raises."""
    fabric = make_fabric(read_recipe(folder / "sprites.toml"), "cpu")
    caught = []

    def fail() -> None:
        if rank == 1:
            raise InputError("the disk of process 1 is full")

    def fail_apart() -> None:
        raise ParityError(f"process {rank}")

    for make in (fail, fail_apart):
        try:
            distributed.gather(fabric, make)
        except (InputError, ParityError) as error:
            caught.append([type(error).__name__, str(error)])
    waiting = distributed._waiting_group()._get_backend(torch.device("cpu"))
    return {
        "ranks": distributed.gather(fabric, lambda: rank),
        "first": distributed.on_first(fabric, lambda: f"of {rank}"),
        "caught": caught,
        "limit": waiting.options._timeout.total_seconds(),
    }


def left_alone(folder: Path) -> str:
    """Return the error of a process after another one ended."""
    fabric = make_fabric(read_recipe(folder / "sprites.toml"), "cpu")
    try:
        distributed.gather(fabric, lambda: None)
    except RvosError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
