"""Keep the timing cache: kernel timings of earlier builds, which make the next build much shorter.

The cache holds data, no code. TensorRT checks that the same version made it on the same GPU, and
the file's name says both. TensorRT knows our plugin by its name alone, so the file's name also
holds the kernel's hash: a changed kernel is timed again. NOT RUN with TensorRT; the tests read and
write bytes.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rvos_deploy.cache_folder import cache_folder
from rvos_deploy.engines.plugins.ms_deform_attn.compile import kernel_hash
from rvos_deploy.files import cannot_write, writing

if TYPE_CHECKING:
    import tensorrt as trt


def default_cache_file(version: str, gpu: str) -> Path:
    """Return the cache file of a TensorRT version, a GPU model and the plugin's present kernel."""
    model = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return cache_folder() / f"timing-tensorrt-{version}-{model}-{kernel_hash()}.cache"


def read_cache(file: Path) -> bytes:
    """Return the file's content, or no bytes where there is no file."""
    return file.read_bytes() if file.is_file() else b""


def write_cache(file: Path, content: bytes) -> None:
    """Write the file as a whole: of two builds at once, one cache remains, never a mixture.

    A cache that cannot be written is a warning, because the engines took long and are kept.
    """
    try:
        with writing(file) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        warnings.warn(cannot_write(file, error), stacklevel=2)


def attach_cache(config: trt.IBuilderConfig, file: Path) -> None:
    """Give a build the timings of the file. Where TensorRT refuses them, warn and start a new
    cache.
    """
    cache = config.create_timing_cache(read_cache(file))
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return
    warnings.warn(
        f"timing cache {file} is of another TensorRT or GPU: a new one is started", stacklevel=2
    )
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save_cache(config: trt.IBuilderConfig, file: Path) -> None:
    """Write the timings of a build to the file."""
    cache = config.get_timing_cache()
    if cache is not None:
        write_cache(file, bytes(cache.serialize()))
