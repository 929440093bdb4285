"""Measure fresh processes: their peak memory, and the time from their start to the first mask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rvos_deploy.environment import peak_memory_bytes
from rvos_deploy.errors import BackendError, one_line

_STATUS = Path("/proc/self/status")

_FIRST_MASK = """
import json, sys, time
started = time.perf_counter()
import rvos_deploy as rvos
imported = time.perf_counter()
source, bundle, backend = sys.argv[1:]
segmenter = rvos.load(bundle, backend=backend)
loaded = time.perf_counter()
with segmenter.stream(["the red star moving to the left"]) as stream:
    for frame in rvos.read_video(source):
        masks = [result.masks for result in stream.push(frame)]
        if masks:
            break
masked = time.perf_counter()
print(json.dumps({"import": imported - started, "load": loaded - imported,
    "first frame": masked - loaded}), flush=True)
"""
"""What a user writes, with the time after each step."""

_PEAK = """
import json, sys
from rvos_deploy.benchmarks.cpu_processes import peak_of_stream
print(json.dumps(peak_of_stream(*sys.argv[1:])), flush=True)
"""


def first_mask(source: str, bundle: str, backend: str, repeats: int) -> dict[str, Any]:
    """Measure the seconds from the start of a process to its first mask, in files' cache.

    Args:
        source: a video.
        bundle: path or name.
        backend: name of the back end.
        repeats: processes; one more runs first, and fills the caches.

    Returns:
        Medians of the seconds: ``total``, and ``steps`` of which the interpreter's start is one.
    """
    runs: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        steps, total = _child(_FIRST_MASK, source, bundle, backend)
        runs.append({"total": total, "interpreter": total - sum(steps.values()), **steps})
    middle = sorted(runs[1:], key=lambda run: run["total"])[repeats // 2]
    return {"seconds": middle.pop("total"), "steps": middle}


def peak_memory(contender: str, bundle: Path, source: str, threads: int) -> dict[str, Any]:
    """Measure the peak memory of a process that runs a stream by one contender, in bytes."""
    return _child(_PEAK, contender, str(bundle), source, str(threads))[0]


def peak_of_stream(contender: str, bundle: str, source: str, threads: str) -> dict[str, int]:
    """Run a short stream in this process, and return its peak memory in bytes."""
    from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS
    from rvos_deploy.benchmarks.timing import EXPRESSIONS, decode_frames, push_through
    from rvos_deploy.bundle.folder import open_bundle
    from rvos_deploy.runtime.segmenter import Segmenter

    opened = open_bundle(bundle)
    frames, _ = decode_frames(source, 8)
    backend = CONTENDERS[contender].make(opened, int(threads))
    with Segmenter(opened, backend) as segmenter, segmenter.stream([EXPRESSIONS[0]]) as stream:
        for frame in frames:
            push_through(stream, frame)
    return {"peak_bytes": _peak()}


def _peak() -> int:
    """Return this process's own peak. ``getrusage`` would count the parent's before the exec."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return peak_memory_bytes()


def _child(code: str, *arguments: str) -> tuple[dict[str, Any], float]:
    """Run code in a fresh process; return the JSON line that it prints, and the seconds to it."""
    # pip compiles a package as it installs it. The first process does this for a checkout.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code, *arguments]
    started = time.perf_counter()
    with (
        TemporaryFile() as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        if not line:
            status = process.wait()
            errors.seek(0)
            last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise BackendError(
                "a process of the benchmark failed: "
                + one_line(last[0] if last else f"exit code {status}")
            )
    return json.loads(line), seconds
