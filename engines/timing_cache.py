"""The timing cache: kernel timings of earlier builds, which make the next one much shorter.

It holds data, no code. TensorRT checks that it was made by the same version on the same GPU, and
the file's name says so too. NOT RUN with TensorRT; reading and writing are tested with bytes.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rvos_deploy.files import cannot_write, writing

if TYPE_CHECKING:
    import tensorrt as trt


def cache_folder() -> Path:
    """The user's cache folder of this package, by the system's custom."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "rvos-deploy"


def default_cache_file(version: str, gpu: str) -> Path:
    """One file for each TensorRT version and GPU model."""
    model = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return cache_folder() / f"timing-tensorrt-{version}-{model}.cache"


def read_cache(file: Path) -> bytes:
    """What is in the file; nothing where there is none."""
    return file.read_bytes() if file.is_file() else b""


def write_cache(file: Path, content: bytes) -> None:
    """Write it whole: two builds at once leave one of both caches, never a mixture.

    Where it cannot be written, it warns: the engines, which took long, are worth more.
    """
    try:
        with writing(file) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        warnings.warn(cannot_write(file, error), stacklevel=2)


def attach_cache(config: trt.IBuilderConfig, file: Path) -> None:
    """Give a build the timings of the file; warns and begins anew when TensorRT refuses them."""
    cache = config.create_timing_cache(read_cache(file))
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return
    warnings.warn(
        f"timing cache {file} is of another TensorRT or GPU: it is begun anew", stacklevel=2
    )
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save_cache(config: trt.IBuilderConfig, file: Path) -> None:
    """Keep what the build has timed."""
    cache = config.get_timing_cache()
    if cache is not None:
        write_cache(file, bytes(cache.serialize()))
