"""Reduce a recipe until a CPU runs it in minutes, with the same network. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from rvos_deploy.training.recipe import Recipe, Stage

STEPS = 2
"""Steps of each stage. The second is the first that uses updated weights."""
_LENGTH = 2
_POINTS = 256
_SHORT_SIDES = (64, 96)
_LONG_SIDE = 160
_INPUT_SIZE = (96, 160)


def smoke_recipe(recipe: Recipe) -> Recipe:
    """Reduce the amount of computation, but not its kind.

    The network, the precision, the batch and its division stay. Each stage has two steps of clips
    with at most two frames. Frames of a data set are scaled to two small sizes, so clips still
    differ in size. Moving Sprites keep their size, because cached stages depend on it. The
    preflight checks and the tag of CLIP's weights are left out, so CLIP is random unless weights
    are given. A recipe with validation scores one video at the end, at a small size.
    """
    return replace(
        recipe,
        model=replace(recipe.model, clip_pretrained=None, input_size=_INPUT_SIZE),
        stages=tuple(_smoke_stage(stage) for stage in recipe.stages),
        workers=min(recipe.workers, 1),
        validation_videos=1,
        preflight=False,
        augment=replace(recipe.augment, short_sides=_SHORT_SIDES, long_side=_LONG_SIDE),
        loss=replace(recipe.loss, num_points=min(_POINTS, recipe.loss.num_points)),
    )


def _smoke_stage(stage: Stage) -> Stage:
    length = min(stage.length, _LENGTH)
    points = None
    if stage.loss is not None:
        points = replace(stage.loss, num_points=min(_POINTS, stage.loss.num_points))
    return replace(
        stage,
        steps=min(stage.steps, STEPS),
        length=length,
        cached=min(stage.cached, 2 * stage.batch),
        cached_length=min(stage.cached_length, length + 1) if stage.cached_length else 0,
        loss=points,
    )
