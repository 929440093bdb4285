"""The paper's claims, and one of ours, measured on Moving Sprites.

``python -m rvos_deploy.benchmarks.studies.ablations OUT --clip-weights F --weights F
[--other-clip F]``

Each variant differs from ``full`` in one thing, and shares its data, steps and seeds:

(a) ``foreign_text``: text features from a tower that was not trained with the image trunk;
(b) ``no_text_fusion``: text starts the queries and nothing else, as in LMPM;
(c) ``weighted``, ``sentence``: the video query initializer without alignment, or from the sentence;
(d) ``no_mask_position``: frame tokens without the position of their mask; ``no_position``: nor the
    trajectory encoding of a slot, which our decoder computes from the same positions.

All begin with the trained network of ``--weights``, less what a variant could gain from:

- (c) and (d) change what comes after the frame queries: the frame part is kept, the video part
  begins at random and learns from cached tokens. Compared with ``aligned``.
- (a) and (b) change how text comes in: all that reads text begins at random, and both parts are
  trained. What sees pictures alone is kept, or no short run would show a thing. Compared with
  ``full``.

Short runs end with scores that are too low for the threshold of the packaged network, each by its
own amount. So every row is scored at each of ``THRESHOLDS``, and shown at the one that is best for
it. The class loss of the last steps stands beside J&F: variants of one seed learn from the same
clips in the same order, so that it tells finer than a hundred expressions do.

Results are added to ``OUT/ablations.json`` one by one, each with its budget, and shown as a table
in ``OUT/ablations.md``; a run that was stopped goes on.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from rvos_deploy.benchmarks.studies.video_queries import decode_queries
from rvos_deploy.console.error_lines import one_line_errors
from rvos_deploy.datasets import DataSplit, VideoRecord
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.evaluate import evaluate
from rvos_deploy.export.weights import Weights, load_network
from rvos_deploy.files import write_text
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.json_file import write_json
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

    reads_text_anew: (a) and (b): what reads text begins at random; else the video part does.
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
"""``full`` is what (a) and (b) are compared with, ``aligned`` what (c) and (d) are."""


@dataclass(frozen=True)
class Budget:
    """Steps of the masks' stage ((a) and (b)) and of the cached one, clips a step and in the cache,
    videos to validate on.
    """

    frame_steps: int = 400
    video_steps: int = 1000
    batch: int = 32
    cached: int = 2000
    videos: int = 30


def variant_recipe(recipe: Recipe, variant: Variant, budget: Budget, seed: int) -> Recipe:
    """The recipe of one row: stages of the base recipe, fewer steps, one change of the model.

    A clip's cached frames are just those that a step reads: shorter runs hardly see a clip twice.
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
    """Without what the variant does not have."""
    lacks = dict(variant.model).get("mask_position") is False
    return tuple(n for n in trained if not (lacks and n == "frame_decoder.mask_position"))


def foreign_text_clip(trunk: Path, tower: Path, out: Path) -> Path:
    """Write a CLIP with the image trunk of one file and the text tower of another."""
    kept, taken = load_file(trunk), load_file(tower)
    mixed = {n: taken[n] if n.startswith(_TEXT_TOWER) else tensor for n, tensor in kept.items()}
    save_file(mixed, out)
    return out


def begins_at_random(name: str, variant: Variant) -> bool:
    """Whether a variant's parameter begins at random; else ``--weights`` gives it."""
    if variant.reads_text_anew:
        return any(part in f".{name}" for part in _READS_TEXT)
    return name.startswith(CACHEABLE)


def starting_weights(
    config: ModelConfig, variant: Variant, weights: Path, seed: int, out: Path
) -> Path:
    """Write what a variant begins with."""
    torch.manual_seed(seed)
    fresh, stored = trained_weights(build_network(config)), load_file(weights)
    mixed = {
        name: tensor if begins_at_random(name, variant) else stored[name]
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
    """Train one row, or go on with it, and validate it."""
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
    """Mean class loss of the video part over the last ``LOSS_STEPS`` steps of the last stage."""
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    last = [float(row["video_class"]) for row in rows if row["stage"] == rows[-1]["stage"]]
    return mean(last[-LOSS_STEPS:])


def best_threshold(
    network: RvosNetwork, tokenizer: Tokenizer, valid: DataSplit
) -> dict[str, float]:
    """J&F and all that ``summary`` gives at the threshold of the best J&F, which is named too."""
    queries = {video.name: decode_queries(network, tokenizer, video) for video in valid.videos}
    found = []
    for threshold in THRESHOLDS:

        def predict(video: VideoRecord, threshold: float = threshold) -> NDArray[np.bool_]:
            return queries[video.name].masks(threshold)

        found.append({"threshold": threshold, **summary(evaluate(predict, valid, "mevis"))})
    return max(found, key=lambda values: values["j_and_f"])


@one_line_errors
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
    """Videos of a seed that no recipe names."""
    return sprite_validation(
        replace(base, validation_seed=4242, validation_videos=budget.videos), folder
    )


def _lend_cache(out: Path, run: Path, variant: Variant, seed: int) -> None:
    """Hand on the tokens of the variant before, which are the same where the frame part is: the
    trainer makes them anew where they are not.
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
    return any(
        row["variant"] == variant and row["seed"] == seed for row in _record(out).get("rows", [])
    )


def _record(out: Path) -> dict[str, Any]:
    file = out / RESULT
    if not file.is_file():
        return {}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def _add(out: Path, row: dict[str, Any]) -> None:
    rows = [*_record(out).get("rows", []), row]
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
    """Markdown: means over seeds, and what each variant differs by from its base on the same seeds.
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
