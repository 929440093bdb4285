"""Give videos to workers, repeat what failed by accident, and record every change."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from rvos_deploy import stopping
from rvos_deploy.batch.jobs import Job
from rvos_deploy.batch.status_file import FINISHED, StatusFile, VideoStatus
from rvos_deploy.batch.worker import Outcome, VideoOptions, Worker
from rvos_deploy.errors import BackendError, RvosError, one_line
from rvos_deploy.ray_cluster import Shares
from rvos_deploy.runtime.segmenter_options import SegmenterOptions

# Seconds between two looks at the workers.
_POLL = 0.2
# Seconds in which workers complete the files of their current frames after a stop.
_STOP_PATIENCE = 20.0


@dataclass(frozen=True)
class Running:
    """Describe a running video for display: its phase, the number done in it, the expected one."""

    name: str
    seconds: float
    phase: str = "starting"
    done: int = 0
    total: int | None = None


Show = Callable[[Sequence[Running]], None]
"""Called with the running videos, a few times a second."""

Warn = Callable[[str], None]
"""Called with one line for people."""


@dataclass
class _Task:
    """Hold a job that a worker has now."""

    job: Job
    worker: Any
    began: float
    progress: Any = None
    shown: tuple[str, int, int | None] = ("starting", 0, None)


class Schedule:
    """Run jobs on Ray actors; each has one job at a time."""

    def __init__(
        self,
        ray: ModuleType,
        make_worker: Callable[[], Any],
        workers: int,
        retries: int,
        status: StatusFile,
        show: Show | None = None,
        warn: Warn = lambda line: None,
    ) -> None:
        """``make_worker``: from ``worker_factory``; ``show``: None asks workers no progress."""
        self._warn = warn
        self._ray, self._make_worker, self._workers = ray, make_worker, workers
        self._retries, self._status, self._show = retries, status, show
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, _Task] = {}
        self._idle: list[Any] = []
        self._failures: Counter[str] = Counter()
        """How often a video failed for a reason that may pass."""

    def run(self, jobs: Sequence[Job], out: Path) -> None:
        """Run the jobs to their end. After a stop or an error, running videos are due again.

        Raises:
            BackendError: no worker can load the segmenter, or Ray itself failed.
        """
        self._waiting.extend(jobs)
        with stopping.deferred():
            try:
                while self._waiting or self._running:
                    self._assign(out)
                    self._collect(_POLL)
                    self._show_running()
                    self._status.write_if_due()
                    stopping.check()
                self._status.write()
            except self._ray.exceptions.RayError as error:
                raise BackendError(f"Ray failed: {one_line(error)}; see --debug") from error
            finally:
                self._stop_running()
                with suppress(RvosError):  # the first error is the one
                    self._status.write()

    def _assign(self, out: Path) -> None:
        changes = {}
        while self._waiting and len(self._running) < self._workers:
            job = self._waiting.popleft()
            worker = self._idle.pop() if self._idle else self._make_worker()
            reference = worker.segment.remote(job, out / job.name)
            self._running[reference] = _Task(job, worker, time.monotonic())
            before = self._of(job)
            changes[job.name] = msgspec.structs.replace(
                before, state="running", attempts=before.attempts + 1, error=None
            )
        if changes:
            self._status.update(changes)

    def _collect(self, patience: float) -> None:
        """Wait for a video, at most ``patience`` seconds, and record those that ended."""
        ended, _ = self._ray.wait(list(self._running), timeout=patience)
        for reference in ended:
            task = self._running.pop(reference)
            outcome = self._outcome(reference)
            self._record(task, outcome)
            # A worker without work ends with its last reference, and frees its share for others. So
            # does one that failed for a reason that may pass: its GPU's context may be broken, and
            # then every later video would fail on it.
            sound = outcome.state != "unusable" and not outcome.transient
            if sound and self._waiting:
                self._idle.append(task.worker)

    def _outcome(self, reference: Any) -> Outcome:
        """Return what became of a video."""
        exceptions = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
            return outcome
        except exceptions.RayActorError:  # Ray's own text tells no more of the reason
            why = "the worker process ended, perhaps for lack of memory; fewer --workers need less"
            return Outcome("failed", error=why, transient=True)
        except exceptions.RayTaskError as error:
            cause = error.cause
            why = one_line(f"{type(cause).__name__}: {cause}")
            return Outcome("failed", error=why, transient=True)
        except exceptions.RayError as error:
            return Outcome("failed", error=one_line(error), transient=True)

    def _record(self, task: _Task, outcome: Outcome) -> None:
        if outcome.state == "unusable":
            self._change(task.job, state="waiting")
            self._leave_out(task.job, outcome.error or "the segmenter cannot be loaded")
            return
        if outcome.state == "stopped":
            self._change(task.job, state="waiting")
            return
        if outcome.state == "failed" and outcome.transient:
            self._failures[task.job.name] += 1
            if self._failures[task.job.name] <= self._retries:
                self._change(task.job, state="waiting", error=outcome.error)
                self._waiting.append(task.job)
                return
        self._change(
            task.job,
            state=outcome.state,
            frames=outcome.frames,
            seconds=round(outcome.seconds, 3),
            error=outcome.error,
        )

    def _leave_out(self, job: Job, why: str) -> None:
        """Go on with one worker less, because the machine of this one may lack memory.

        Raises:
            BackendError: no worker is left.
        """
        self._workers -= 1
        if not self._workers:
            raise BackendError(why)
        self._waiting.appendleft(job)
        self._warn(f"a worker cannot start and is left out, {self._workers} left: {why}")

    def _stop_running(self) -> None:
        """After a stop or an error, let workers complete their files; the videos are due again."""
        if not self._running:
            return
        with suppress(RvosError, self._ray.exceptions.RayError):  # the first error is the one
            for task in self._running.values():
                task.worker.stop.remote()
            references = list(self._running)
            ended, _ = self._ray.wait(
                references, num_returns=len(references), timeout=_STOP_PATIENCE
            )
            for reference in references:
                task = self._running.pop(reference)
                outcome = self._outcome(reference) if reference in ended else None
                if outcome is not None and outcome.state in FINISHED:
                    self._record(task, outcome)
                else:
                    self._change(task.job, state="waiting")

    def _of(self, job: Job) -> VideoStatus:
        status = self._status.get(job.name)
        assert status is not None, "run_batch records every job first"
        return status

    def _change(self, job: Job, **values: Any) -> None:
        self._status.update({job.name: msgspec.structs.replace(self._of(job), **values)})

    def _show_running(self) -> None:
        if self._show is None:
            return
        now = time.monotonic()
        for task in self._running.values():
            self._ask(task)
        self._show(
            [
                Running(task.job.name, now - task.began, *task.shown)
                for task in self._running.values()
            ]
        )

    def _ask(self, task: _Task) -> None:
        """Take the answer to the last question, and ask again; a busy worker answers later."""
        if task.progress is None:
            task.progress = task.worker.progress.remote()
        ready, _ = self._ray.wait([task.progress], timeout=0)
        if not ready:
            return
        with suppress(self._ray.exceptions.RayError):  # the video's own outcome reports it
            task.shown = self._ray.get(task.progress)
        task.progress = None


def worker_factory(
    ray: ModuleType, options: tuple[SegmenterOptions, VideoOptions], shares: Shares
) -> Callable[[], Any]:
    """Return a function that starts an actor with its share of processors and GPUs."""
    actor = ray.remote(Worker).options(
        num_cpus=shares.cpus,
        num_gpus=shares.gpus,
        max_concurrency=2,  # one thread works, the other answers ``progress`` and ``stop``
    )
    return lambda: actor.remote(*options)
