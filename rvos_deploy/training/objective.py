"""Provide what a step needs: the losses as a module, the optimizer, its rate, random points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.modules.checkpoint import CLIP_PREFIX
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.training.clips import Batch
from rvos_deploy.training.losses import LossConfig, LossWeights, training_losses
from rvos_deploy.training.points import PointSampling
from rvos_deploy.training.recipe import LossSettings, Stage

_POINTS = 2  # separates the random stream of points from that of clips
_UNDECAYED = ("query_position", "slot_position", "level_embedding", "query_share")


class Objective(nn.Module):
    """Combine the network and its losses in one module.

    Distributed training and autocast act on ``forward``. The losses use the mask head, so they are
    computed inside ``forward``.
    """

    def __init__(
        self,
        network: RvosNetwork,
        losses: LossConfig,
        mean_over_processes: Callable[[Tensor], Tensor] = lambda count: count,
    ) -> None:
        super().__init__()
        self.network, self.losses, self.mean = network, losses, mean_over_processes

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch by name, with their weighted sum "total"."""
        return training_losses(
            self.network(batch.frames, batch.token_ids, batch.ages),
            batch.targets,
            self.network.mask_head,
            generator=generator,
            config=self.losses,
            mean_over_processes=self.mean,
        )


def loss_config(settings: LossSettings) -> LossConfig:
    """Return the configuration of the losses for the settings of a recipe."""
    values = asdict(settings)
    points = {name: values.pop(name) for name in ("num_points", "oversample", "importance")}
    others = {name: values.pop(name) for name in ("frame_objects", "accept_duplicates")}
    return LossConfig(LossWeights(**values), PointSampling(**points), **others)


def learning_rate(stage: Stage, step: int) -> float:
    """Return the learning rate of a step (from 0) of a stage: linear warm-up, then the schedule."""
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / (stage.warmup + 1)
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    factor = stage.final_rate + (1 - stage.final_rate) * left[stage.schedule]
    return stage.learning_rate * (1.0 if stage.schedule == "constant" else factor)


def select_trained(network: RvosNetwork, stage: Stage) -> dict[str, nn.Parameter]:
    """Enable gradients of a stage's parameters, freeze all others, and return the former by name.

    Raises:
        InputError: no parameter begins with a prefix of the stage.
    """
    named = {n: p for n, p in network.named_parameters() if not n.startswith(CLIP_PREFIX)}
    for prefix in stage.trained:
        if not any(name.startswith(prefix) for name in named):
            raise InputError(f"stage '{stage.name}': no trainable parameter begins with '{prefix}'")
    chosen = {
        name: parameter
        for name, parameter in named.items()
        if not stage.trained or name.startswith(stage.trained)
    }
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return chosen


def make_optimizer(named: dict[str, nn.Parameter], stage: Stage) -> torch.optim.AdamW:
    """Return AdamW, without weight decay on biases, norms and learned positions."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named.items():
        groups[parameter.ndim > 1 and not name.endswith(_UNDECAYED)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": stage.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=stage.learning_rate,
    )


def step_generator(seed: int, step: int, part: int, rank: int) -> torch.Generator:
    """Return the random stream for the points of one part of one step in one process."""
    words = np.random.SeedSequence([seed, _POINTS, step, part, rank]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)
