"""The training loop, on Lightning Fabric.

Fabric, because it takes over what differs between machines (devices, processes under torchrun,
autocast, loss scaling) and leaves the loop to us: a resumed run must repeat every number, so order
of data, random streams and checkpoints have to be in our hands. Accelerate would do the same, but
its checkpoints are pickled and its seeding is global.

Every random draw is a function of (seed, clip) or (seed, step, part, process). So step ``k`` needs
nothing but the weights and moments of step ``k - 1``.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from rvos_deploy.datasets import DataSplit
from rvos_deploy.environment import versions
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.files import write_text
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.pan2024.modules.checkpoint import clip_fingerprint
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.training import checkpoints
from rvos_deploy.training.checkpoints import TrainingState, save_checkpoint
from rvos_deploy.training.clips import Batch, Clips, batches, training_tokenizer
from rvos_deploy.training.frame_cache import (
    CachedBatch,
    VideoObjective,
    cached_batches,
    fill_cache,
)
from rvos_deploy.training.logs import RunLog
from rvos_deploy.training.objective import (
    Objective,
    learning_rate,
    loss_config,
    make_optimizer,
    select_trained,
    step_generator,
)
from rvos_deploy.training.preflight import check_slots, check_text
from rvos_deploy.training.preparation import (
    RECIPE,
    check_resumable,
    clip_source,
    make_fabric,
    make_network,
    read_training_data,
    read_validation_data,
    resumed_state,
)
from rvos_deploy.training.recipe import Recipe, Stage
from rvos_deploy.training.validation import validate

INIT_REPORT = "init_from.txt"
"""Which weights of a published checkpoint were and were not loaded."""

AnyBatch = Batch | CachedBatch
Progress = Callable[[str, int, int], None]
"""Told the stage, steps done of it, and all of its steps."""


@dataclass(frozen=True)
class TrainingResult:
    """What a run left: its last and its best checkpoint, steps done, best J&F, seconds of steps."""

    checkpoint: Path
    best_checkpoint: Path | None
    steps: int
    best: float | None
    seconds: float


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    valid: str | os.PathLike[str] | None = None,
    init_from: str | os.PathLike[str] | None = None,
    clip_weights: str | None = None,
    resume: bool = False,
    steps: int | None = None,
    cpp_ops: bool = True,
    accelerator: str = "auto",
    progress: Progress | None = None,
) -> TrainingResult:
    """Train by a recipe; all processes of a run call it alike.

    Args:
        recipe: what to do.
        out: folder of the run.
        data: folder of the train split; not used by ``data = "sprites"``.
        valid: folder of a valid split; Moving Sprites render their own.
        init_from: weights to start from: our own safetensors, or a checkpoint of FC-CLIP or
            Mask2Former; what of that was loaded is written to ``init_from.txt``.
        clip_weights: open_clip tag or file; None: the run's own when it is resumed, else the
            preset's tag, or without gates random ones by the seed. What no tag names is kept in
            the run as ``clip.safetensors``.
        resume: go on from the latest checkpoint in ``out``; from the start if there is none.
        steps: stop after so many in all; the schedule stays that of the recipe.
        cpp_ops: compute deformable attention in C++ on a CPU.
        accelerator: of Fabric: "auto", "cpu" or "cuda".
        progress: told after each step.

    Raises:
        InputError: a folder, file or recipe that cannot be used, or ``out`` holds another run.
        RvosError: the loss is not finite, or a gate is not passed.
    """
    run = Path(out)
    folder = checkpoints.find_checkpoint(run)
    if folder is not None and not resume:
        raise InputError(f"{run} holds a run; go on with --resume, or choose another folder")
    split = read_training_data(recipe, data)
    loss_config(recipe.loss)
    fabric = make_fabric(recipe, accelerator)
    first_weights = init_from if folder is None else None
    # A run keeps its CLIP part, so that it can be resumed and exported without the file.
    own_clip = run / checkpoints.CLIP
    if folder is not None and clip_weights is None and own_clip.is_file():
        clip_weights = str(own_clip)
    network, report = make_network(recipe, clip_weights, first_weights)
    state = TrainingState(
        0,
        0,
        0,
        recipe.as_dict(),
        clip_fingerprint(network.clip),
        clip_source(recipe, clip_weights),
        versions=versions("torch"),
    )
    if folder is not None:
        state = resumed_state(folder, state, recipe)
        checkpoints.load_weights(folder, network)
        stage = recipe.stages[state.stage]
        if 0 < state.stage_step < stage.steps:
            check_resumable(run, folder, stage, network)
    validation = None
    if fabric.global_rank == 0:
        validation = read_validation_data(recipe, run, valid)
    fabric.to_device(network)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(RunLog(run, state.step)) if fabric.global_rank == 0 else None
        # Only now: whatever could not be read has been refused, and the folder is as it was.
        if fabric.global_rank == 0:
            write_json(run / RECIPE, recipe.as_dict())
            if state.clip_source == checkpoints.CLIP and not own_clip.is_file():
                checkpoints.save_clip(own_clip, network)
            if report is not None:
                write_text(run / INIT_REPORT, report.summary() + "\n")
        if cpp_ops and fabric.device.type == "cpu":
            from rvos_deploy.training.cpu_ops.ms_deform_attn import cpp_ops as use_cpp_ops

            stack.enter_context(use_cpp_ops())
        job = _Job(fabric, network, recipe, run, split, validation, log, steps, progress)
        return job.run_stages(state, folder)


@dataclass
class _Job:
    """One process's part in a run."""

    fabric: Fabric
    network: RvosNetwork
    recipe: Recipe
    run: Path
    split: DataSplit | None
    validation: DataSplit | None
    log: RunLog | None
    limit: int | None
    progress: Progress | None

    def run_stages(self, state: TrainingState, folder: Path | None) -> TrainingResult:
        """All stages from where the state stands."""
        started = time.perf_counter()
        for number in range(state.stage, len(self.recipe.stages)):
            if number > state.stage:
                state = replace(state, stage=number, stage_step=0)
            if self._finished(state):
                break
            state, folder = self._run_stage(state, folder)
        if folder is None:
            raise InputError(f"no step was to be done in {self.run}; give --steps of at least 1")
        best, seconds = (
            checkpoints.find_checkpoint(self.run, checkpoints.BEST),
            time.perf_counter() - started,
        )
        return TrainingResult(folder, best, state.step, state.best, seconds)

    def _finished(self, state: TrainingState) -> bool:
        return self.limit is not None and state.step >= self.limit

    def _run_stage(
        self, state: TrainingState, folder: Path | None
    ) -> tuple[TrainingState, Path | None]:
        stage = self.recipe.stages[state.stage]
        stop = stage.steps
        if self.limit is not None:
            stop = min(stop, state.stage_step + self.limit - state.step)
        steps = range(state.stage_step, stop)
        if not steps:
            return state, folder
        self._check_gates(stage, state)
        named = select_trained(self.network, stage)
        optimizer = make_optimizer(named, stage)
        first = sum(earlier.clips for earlier in self.recipe.stages[: state.stage])
        source = self._batches(stage, first, steps)
        model, wrapped = self._set_up(stage, optimizer)
        if state.stage_step and folder is not None:
            checkpoints.load_optimizer(folder, self.network, optimizer)
            checkpoints.load_scaler(folder, self.fabric.strategy.precision, state.scaler)
        for step in steps:
            started = time.perf_counter()
            rate = learning_rate(stage, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            values = self._step(model, wrapped, source, stage, state.step)
            state = replace(state, step=state.step + 1, stage_step=step + 1)
            if self.log is not None:
                seconds = time.perf_counter() - started
                row = {**values, "learning_rate": rate, "seconds": seconds}
                self.log.training(state.step, stage.name, row)
            if self.progress is not None and self.fabric.global_rank == 0:
                self.progress(stage.name, state.stage_step, stage.steps)
            state, folder = self._after_step(state, optimizer, step + 1 == stop, folder)
        return state, folder

    def _check_gates(self, stage: Stage, state: TrainingState) -> None:
        """Each process checks for itself, so that all stop."""
        if not self.recipe.gates or state.stage_step:
            return
        if state.stage == 0:
            check_text(self.network, self.run)
        elif self.recipe.data == "sprites" and stage.trains_video_part_alone and stage.length > 1:
            check_slots(self.network, self.recipe, self.run)

    def _batches(self, stage: Stage, first: int, steps: range) -> Iterator[AnyBatch]:
        clips = Clips(self.recipe, stage, self.split)
        place = (self.fabric.global_rank, self.fabric.world_size)
        if not stage.cached:
            return batches(clips, first, steps, *place)
        folder = self.run / "cache" / stage.name
        cached = fill_cache(self.fabric, self.network, clips, first, folder)
        return cached_batches(cached, self.recipe, stage, steps, *place)

    def _set_up(self, stage: Stage, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        losses = loss_config(stage.loss or self.recipe.loss)
        kind = VideoObjective if stage.cached else Objective
        objective = kind(self.network.train(), losses, self._mean)
        model, wrapped = self.fabric.setup(objective, optimizer)
        return model, wrapped

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over all processes."""
        mean = self.fabric.all_reduce(values, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean

    def _step(
        self,
        model: Any,
        wrapped: Any,
        source: Iterator[AnyBatch],
        stage: Stage,
        step: int,
    ) -> dict[str, float]:
        """One optimizer step; ``step`` counts over all stages, from 0."""
        sums: dict[str, Tensor] = {}
        single = stage.single_every > 0 and (step + 1) % stage.single_every == 0
        for part, batch in enumerate(islice(source, stage.accumulate)):
            batch = batch.to(self.fabric.device)
            if isinstance(batch, Batch) and single:
                batch = batch.single_frames()
            generator = step_generator(self.recipe.seed, step, part, self.fabric.global_rank)
            last = part + 1 == stage.accumulate
            with self.fabric.no_backward_sync(model, enabled=not last):
                losses = model(*batch, generator)
                self.fabric.backward(losses["total"] / stage.accumulate)
            for name, loss in losses.items():
                share = loss.detach() / stage.accumulate
                sums[name] = sums[name] + share if name in sums else share
        norm = self.fabric.clip_gradients(
            model, wrapped, max_norm=stage.clip_gradient, error_if_nonfinite=False
        )
        assert norm is not None
        wrapped.step()
        wrapped.zero_grad()
        averaged = self._mean(torch.stack(list(sums.values())))
        values = dict(zip(sums, averaged.tolist(), strict=True))
        if not math.isfinite(values["total"]):
            raise RvosError(
                f"the loss of step {step + 1} is {values['total']}; resume from the latest "
                "checkpoint with a lower learning_rate, or precision = '32-true'"
            )
        return {**values, "gradient_norm": float(norm)}

    def _after_step(
        self,
        state: TrainingState,
        optimizer: torch.optim.Optimizer,
        last: bool,
        folder: Path | None,
    ) -> tuple[TrainingState, Path | None]:
        """Validate and write a checkpoint where they are due; process 0 does it for all."""
        every = self.recipe.validate_every
        validates = every > 0 and (last or state.step % every == 0)
        if not (last or validates or state.step % self.recipe.checkpoint_every == 0):
            return state, folder
        if self.fabric.global_rank == 0:
            better = False
            if validates and self.validation is not None:
                found = self._validate(state)
                better = state.best is None or found > state.best
                state = replace(state, best=found if better else state.best)
            state = replace(state, scaler=self.fabric.strategy.precision.state_dict())
            keep = self.recipe.keep
            save_checkpoint(self.run, state, self.network, optimizer, keep=keep, best=better)
        self.fabric.barrier()
        return state, checkpoints.find_checkpoint(self.run)

    def _validate(self, state: TrainingState) -> float:
        assert self.validation is not None
        assert self.log is not None
        pictures = self.run / "overlays" / f"step-{state.step:08d}"
        videos = self.recipe.validation_videos
        values = validate(
            self.network, training_tokenizer(), self.validation, videos=videos, pictures=pictures
        )
        self.log.validation(state.step, self.recipe.stages[state.stage].name, values)
        return values["j_and_f"]
