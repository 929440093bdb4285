"""A recipe cut down until a CPU runs it in minutes: the same network, data and steps, less of each.

No torch.
"""

from __future__ import annotations

from dataclasses import replace

from rvos_deploy.training.recipe import Recipe, Stage

STEPS = 2
"""Of each stage: the second is the first whose weights an optimizer step has changed."""
_LENGTH = 2
_POINTS = 256
_SHORT_SIDES = (64, 96)
_LONG_SIDE = 160
_INPUT_SIZE = (96, 160)


def smoke_recipe(recipe: Recipe) -> Recipe:
    """Cut a recipe down: what is reduced is how much, never what is computed.

    The network, the precision, the batch and the way it is shared stay. Each stage has two steps,
    of clips of at most two frames. Frames of a data set are scaled to two small sizes (Moving
    Sprites keep theirs, which gates and cached stages depend on), so clips still differ in size.
    The gates are left out, and so is the tag of CLIP's weights: they are random unless others are
    given. One video is scored at the end, at a small size, where the recipe has a validation.
    """
    return replace(
        recipe,
        model=replace(recipe.model, clip_pretrained=None, input_size=_INPUT_SIZE),
        stages=tuple(_smoke_stage(stage) for stage in recipe.stages),
        workers=min(recipe.workers, 1),
        validation_videos=1,
        gates=False,
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
