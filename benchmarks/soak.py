"""Use one segmenter for long (many frames, streams and threads), and check that nothing is left
behind.

``python -m rvos_deploy.benchmarks.soak [BUNDLE] --frames 20000 --streams 2000 --threads 8``
(the defaults are for a quick look). The exit code is 1 when resident memory grew, a file descriptor
or a thread was left, or threads gave other masks or scores than one thread alone.
"""

from __future__ import annotations

import gc
import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from rvos_deploy.benchmarks.memory import SETTLED, resident_over_frames
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.console.output import count_progress
from rvos_deploy.environment import machine, resident_memory_bytes, versions
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.graph_io.probe import PROBE_BOX, PROBE_EXPRESSIONS, probe_clip
from rvos_deploy.json_file import write_json
from rvos_deploy.progress import CountProgress, ignore_counts
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import StreamSettings

MAXIMUM_GROWTH = 0.03
"""Growth of resident memory that the allocators of two libraries may cause."""
CLIP_FRAMES = 5
_SAMPLES = 20

SETTINGS = (
    StreamSettings(size=PROBE_BOX, fallback="top1"),
    StreamSettings(size=PROBE_BOX, fallback="top1", lookahead=2, memory=3, anchors=2),
    StreamSettings(size=PROBE_BOX, fallback="top1", mode="offline"),
    # Everything that waits is spilled to a file, which must be closed.
    StreamSettings(size=PROBE_BOX, fallback="top1", mode="offline", mask_budget=0),
)
"""Streams use these settings in turn."""


@dataclass(frozen=True)
class ProcessResources:
    """Resources of this process.

    Args:
        resident_bytes: resident memory.
        file_descriptors: open ones; 0 where the system does not tell.
        system_threads: threads of the system; 0 where the system does not tell.
        python_threads: threads of Python.
    """

    resident_bytes: int
    file_descriptors: int
    system_threads: int
    python_threads: int


def process_resources() -> ProcessResources:
    """Return the resources of this process now."""
    gc.collect()
    fds, tasks = Path("/proc/self/fd"), Path("/proc/self/task")
    return ProcessResources(
        resident_memory_bytes(),
        # The listing itself has one open.
        len(list(fds.iterdir())) - 1 if fds.is_dir() else 0,
        len(list(tasks.iterdir())) if tasks.is_dir() else 0,
        threading.active_count(),
    )


def soak(
    segmenter: Segmenter,
    frames: int = 400,
    streams: int = 40,
    threads: int = 4,
    progress: CountProgress = ignore_counts,
) -> dict[str, Any]:
    """Use a segmenter for long.

    Args:
        segmenter: the bundle on a back end.
        frames: to push through one stream.
        streams: to open, feed a short clip and close, one after the other; every fourth one is
            closed before all of its frames were read.
        threads: that work at once on the same clip, each with streams of its own.
        progress: is told the progress.

    Returns:
        A record for JSON; ``passed`` says whether every check passed.

    Raises:
        InputError: the numbers are too small to show anything.
    """
    if streams < 1 or threads < 2:
        raise InputError(
            f"a soak needs 1 stream and 2 threads at least, found {streams} and {threads}"
        )
    started = time.perf_counter()
    truth = [stream_digest(segmenter, number) for number in range(len(SETTINGS))]
    before = process_resources()
    over_frames = resident_over_frames(
        segmenter, frames, lambda done: progress("frames", done, frames)
    )
    over_streams = _over_streams(segmenter, streams, truth, progress)
    wrong = _over_threads(segmenter, threads, truth, progress)
    after = process_resources()
    growth = {
        "frames": over_frames[frames] / over_frames[SETTLED] - 1,
        "streams": over_streams[-1]["resident_bytes"] / over_streams[0]["resident_bytes"] - 1,
    }
    checks = {
        **{f"{name} do not grow memory": share <= MAXIMUM_GROWTH for name, share in growth.items()},
        "threads give what one gives": not wrong,
        "streams give the same every time": all(sample["equal"] for sample in over_streams),
        **_leak_checks(before, after),
    }
    return {
        "schema": "rvos-deploy/benchmark/soak/1",
        "command": "python -m rvos_deploy.benchmarks.soak BUNDLE "
        f"--frames {frames} --streams {streams} --threads {threads}",
        "versions": {**versions(), "backend": segmenter.backend.describe()},
        "machine": machine(),
        "seconds": time.perf_counter() - started,
        "passed": all(checks.values()),
        "checks": checks,
        "growth": growth,
        "resident_bytes_by_frames": {str(number): size for number, size in over_frames.items()},
        "by_streams": over_streams,
        "wrong_streams_of_threads": wrong,
        "before": asdict(before),
        "after": asdict(after),
    }


def _leak_checks(before: ProcessResources, after: ProcessResources) -> dict[str, bool]:
    return {
        "no file descriptor is left": after.file_descriptors <= before.file_descriptors,
        "no thread is left": after.python_threads <= before.python_threads
        and after.system_threads <= before.system_threads,
    }


def stream_digest(segmenter: Segmenter, number: int, *, abandoned: bool = False) -> str:
    """Hash the masks and scores of a short clip in a stream of its own.

    Args:
        segmenter: may be shared.
        number: selects the settings.
        abandoned: close the stream before all frames were read, and hash nothing.
    """
    digest = hashlib.sha256()
    settings = SETTINGS[number % len(SETTINGS)]
    with segmenter.stream(PROBE_EXPRESSIONS, settings) as stream:
        results = [result for frame in probe_clip(CLIP_FRAMES) for result in stream.push(frame)]
        if abandoned:
            return ""
        for result in (*results, *stream.flush()):
            digest.update(np.packbits(result.masks).tobytes())
            digest.update(result.scores.tobytes())
    return digest.hexdigest()


def _over_streams(
    segmenter: Segmenter, streams: int, truth: list[str], progress: CountProgress
) -> list[dict[str, Any]]:
    """Run streams one after the other; sample the process's resources and whether all hashes were
    right.
    """
    every = max(1, streams // _SAMPLES)
    samples, equal = [], True
    for number in range(streams):
        abandoned = number % 4 == 1
        found = stream_digest(segmenter, number // 4, abandoned=abandoned)
        equal = equal and (abandoned or found == truth[number // 4 % len(truth)])
        progress("streams", number + 1, streams)
        if number % every == every - 1 or number == streams - 1:
            samples.append({"streams": number + 1, "equal": equal, **asdict(process_resources())})
    return samples


def _over_threads(
    segmenter: Segmenter, threads: int, truth: list[str], progress: CountProgress
) -> list[dict[str, int]]:
    """Run every kind of stream on every thread at once; return the streams whose hash was wrong."""
    total = threads * len(truth)
    with _pool(threads) as pool:
        # Neighbouring threads use different settings at the same time.
        jobs = {
            pool.submit(stream_digest, segmenter, thread + turn): (thread, turn)
            for turn in range(len(truth))
            for thread in range(threads)
        }
        wrong = []
        for done, job in enumerate(as_completed(jobs), start=1):
            thread, turn = jobs[job]
            if job.result() != truth[(thread + turn) % len(truth)]:
                wrong.append({"thread": thread, "settings": (thread + turn) % len(truth)})
            progress("threads", done, total)
    return wrong


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@with_error_lines
def main(
    bundle: Annotated[
        Path, typer.Argument(help="Made by 'export', or the name of a packaged one.")
    ] = Path("tiny"),
    frames: Annotated[int, typer.Option(help="Frames through one stream.")] = 400,
    streams: Annotated[int, typer.Option(help="Streams, one after the other.")] = 40,
    threads: Annotated[int, typer.Option(help="Threads that work at once.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it there.")] = None,
) -> None:
    """Use a bundle for long, and report what was left behind."""
    with load(bundle) as segmenter, count_progress("done", "/s") as progress:
        record = soak(segmenter, frames, streams, threads, progress)
    if json_file is not None:
        write_json(json_file, record)
    for number, size in record["resident_bytes_by_frames"].items():
        typer.echo(f"{int(number):>8} frames  {size / 2**20:8.1f} MiB")
    for sample in record["by_streams"]:
        typer.echo(
            f"{sample['streams']:>8} streams {sample['resident_bytes'] / 2**20:8.1f} MiB "
            f"{sample['file_descriptors']:>4} files {sample['system_threads']:>4} threads"
        )
    failed = [name for name, passed in record["checks"].items() if not passed]
    for name, passed in record["checks"].items():
        typer.echo(f"{'held' if passed else 'FAILED':>8} {name}")
    if failed:
        raise ParityError(
            f"{len(failed)} of {len(record['checks'])} promises did not hold: {', '.join(failed)}; "
            "run it again with --json FILE, and look at growth, before and after"
        )


if __name__ == "__main__":
    typer.run(main)
