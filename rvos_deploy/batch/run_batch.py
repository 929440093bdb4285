"""Run a batch: record every video, start Ray, segment what is due, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rvos_deploy import stopping
from rvos_deploy.batch.jobs import Job, fingerprint, refuse_replaced_inputs
from rvos_deploy.batch.schedule import Schedule, worker_factory
from rvos_deploy.batch.status_file import FINISHED, STATUS, StatusFile, VideoStatus
from rvos_deploy.batch.table import live_table
from rvos_deploy.batch.worker import VideoOptions
from rvos_deploy.bundle.folder import bundle_files, find_bundle
from rvos_deploy.files import holding, sha256_file
from rvos_deploy.ray_cluster import (
    Shares,
    check_available,
    connected,
    count_workers,
    describe_lack,
)
from rvos_deploy.runtime.segmenter_options import SegmenterOptions
from rvos_deploy.video.sinks.result_file import RESULT


@dataclass(frozen=True)
class BatchOptions:
    """Hold the options of a batch.

    Args:
        segmenter: how workers load their segmenters.
        videos: how they read videos, and what they write.
        shares: number of workers, and what each has.
        retries: how often a video is begun again after a failure that may not repeat.
        address: of a Ray cluster; None: this machine.
        read: files that the batch reads beside videos and bundle.
    """

    segmenter: SegmenterOptions
    videos: VideoOptions
    shares: Shares
    retries: int = 2
    address: str | None = None
    read: Sequence[Path] = field(default=())


@dataclass(frozen=True)
class BatchReport:
    """Report a batch: the state of each of its videos, and how many were finished before."""

    videos: dict[str, VideoStatus]
    already: int

    def having(self, *states: str) -> dict[str, VideoStatus]:
        """Return the videos in one of these states."""
        return {name: video for name, video in self.videos.items() if video.state in states}


def run_batch(jobs: Sequence[Job], out: Path, options: BatchOptions) -> BatchReport:
    """Segment every video into ``out/<name>``; skip what an earlier batch finished there.

    A video is due again when its file, its expressions, the settings or the bundle changed, or when
    it failed.

    Raises:
        InputError: an output would replace an input, ``out`` is locked by another batch or cannot
            be written, or a worker needs more GPUs than there are.
        BackendError: Ray is not installed or does not start, the cluster does not answer, or
            no worker can load the segmenter.
    """
    check_available(options.address)
    bundle = find_bundle(options.segmenter.bundle)
    with holding(out, "running a batch in"):
        refuse_replaced_inputs(jobs, [*options.read, *bundle_files(bundle)], out)
        status = StatusFile(out, options.videos.command)
        due = _record_due(jobs, out, status, describe_settings(options, bundle))
        if due:
            _run_due(due, jobs, out, options, status)
    return BatchReport({job.name: _of(status, job) for job in jobs}, len(jobs) - len(due))


def describe_settings(options: BatchOptions, bundle: Path) -> str:
    """Describe in one text what decides the files of a video beside the video itself."""
    segmenter, videos = asdict(options.segmenter), asdict(options.videos)
    # The same masks come from another place, from other threads, and with another memory.
    del segmenter["bundle"], segmenter["threads"], segmenter["stream"]["mask_budget"]
    del videos["command"], videos["folder"]
    manifest = sha256_file(bundle / "manifest.json")
    return json.dumps([manifest, segmenter, videos], sort_keys=True)


def _record_due(
    jobs: Sequence[Job], out: Path, status: StatusFile, settings: str
) -> tuple[Job, ...]:
    """Record every job that must run as waiting, and return these jobs."""
    due: dict[Job, VideoStatus] = {}
    for job in jobs:
        new = VideoStatus(
            video=job.video,
            state="waiting",
            fingerprint=fingerprint(job, settings),
            expressions=len(job.expressions),
        )
        before = status.get(job.name)
        finished = before is not None and before.state in FINISHED
        same = before is not None and before.fingerprint == new.fingerprint
        if not (finished and same and (out / job.name / RESULT).is_file()):
            due[job] = new
    status.update({job.name: new for job, new in due.items()})
    return tuple(due)


def _run_due(
    due: Sequence[Job],
    jobs: Sequence[Job],
    out: Path,
    options: BatchOptions,
    status: StatusFile,
) -> None:
    shares = options.shares
    stopping.set_hint(f"give the same command again, and it goes on ({out / STATUS})")
    with connected(options.address, shares) as ray:
        if (lack := describe_lack(ray, shares)) is not None:
            _warn(lack)
        workers = min(shares.workers or max(1, count_workers(ray, shares)), len(due))
        make = worker_factory(ray, (options.segmenter, options.videos), shares)
        with live_table(lambda: [_of(status, job) for job in jobs]) as show:
            schedule = Schedule(ray, make, workers, options.retries, status, show, _warn)
            schedule.run(due, out.absolute())


def _warn(line: str) -> None:
    """Print at once, while the batch runs; a live table stays below it."""
    if sys.stderr is not None:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _of(status: StatusFile, job: Job) -> VideoStatus:
    found = status.get(job.name)
    assert found is not None, "every job is recorded before it runs"
    return found
