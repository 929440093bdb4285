"""What a recipe needs: counted multiply-adds and saved activations, and hours estimated from them.

``python -m rvos_deploy.benchmarks.studies.training_cost mevis_large``

One small clip goes forward and backward on the CPU, counted by PyTorch's own counter; the counts
are scaled to the recipe by pixels. Hours are an estimate: they assume a sustained share of a
processor's peak, which was not measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rvos_deploy.console.error_lines import one_line_errors
from rvos_deploy.networks.pan2024.modules.network import build_network
from rvos_deploy.training.objective import select_trained
from rvos_deploy.training.recipe import Recipe, Stage
from rvos_deploy.training.recipe_file import read_recipe

PROBE = (128, 224)
"""Frame that is counted; the network is convolutional, so costs grow with the pixels."""
GPU_TERAFLOPS = 312.0
"""Peak of an A100 in bfloat16."""
SUSTAINED = 0.3
"""Share of the peak that is assumed."""


@dataclass(frozen=True)
class Cost:
    """Of one frame of ``PROBE`` pixels: floating-point operations (two a multiply-add) of a
    training step, and bytes saved for the backward pass in float32; bytes of weights, gradients
    and moments.
    """

    flops: float
    activation_bytes: float
    state_bytes: float


def count_cost(recipe: Recipe, frames: int = 2) -> Cost:
    """Count the network's forward and backward pass on one clip; the losses cost little beside."""
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
    # float32: weights, and for the learned ones also gradients and AdamW's two moments.
    state = 4 * frozen + 16 * learned
    return Cost(counter.get_total_flops() / frames, activations / frames, state)


def pixels(recipe: Recipe) -> float:
    """Pixels of a recipe's mean frame: 16:9 with its short sides, at most its long side."""
    if recipe.data == "sprites":
        return recipe.sprites.height * recipe.sprites.width
    sides = [min(short, recipe.augment.long_side * 9 / 16) for short in recipe.augment.short_sides]
    return sum(short * short * 16 / 9 for short in sides) / len(sides)


@one_line_errors
def main(name: Annotated[str, typer.Argument(metavar="CONFIG", help="Recipe.")]) -> None:
    """Print what each stage of a recipe needs."""
    recipe = read_recipe(name)
    cost = count_cost(recipe)
    scale = pixels(recipe) / (PROBE[0] * PROBE[1])
    half = 0.5 if recipe.precision != "32-true" else 1.0
    typer.echo(f"{name}: {cost.flops * scale / 2e9:.1f} G multiply-adds a frame and step (counted)")
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
