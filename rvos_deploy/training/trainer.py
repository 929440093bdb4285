"""Run the training loop, on Lightning Fabric.

Fabric handles what differs between machines (devices, processes under torchrun, autocast, loss
scaling) and leaves the loop to this module. A resumed run must repeat every number, so this module
controls the order of data, the random streams and the checkpoints. Accelerate would also leave the
loop, but it pickles checkpoints and seeds globally.

Every random draw is a function of (seed, clip) or (seed, step, part, process). So step ``k`` needs
only the weights and moments of step ``k - 1``.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from rvos_deploy.cpu_ops import ms_deform_attn
from rvos_deploy.datasets import DataSplit
from rvos_deploy.environment import versions
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.files import write_text
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.modules.ms_deform_attn_cpu import cpu_kernel
from rvos_deploy.networks.pan2024.modules.checkpoint import clip_fingerprint
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.progress import CountProgress, ignore_counts
from rvos_deploy.training import checkpoints
from rvos_deploy.training.checkpoints import TrainingState, save_checkpoint
from rvos_deploy.training.clips import (
    Batch,
    Clips,
    batches,
    check_sizes,
    training_tokenizer,
)
from rvos_deploy.training.distributed import on_first
from rvos_deploy.training.frame_cache import (
    CachedBatch,
    VideoObjective,
    cached_batches,
    fill_cache,
)
from rvos_deploy.training.init_from import InitReport
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
    missing_validation,
    read_training_data,
    read_validation_data,
    resumed_state,
    warn_of_other_processes,
)
from rvos_deploy.training.recipe import Recipe, Stage
from rvos_deploy.training.validation import validate

INIT_REPORT = "init_from.txt"
"""File that lists the weights of a published checkpoint that were and were not loaded."""

AnyBatch = Batch | CachedBatch


@dataclass(frozen=True)
class TrainingResult:
    """Report a run.

    Attributes:
        checkpoint: folder of the last checkpoint.
        best_checkpoint: folder of the checkpoint with the best J&F; None without validation.
        steps: optimizer steps of the whole run.
        best: best J&F; None without validation.
        seconds: duration of the steps.
    """

    checkpoint: Path
    best_checkpoint: Path | None
    steps: int
    best: float | None
    seconds: float


@dataclass(frozen=True)
class TrainingOptions:
    """Set the inputs of a run, and how it runs. These options do not belong to its recipe.

    Attributes:
        data: folder of the train split; not used by ``data = "sprites"``.
        valid: folder of a valid split; Moving Sprites render their own.
        init_from: initial weights: safetensors of rvos-deploy, or a checkpoint of FC-CLIP or
            Mask2Former. The file ``init_from.txt`` then lists the loaded weights.
        clip_weights: open_clip tag or file. None: the run's own when it is resumed, else the
            preset's tag, or random weights without preflight checks. The run keeps weights without
            a tag as ``clip.safetensors``.
        resume: resume from the latest checkpoint in the run's folder, if there is one.
        steps: stop after so many steps of the whole run; the schedule follows the recipe.
        accelerator: of Fabric: "auto", "cpu" or "cuda".
    """

    data: str | os.PathLike[str] | None = None
    valid: str | os.PathLike[str] | None = None
    init_from: str | os.PathLike[str] | None = None
    clip_weights: str | None = None
    resume: bool = False
    steps: int | None = None
    accelerator: str = "auto"


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    options: TrainingOptions | None = None,
    progress: CountProgress = ignore_counts,
) -> TrainingResult:
    """Train by a recipe. All processes of a run make the same call.

    Args:
        recipe: of the run.
        out: folder of the run.
        options: None: the defaults.
        progress: called after each step.

    Raises:
        InputError: a folder, file or recipe cannot be used, or ``out`` holds another run.
        RvosError: the loss is not finite, or a preflight check fails.
    """
    options = options or TrainingOptions()
    run = Path(out)
    folder = checkpoints.find_checkpoint(run)
    if folder is not None and not options.resume:
        raise InputError(f"{run} holds a run; go on with --resume, or choose another folder")
    split = read_training_data(recipe, options.data)
    loss_config(recipe.loss)
    fabric = make_fabric(recipe, options.accelerator)
    for stage in recipe.stages:
        stage.parts(fabric.world_size)
    if split is not None:
        check_sizes(recipe, split, fabric.world_size)
    first_weights = options.init_from if folder is None else None
    # A run keeps its CLIP part, so it can be resumed and exported without the original file.
    own_clip = run / checkpoints.CLIP
    clip_weights = options.clip_weights
    if folder is not None and clip_weights is None and own_clip.is_file():
        clip_weights = str(own_clip)
    network, report = make_network(recipe, clip_weights, first_weights)
    state = _fresh_state(fabric, network, recipe, clip_weights)
    if folder is not None:
        state = _resume(fabric, network, recipe, folder, state)
    validation = read_validation_data(fabric, recipe, run, options.valid)
    fabric.to_device(network)
    with contextlib.ExitStack() as stack:
        log = None
        # The run writes its first file here, after every input has been read and checked.
        if fabric.global_rank == 0:
            log = stack.enter_context(RunLog(run, state.step))
            _write_records(run, network, recipe, state, report)
            if warning := missing_validation(recipe, options.valid):
                log.warn(warning)
        if fabric.device.type == "cpu":
            if ms_deform_attn.available():
                stack.enter_context(cpu_kernel())
            elif log is not None:
                log.warn(f"training is slower than it could be: {ms_deform_attn.NOT_BUILT}")
        job = _Job(fabric, network, recipe, run, split, validation, log, options.steps, progress)
        return job.run_stages(state, folder)


def _fresh_state(
    fabric: Fabric, network: RvosNetwork, recipe: Recipe, clip_weights: str | None
) -> TrainingState:
    """Return the state of a run before its first step."""
    return TrainingState(
        0,
        0,
        0,
        recipe.as_dict(),
        clip_fingerprint(network.clip),
        clip_source(recipe, clip_weights),
        versions=versions("torch"),
        processes=fabric.world_size,
    )


def _resume(
    fabric: Fabric, network: RvosNetwork, recipe: Recipe, folder: Path, fresh: TrainingState
) -> TrainingState:
    """Load the weights of a checkpoint, and return its state."""
    state = resumed_state(folder, fresh, recipe)
    if fabric.global_rank == 0:
        warn_of_other_processes(folder, state.processes, fabric.world_size)
    checkpoints.load_weights(folder, network)
    stage = recipe.stages[state.stage]
    if 0 < state.stage_step < stage.steps:
        check_resumable(folder.parent.parent, folder, stage, network)
    return replace(state, processes=fabric.world_size)


def _write_records(
    run: Path, network: RvosNetwork, recipe: Recipe, state: TrainingState, report: InitReport | None
) -> None:
    """Write the recipe, a CLIP part without a tag, and the report of published weights."""
    write_json(run / RECIPE, recipe.as_dict())
    own_clip = run / checkpoints.CLIP
    if state.clip_source == checkpoints.CLIP and not own_clip.is_file():
        checkpoints.save_clip(own_clip, network)
    if report is not None:
        write_text(run / INIT_REPORT, report.summary() + "\n")


@dataclass
class _Job:
    """Hold one process's part in a run."""

    fabric: Fabric
    network: RvosNetwork
    recipe: Recipe
    run: Path
    split: DataSplit | None
    validation: DataSplit | None
    log: RunLog | None
    limit: int | None
    progress: CountProgress

    def run_stages(self, state: TrainingState, folder: Path | None) -> TrainingResult:
        """Run the remaining stages."""
        started = time.perf_counter()
        for number in range(state.stage, len(self.recipe.stages)):
            if number > state.stage:
                state = replace(state, stage=number, stage_step=0)
            if self._finished(state):
                break
            state, folder = self._run_stage(state, folder)
        if folder is None:
            raise InputError(f"no step was to be done in {self.run}; give --steps of at least 1")
        best = checkpoints.find_checkpoint(self.run, checkpoints.BEST)
        seconds = time.perf_counter() - started
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
        self._preflight(stage, state)
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
            if self.fabric.global_rank == 0:
                self.progress(stage.name, state.stage_step, stage.steps)
            state, folder = self._after_step(state, optimizer, step + 1 == stop, folder)
        return state, folder

    def _preflight(self, stage: Stage, state: TrainingState) -> None:
        """Run the preflight checks before a stage, in each process, so that all processes stop."""
        if not self.recipe.preflight or state.stage_step:
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
        """Return the mean over all processes."""
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
        """Take one optimizer step; ``step`` counts over all stages, from 0."""
        sums: dict[str, Tensor] = {}
        single = stage.single_every > 0 and (step + 1) % stage.single_every == 0
        parts = stage.parts(self.fabric.world_size)
        for part, batch in enumerate(islice(source, parts)):
            batch = batch.to(self.fabric.device)
            if isinstance(batch, Batch) and single:
                batch = batch.single_frames()
            generator = step_generator(self.recipe.seed, step, part, self.fabric.global_rank)
            last = part + 1 == parts
            with self.fabric.no_backward_sync(model, enabled=not last):
                losses = model(batch, generator)
                self.fabric.backward(losses["total"] / parts)
            for name, loss in losses.items():
                share = loss.detach() / parts
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
        """Validate in all processes and write a checkpoint in process 0, when they are due."""
        every = self.recipe.validate_every
        validates = every > 0 and (last or state.step % every == 0)
        if not (last or validates or state.step % self.recipe.checkpoint_every == 0):
            return state, folder
        better = False
        if validates and self.validation is not None:
            found = self._validate(state, self.validation)
            better = state.best is None or found > state.best
            state = replace(state, best=found if better else state.best)
        state = replace(state, scaler=self.fabric.strategy.precision.state_dict())

        def save() -> Path:
            keep = self.recipe.keep
            return save_checkpoint(self.run, state, self.network, optimizer, keep=keep, best=better)

        return state, on_first(self.fabric, save)

    def _validate(self, state: TrainingState, split: DataSplit) -> float:
        """Return the J&F of all processes; process 0 logs it."""
        values = validate(
            self.network,
            training_tokenizer(),
            split,
            videos=self.recipe.validation_videos,
            pictures=self.run / "overlays" / f"step-{state.step:08d}",
            fabric=self.fabric,
        )
        if self.log is not None:
            self.log.validation(state.step, self.recipe.stages[state.stage].name, values)
        return values["j_and_f"]
