"""Train the CLIP part of the tiny network on Moving Sprites: ``rvos-deploy pretrain-clip``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import EmojiOption, JsonOption
from rvos_deploy.console.output_files import check_outputs, write_record


def pretrain_clip(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="RUN",
            help="Folder of the run. An existing run is continued.",
        ),
    ],
    config: Annotated[
        str,
        typer.Argument(metavar="[CONFIG]", help="Model preset whose CLIP part is trained."),
    ] = "tiny",
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Optimizer steps.")
    ] = 3000,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=2, help="Pictures per step.")
    ] = 128,
    image_size: Annotated[
        int, typer.Option("--image-size", metavar="N", min=32, help="Side of a picture, in pixels.")
    ] = 96,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of the weights and the pictures.")
    ] = 0,
    emoji: EmojiOption = False,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            metavar="N",
            min=0,
            help="Processes that draw pictures. 0: the training process draws them.",
        ),
    ] = 1,
    json: JsonOption = None,
) -> None:
    """Pre-train CLIP on pictures and captions of sprites; measure retrieval and motion words.

    Pass RUN/clip.safetensors to --clip-weights of 'train'.

    Exit code 1: the text encoder does not distinguish opposite motion words.
    """
    from rvos_deploy.console.extras import let_threads_sleep, needs_extra

    check_outputs([json])
    let_threads_sleep()
    with needs_extra("training", "train"):
        from rvos_deploy.networks.pan2024.modules.clip import build_clip
        from rvos_deploy.training import clip_pretraining, motion_words
        from rvos_deploy.training.checkpoints import hint_on_stop
        from rvos_deploy.training.clips import training_tokenizer
    from rvos_deploy.environment import versions
    from rvos_deploy.files import holding
    from rvos_deploy.networks.pan2024.config import preset

    chosen = preset(config)
    recipe = clip_pretraining.PretrainRecipe(
        steps=steps, batch=batch - batch % 2, size=image_size, seed=seed, emoji=emoji
    )
    tokenizer = training_tokenizer()
    with hint_on_stop(out, "the same command"), holding(out, "training in"):
        retrieval = clip_pretraining.pretrain_clip(
            chosen, out, recipe, tokenizer, workers=workers, progress=typer.echo
        )
    trained = build_clip(chosen, str(out / clip_pretraining.WEIGHTS))
    words = motion_words.motion_word_distances(trained, tokenizer)
    _print(retrieval, words.ratio)
    passed = words.ratio >= motion_words.MINIMUM_RATIO
    content = {
        "steps": steps,
        "seed": seed,
        "emoji": emoji,
        "retrieval": retrieval,
        "motion_words": {"ratio": words.ratio, "by_pair": words.by_pair},
        "passed": passed,
    }
    write_record(json, "pretrain-clip", content, versions("torch", "open_clip_torch"))
    if not passed:
        raise typer.Exit(1)


def _print(retrieval: Mapping[str, float], ratio: float) -> None:
    from rvos_deploy.training.motion_words import MINIMUM_RATIO

    typer.echo(
        f"held-out captions, best of {retrieval['candidates']}: "
        f"image to text {retrieval['image_to_text']:.3f}, "
        f"text to image {retrieval['text_to_image']:.3f}; "
        f"against a false caption {retrieval['against_negative']:.3f}"
    )
    typer.echo(
        f"opposite motion words: {ratio:.2f} of the distance between nouns "
        f"(needed: {MINIMUM_RATIO})"
    )
