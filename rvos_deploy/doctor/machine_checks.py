"""Check the machine: Python, processor, limits of its container, FFmpeg, and disk."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from rvos_deploy.cache_folder import VARIABLE, cache_folder
from rvos_deploy.container_limits import ROOT, memory_limit_bytes, quota_cores
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.doctor.outcome import Outcome, absent, failed, passed
from rvos_deploy.environment import machine, usable_cores, usable_memory_bytes

OLDEST_PYTHON = (3, 11)
LEAST_MEMORY = 1 << 30
"""Bytes. A run of the packaged network takes a third of it."""
LEAST_DISK = 1 << 30
"""Bytes, for masks, overlays, and data of long videos that exceeds the memory."""
DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")
"""Codecs of most videos."""
ENCODER = "libx264"
"""The codec of ``overlay.mp4``."""

_GIB = 1 << 30


def python() -> Outcome:
    """Check the version of Python, and name the installation."""
    found = f"Python {platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        return failed(found, f"install Python {needed} or newer, and rvos-deploy in it")
    return passed(f"{found}, rvos-deploy {version('rvos-deploy')}")


def processor() -> Outcome:
    """Name the processor, and check that the CPU kernel was built and runs."""
    name = machine()["processor"]
    if not kernel.available():
        return absent(f"{name}; {kernel.NOT_BUILT.split(';')[0]}", kernel.BUILD_IT)
    return passed(f"{name}, {kernel.describe()}")


def limits(root: Path = ROOT) -> Outcome:
    """Check the cores and the memory that this process may use.

    ``root``: root of the file system, for tests.
    """
    cores, memory = usable_cores(root), usable_memory_bytes(root)
    words = [f"{cores} {'core' if cores == 1 else 'cores'}"]
    if memory:
        words.append(f"{memory / _GIB:.1f} GiB of memory")
    limited = quota_cores(root) is not None or memory_limit_bytes(root) is not None
    found = ", ".join(words) + (" (limited by a container)" if limited else "")
    if memory and memory < LEAST_MEMORY:
        return failed(found, "give the container at least 1 GiB: docker run --memory 2g ...")
    return passed(found)


def ffmpeg() -> Outcome:
    """Check that PyAV loads, and which codecs its FFmpeg has."""
    try:
        import av
    except (ImportError, OSError) as error:
        return failed(f"PyAV cannot be loaded: {error}", "pip install --force-reinstall av")
    missing = [name for name in DECODERS if name not in av.codecs_available]
    found = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
    if ENCODER not in av.codecs_available:
        return failed(
            f"{found}, without the encoder {ENCODER}, so no overlay can be written",
            "pip install --force-reinstall --only-binary av av",
        )
    if missing:
        return absent(f"{found}, without {', '.join(missing)}: such videos cannot be read")
    return passed(f"{found}, with {', '.join(DECODERS)} and {ENCODER}")


def disk() -> Outcome:
    """Check that the cache folder can be written, and that there is room in it and here."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return failed(
            f"the cache folder {cache} cannot be written: {reason}",
            f"choose another: export {VARIABLE}=/a/folder",
        )
    free = {str(cache): shutil.disk_usage(cache).free, str(Path.cwd()): shutil.disk_usage(".").free}
    words = [f"{size / _GIB:.1f} GiB free in {folder}" for folder, size in free.items()]
    if min(free.values()) < LEAST_DISK:
        return failed(
            ", ".join(words), f"free at least 1 GiB, or choose another folder: {VARIABLE}, cd"
        )
    return passed(", ".join(words))
