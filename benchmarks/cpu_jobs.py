"""Time whole jobs on the CPU: decode, segment and write, overlapped as ``run`` does it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS
from rvos_deploy.benchmarks.cpu_streams import WARM_UP
from rvos_deploy.benchmarks.timing import Clip, decode_frames, push_through, summarise
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.progress import StepProgress
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.video import open_video
from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sinks.base import SinkRequest
from rvos_deploy.video.sinks.registry import DEFAULT_SINKS, make_sinks


def measure_jobs(
    bundles: Mapping[str, Bundle],
    clip: Clip,
    frames: int,
    threads: int,
    rounds: int,
    progress: StepProgress,
) -> dict[str, Any]:
    """Run the whole job by every contender in turn, and what it adds to inference.

    Args:
        bundles: the bundle of each contender, by the contender's name.
        clip: the video, and what is followed in it.
        frames: of a run.
        threads: for each contender's arithmetic.
        rounds: runs of each contender.
        progress: called with each step.

    Returns:
        Summaries of decoding and writing a frame, and by contender the frames per second of the
        runs, of inference alone, and the share of a run that is not inference.
    """
    source, texts = clip.path, list(clip.texts[:1])
    images, decode = decode_frames(source, frames)
    record: dict[str, Any] = {"frames": frames, "decode": summarise(decode[1:]), "contenders": {}}
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in bundles}
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="rvos-deploy-") as folder:
        segmenters = {
            name: stack.enter_context(Segmenter(bundle, CONTENDERS[name].make(bundle, threads)))
            for name, bundle in bundles.items()
        }
        for name, segmenter in segmenters.items():
            progress(f"whole job: warm up {name}")
            _inference(segmenter, images[: WARM_UP + 1], texts)
        for turn in range(rounds):
            for name, segmenter in segmenters.items():
                progress(f"whole job: {name}, run {turn + 1} of {rounds}")
                alone = _inference(segmenter, images, texts)
                cpu = time.process_time()
                options = RunOptions(max_frames=frames)
                report = run(segmenter, source, texts, Path(folder) / name, options=options)
                used = time.process_time() - cpu
                seconds[name].append((report.seconds, alone, used))
        first = next(iter(segmenters.values()))
        record["write"] = summarise(_write(first, source, texts, Path(folder) / "w", frames)[1:])
    for name, found in seconds.items():
        # The least disturbed run of each kind, because runs are few and long.
        whole, alone, used = (min(column) for column in zip(*found, strict=True))
        record["contenders"][name] = {
            "frames_per_second": frames / whole,
            "inference_frames_per_second": frames / alone,
            "beyond_inference": 1 - alone / whole,
            "cpu_milliseconds": 1e3 * used / frames,
        }
    return record


def _inference(segmenter: Segmenter, frames: Sequence[Frame], texts: list[str]) -> float:
    """Return the seconds of a stream over decoded frames, without resizing them."""
    resize: list[float] = []

    def on_stage(stage: str, seconds: float) -> None:
        if stage == "resize":
            resize.append(seconds)

    with segmenter.stream(texts, on_stage=on_stage) as stream:
        started = time.perf_counter()
        for frame in frames:
            push_through(stream, frame)
        return time.perf_counter() - started - sum(resize)


def _write(
    segmenter: Segmenter, source: str, texts: list[str], out: Path, frames: int
) -> list[float]:
    """Return the seconds to write the files of each frame, one at a time."""
    seconds = []
    out.mkdir()
    sinks = make_sinks(DEFAULT_SINKS, SinkRequest(out, dict))
    with (
        ExitStack() as stack,
        open_video(source, max_frames=frames) as reader,
        segmenter.stream(texts, keep_images=True) as stream,
    ):
        for sink in sinks:
            stack.callback(sink.abort)
            sink.open(reader.info, texts)
        for frame in islice(reader, frames):
            for result in push_through(stream, frame):
                started = time.perf_counter()
                for sink in sinks:
                    sink.write(result)
                for sink in sinks:
                    sink.commit()
                seconds.append(time.perf_counter() - started)
        for sink in sinks:
            sink.finish()
    return seconds
