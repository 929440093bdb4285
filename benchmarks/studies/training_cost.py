"""Estimate what a recipe needs: multiply-adds, saved activations, and GPU hours.

``python -m rvos_deploy.benchmarks.studies.training_cost mevis_large``

One small clip runs forward and backward on the CPU, and PyTorch counts it. The counts are scaled to
the recipe by pixels. Hours assume a sustained share of a GPU's peak, which was not measured on one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.networks.pan2024.modules.network import build_network
from rvos_deploy.training.objective import select_trained
from rvos_deploy.training.recipe import Recipe, Stage
from rvos_deploy.training.recipe_file import read_recipe

PROBE = (128, 224)
"""Size of the counted frame. The network is convolutional, so costs grow with the pixels."""
GPU_TERAFLOPS = 312.0
"""Peak of an A100 in bfloat16."""
SUSTAINED = 0.3
"""The assumed share of the peak."""


@dataclass(frozen=True)
class Cost:
    """The counted cost of one frame of ``PROBE`` pixels.

    Args:
        flops: floating-point operations of a training step, two a multiply-add.
        activation_bytes: saved for the backward pass, in float32.
        state_bytes: of weights, gradients and moments.
    """

    flops: float
    activation_bytes: float
    state_bytes: float


def count_cost(recipe: Recipe, frames: int = 2) -> Cost:
    """Count the network's forward and backward pass on one clip; the losses add little."""
    torch.manual_seed(0)
    network = build_network(recipe.model).train()
    trained = select_trained(network, Stage("probe", 1, 1, frames, 1e-4))
    images = torch.zeros((1, frames, *PROBE, 3), dtype=torch.uint8)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(images, torch.tensor([[49406, 518, 1929, 2761, 49407]]))
        answers = [output.frames.mask_features, *output.frames.predictions[-1]]
        sum(answer.sum() for answer in [*answers, *output.video.predictions[-1]]).backward()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    learned = sum(p.numel() for p in trained.values())
    frozen = sum(p.numel() for p in network.parameters()) - learned
    # All of it is float32: weights, and for trained ones gradients and AdamW's two moments.
    state = 4 * frozen + 16 * learned
    return Cost(counter.get_total_flops() / frames, activations / frames, state)


def pixels(recipe: Recipe) -> float:
    """Return the pixels of a recipe's mean frame: 16:9 with its short sides."""
    if recipe.data == "sprites":
        return recipe.sprites.height * recipe.sprites.width
    sides = [min(short, recipe.augment.long_side * 9 / 16) for short in recipe.augment.short_sides]
    return sum(short * short * 16 / 9 for short in sides) / len(sides)


@with_error_lines
def main(name: Annotated[str, typer.Argument(metavar="CONFIG", help="Recipe.")]) -> None:
    """Print what each stage of a recipe needs."""
    recipe = read_recipe(name)
    cost = count_cost(recipe)
    scale = pixels(recipe) / (PROBE[0] * PROBE[1])
    half = 0.5 if recipe.precision != "32-true" else 1.0
    typer.echo(
        f"{name}: {cost.flops * scale / 2e9:.1f} G multiply-adds per frame and step (counted)"
    )
    for stage in recipe.stages:
        if stage.cached:
            continue
        flops = cost.flops * scale * stage.batch * stage.length * stage.steps
        hours = flops / (GPU_TERAFLOPS * 1e12 * SUSTAINED) / 3600
        clip = cost.activation_bytes * scale * stage.length * half
        typer.echo(
            f"  {stage.name}: {flops:.1e} FLOP; {clip / 2**30:.1f} GiB of activations a clip and "
            f"{cost.state_bytes / 2**30:.1f} GiB of weights and moments (estimated); "
            f"{hours:.1f} A100 hours at {SUSTAINED:.0%} of its peak (estimated, not run)"
        )


if __name__ == "__main__":
    typer.run(main)
