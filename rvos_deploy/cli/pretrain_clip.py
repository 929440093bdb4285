"""``rvos-deploy pretrain-clip``: the frozen part of the tiny network, from the sprite world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import EmojiOption, JsonOption, check_outputs


def pretrain_clip(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; resumed if there.")],
    config: Annotated[str, typer.Argument(metavar="[CONFIG]", help="Preset.")] = "tiny",
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N")] = 3000,
    batch: Annotated[int, typer.Option("--batch", min=2, metavar="N", help="Pictures.")] = 128,
    image_size: Annotated[int, typer.Option("--image-size", min=32, metavar="N")] = 96,
    seed: Annotated[int, typer.Option("--seed", metavar="N")] = 0,
    emoji: EmojiOption = False,
    workers: Annotated[int, typer.Option("--workers", min=0, metavar="N")] = 1,
    json: JsonOption = None,
) -> None:
    """Pre-train CLIP on sprite pictures and captions; report retrieval and motion words.

    OUT/clip.safetensors is what --clip-weights takes. Exit code 1 when the text tower does not tell
    opposite motion words apart: no later stage could learn motion from it.
    """
    from rvos_deploy.cli.extras import let_threads_sleep, needs_extra

    check_outputs([json])
    let_threads_sleep()
    with needs_extra("training", "train"):
        from rvos_deploy.networks.pan2024.modules.clip import build_clip
        from rvos_deploy.training import clip_pretraining, motion_words
        from rvos_deploy.training.checkpoints import hint_on_stop
        from rvos_deploy.training.clips import training_tokenizer
    from rvos_deploy.environment import machine, versions
    from rvos_deploy.files import holding
    from rvos_deploy.json_file import write_json
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
    typer.echo(
        f"held-out captions, best of {retrieval['candidates']}: "
        f"image to text {retrieval['image_to_text']:.3f}, "
        f"text to image {retrieval['text_to_image']:.3f}; "
        f"against a false caption {retrieval['against_negative']:.3f}"
    )
    typer.echo(
        f"opposite motion words: {words.ratio:.2f} of the distance between nouns "
        f"(needed: {motion_words.MINIMUM_RATIO})"
    )
    passed = words.ratio >= motion_words.MINIMUM_RATIO
    if json is not None:
        write_json(
            json,
            {
                "schema": "rvos-deploy/pretrain-clip/1",
                "command": "pretrain-clip",
                "steps": steps,
                "seed": seed,
                "emoji": emoji,
                "retrieval": retrieval,
                "motion_words": {"ratio": words.ratio, "by_pair": words.by_pair},
                "passed": passed,
                "versions": versions("torch", "open_clip_torch"),
                "machine": machine(),
            },
        )
    if not passed:
        raise typer.Exit(1)
