"""Measure the paper's claims, and one of ours, on Moving Sprites.

``python -m rvos_deploy.benchmarks.studies.ablations OUT --clip-weights F --weights F
[--other-clip F]``

Each variant differs from ``full`` in one thing, and shares its data, steps and seeds:

(a) ``foreign_text``: text features from a tower that was not trained with the image trunk;
(b) ``no_text_fusion``: text initialises the queries and nothing else, as in LMPM;
(c) ``weighted``, ``sentence``: the video query initializer without alignment, or from the sentence;
(d) ``no_mask_position``: frame tokens without the position of their mask; ``no_position``: also
    without the trajectory of a slot, which our decoder computes from the same positions.

All variants start from the trained network of ``--weights``, without the parts that a variant could
gain from:

- (c) and (d) change what comes after the frame queries. The frame part is kept; the video part is
  initialised at random and learns from cached tokens. Their base is ``aligned``.
- (a) and (b) change how text comes in. Every module that reads text is initialised at random, and
  both parts are trained. Modules that see pictures alone are kept, because a short run would show
  nothing otherwise. Their base is ``full``.

The scores of short runs are too low for the threshold of the packaged network, by a different
amount for each variant. So every row is scored at each of ``THRESHOLDS``, and shown at its best
one. The class loss of the last steps is shown beside J&F: variants of one seed learn from the same
clips in the same order, so the loss resolves smaller differences than a hundred expressions do.

Every finished run adds a row with its budget to ``OUT/ablations.json``, and rewrites the table
``OUT/ablations.md``. A run that was stopped continues.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from rvos_deploy.benchmarks.studies.video_queries import decode_queries
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.datasets import DataSplit, VideoRecord
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import InputError, one_line
from rvos_deploy.evaluation.evaluate import evaluate
from rvos_deploy.export.weights import Weights, load_network
from rvos_deploy.files import write_text
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.modules.safetensors_file import read_safetensors
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, build_network
from rvos_deploy.training.checkpoints import trained_weights
from rvos_deploy.training.clips import training_tokenizer
from rvos_deploy.training.logs import TRAINING
from rvos_deploy.training.recipe import CACHEABLE, Recipe
from rvos_deploy.training.recipe_file import read_recipe
from rvos_deploy.training.trainer import TrainingOptions, train
from rvos_deploy.training.validation import sprite_validation, summary

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LOSS_STEPS = 100
RESULT, TABLE = "ablations.json", "ablations.md"
_READS_TEXT = (".text_resizer.", ".fusion.", ".text_attention.", ".text_ffn.", ".referred_head.")
_TEXT_TOWER = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_proj")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
        name: of the row.
        reads_text_anew: (a) and (b): modules that read text are initialised at random; otherwise
            the video part is.
        model: changes of the model's configuration.
        foreign_text: use the text tower of another CLIP.
    """

    name: str
    reads_text_anew: bool
    model: tuple[tuple[str, Any], ...] = ()
    foreign_text: bool = False


VARIANTS = (
    Variant("full", True),
    Variant("foreign_text", True, foreign_text=True),
    Variant("no_text_fusion", True, (("text_fusion", False),)),
    Variant("aligned", False),
    Variant("no_mask_position", False, (("mask_position", False),)),
    Variant("no_position", False, (("mask_position", False), ("trajectory_encoding", False))),
    Variant("weighted", False, (("initializer", "weighted"),)),
    Variant("sentence", False, (("initializer", "sentence"),)),
)
"""``full`` is the base of (a) and (b), ``aligned`` that of (c) and (d)."""


@dataclass(frozen=True)
class Budget:
    """The size of the runs.

    Args:
        frame_steps: of the stage ``masks``, in (a) and (b).
        video_steps: of the cached stage.
        batch: clips a step.
        cached: clips in the cache.
        videos: to validate on.
    """

    frame_steps: int = 400
    video_steps: int = 1000
    batch: int = 32
    cached: int = 2000
    videos: int = 30


def variant_recipe(recipe: Recipe, variant: Variant, budget: Budget, seed: int) -> Recipe:
    """Return the recipe of one row: stages of the base recipe, fewer steps, one change of the
    model.

    The cache holds only the frames that a step reads, because short runs hardly see a clip twice.
    """
    masks, cached = recipe.stages[:2]
    stages = [replace(cached, steps=budget.video_steps, cached=budget.cached, cached_length=0)]
    if variant.reads_text_anew:
        stages.insert(0, replace(masks, steps=budget.frame_steps))
    stages = [
        replace(
            s,
            batch=budget.batch,
            trained=_present(s.trained, variant),
            warmup=min(s.warmup, s.steps // 5),
        )
        for s in stages
    ]
    model = replace(recipe.model, **dict(variant.model))
    return replace(
        recipe, model=model, stages=tuple(stages), seed=seed, validate_every=0, preflight=False
    )


def _present(trained: tuple[str, ...], variant: Variant) -> tuple[str, ...]:
    """Return the trained modules that the variant has."""
    lacks = dict(variant.model).get("mask_position") is False
    return tuple(n for n in trained if not (lacks and n == "frame_decoder.mask_position"))


def foreign_text_clip(trunk: Path, tower: Path, out: Path) -> Path:
    """Write a CLIP with the image trunk of one file and the text tower of another.

    Raises:
        InputError: a file cannot be read, or the tower lacks a tensor.
    """
    kept, foreign = read_safetensors(trunk), read_safetensors(tower)
    mixed = {
        name: _tensor(foreign, name, tower) if name.startswith(_TEXT_TOWER) else tensor
        for name, tensor in kept.items()
    }
    save_file(mixed, out)
    return out


def _tensor(stored: Mapping[str, Tensor], name: str, file: Path) -> Tensor:
    if name not in stored:
        raise InputError(f"{file} has no tensor {name}; pass weights of the tiny network")
    return stored[name]


def begins_at_random(name: str, variant: Variant) -> bool:
    """Tell whether a variant's parameter is initialised at random; otherwise ``--weights`` gives
    it.
    """
    if variant.reads_text_anew:
        return any(part in f".{name}" for part in _READS_TEXT)
    return name.startswith(CACHEABLE)


def starting_weights(
    config: ModelConfig, variant: Variant, weights: Path, seed: int, out: Path
) -> Path:
    """Write the initial weights of a variant.

    Raises:
        InputError: ``weights`` cannot be read, or lacks a tensor.
    """
    torch.manual_seed(seed)
    fresh, stored = trained_weights(build_network(config)), read_safetensors(weights)
    mixed = {
        name: tensor if begins_at_random(name, variant) else _tensor(stored, name, weights)
        for name, tensor in fresh.items()
    }
    save_file(mixed, out)
    return out


def run_variant(
    variant: Variant,
    recipe: Recipe,
    clip: Path,
    weights: Path,
    valid: DataSplit,
    run: Path,
) -> dict[str, float]:
    """Train one row, or continue its training, and validate it."""
    run.mkdir(parents=True, exist_ok=True)
    file = run / "start.safetensors"
    start = starting_weights(recipe.model, variant, weights, recipe.seed, file)
    options = TrainingOptions(clip_weights=str(clip), init_from=start, resume=True)
    result = train(recipe, run, options)
    checkpoint = result.checkpoint / "weights.safetensors"
    network = load_network(recipe.model, Weights(checkpoint, str(clip)))
    return {
        **best_threshold(network, training_tokenizer(), valid),
        "class_loss": class_loss(run / TRAINING),
    }


def class_loss(log: Path) -> float:
    """Return the mean class loss of the video part over the last stage's last ``LOSS_STEPS``."""
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    last = [float(row["video_class"]) for row in rows if row["stage"] == rows[-1]["stage"]]
    return mean(last[-LOSS_STEPS:])


def best_threshold(
    network: RvosNetwork, tokenizer: Tokenizer, valid: DataSplit
) -> dict[str, float]:
    """Return the threshold of the best J&F, and all of ``summary`` at that threshold."""
    queries = {video.name: decode_queries(network, tokenizer, video) for video in valid.videos}
    found = []
    for threshold in THRESHOLDS:

        def predict(video: VideoRecord, threshold: float = threshold) -> NDArray[np.bool_]:
            return queries[video.name].masks(threshold)

        found.append({"threshold": threshold, **summary(evaluate(predict, valid, "mevis"))})
    return max(found, key=lambda values: values["j_and_f"])


@with_error_lines
def main(
    out: Annotated[Path, typer.Argument(help="Folder of the runs and of ablations.json.")],
    clip_weights: Annotated[Path, typer.Option(help="Of 'pretrain-clip'.")],
    weights: Annotated[Path, typer.Option(help="Trained network, parts of which all keep.")],
    other_clip: Annotated[
        Path | None, typer.Option(help="Of 'pretrain-clip' with another seed, for (a).")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="These variants; all by default.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Two by default: 1 and 2.")] = None,
    frame_steps: int = Budget.frame_steps,
    video_steps: int = Budget.video_steps,
    batch: int = Budget.batch,
    cached: int = Budget.cached,
    videos: int = Budget.videos,
) -> None:
    """Train and validate every variant with every seed."""
    budget = Budget(frame_steps, video_steps, batch, cached, videos)
    base = read_recipe("sprites_tiny")
    valid = _validation(out / "valid", base, budget)
    for seed in seeds or [1, 2]:
        for variant in VARIANTS:
            if only and variant.name not in only:
                continue
            if _known(out, variant.name, seed):
                continue
            clip = clip_weights
            if variant.foreign_text:
                if other_clip is None:
                    raise InputError("variant foreign_text needs --other-clip")
                clip = foreign_text_clip(clip_weights, other_clip, out / "foreign.safetensors")
            recipe = variant_recipe(base, variant, budget, seed)
            run = out / f"{variant.name}-{seed}"
            _lend_cache(out, run, variant, seed)
            values = run_variant(variant, recipe, clip, weights, valid, run)
            _add(out, {"variant": variant.name, "seed": seed, **values, "budget": asdict(budget)})
            typer.echo(
                f"{variant.name:>17} seed {seed}: "
                + "  ".join(f"{k.removeprefix('j_and_f_')} {v:.3f}" for k, v in values.items())
            )


def _validation(folder: Path, base: Recipe, budget: Budget) -> DataSplit:
    """Render validation videos of a seed that no recipe uses."""
    return sprite_validation(
        replace(base, validation_seed=4242, validation_videos=budget.videos), folder
    )


def _lend_cache(out: Path, run: Path, variant: Variant, seed: int) -> None:
    """Move the cached tokens of the previous variant to this one; the trainer checks whether they
    fit.
    """
    if variant.reads_text_anew or (run / "cache").exists():
        return
    for other in VARIANTS:
        lent = out / f"{other.name}-{seed}" / "cache"
        if not other.reads_text_anew and lent.exists():
            run.mkdir(parents=True, exist_ok=True)
            shutil.move(lent, run / "cache")
            return


def _known(out: Path, variant: str, seed: int) -> bool:
    return any(row["variant"] == variant and row["seed"] == seed for row in read_rows(out))


class _Row(msgspec.Struct):
    """Hold the values of a row that the table needs."""

    variant: str
    seed: int
    j_and_f: float
    n_acc: float
    class_loss: float


class _Record(msgspec.Struct):
    rows: list[dict[str, Any]]


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Read the rows of ``OUT/ablations.json``; no rows where there is no file.

    Raises:
        InputError: the file cannot be read, or is not a record of this study.
    """
    file = out / RESULT
    if not file.is_file():
        return []
    try:
        rows = msgspec.json.decode(file.read_bytes(), type=_Record).rows
        for row in rows:
            msgspec.convert(row, _Row)
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(
            f"{file} is not a record of this study ({one_line(error)}); move it away, or name "
            "another folder"
        ) from None
    return rows


def _add(out: Path, row: dict[str, Any]) -> None:
    rows = [*read_rows(out), row]
    write_json(
        out / RESULT,
        {
            "schema": "rvos-deploy/benchmark/ablations/1",
            "command": "python -m rvos_deploy.benchmarks.studies.ablations",
            "rows": rows,
            "versions": versions("torch"),
            "machine": machine(),
        },
    )
    write_text(out / TABLE, table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Render the rows as Markdown: means over seeds, and differences from the base on the same
    seeds.

    A higher J&F is better, and a lower class loss.

    Args:
        rows: of ``ablations.json``.
    """
    kinds = sorted({name for row in rows for name in row if name.startswith("j_and_f_")})
    shown = ("j_and_f", *kinds, "n_acc", "class_loss")
    titles = ["J&F", *(kind.removeprefix("j_and_f_").replace("_", " ") for kind in kinds)]
    titles = ["variant", "seeds", *titles, "N-acc", "class loss", "J&F by seed", "loss by seed"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for variant in VARIANTS:
        found = {row["seed"]: row for row in rows if row["variant"] == variant.name}
        if not found:
            continue
        base = "full" if variant.reads_text_anew else "aligned"
        bases = {row["seed"]: row for row in rows if row["variant"] == base}
        cells = [f"`{variant.name}`", ", ".join(map(str, sorted(found)))]
        cells += [f"{mean(row[name] for row in found.values()):.3f}" for name in shown]
        for name in ("j_and_f", "class_loss"):
            less = [found[s][name] - bases[s][name] for s in sorted(found) if s in bases]
            cells.append("" if variant.name == base else ", ".join(f"{x:+.3f}" for x in less))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
