"""Describe versions, machine and memory, for every result file."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rvos_deploy.container_limits import ROOT, memory_limit_bytes, quota_cores


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, this package, NumPy, and those ``packages`` that exist."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("rvos-deploy", "numpy", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the processor, the cores and memory (bytes) that this process may use, the machine's
    own memory, and the system.
    """
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "usable_memory_bytes": usable_memory_bytes(),
        "memory_bytes": _memory_bytes(),
        "system": platform.platform(),
    }


def usable_cores(root: Path = ROOT) -> int:
    """Return the number of cores that affinity and the container's quota (rounded up) allow.

    ``root``: root of the file system, for tests.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = quota_cores(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def usable_memory_bytes(root: Path = ROOT) -> int:
    """Return the memory in bytes that this process may use; 0 if the system does not report it.

    It is the machine's memory, or its container's limit where that is smaller.

    ``root``: root of the file system, for tests.
    """
    limit, memory = memory_limit_bytes(root), _memory_bytes()
    return memory if limit is None else min(limit, memory or limit)


def peak_memory_bytes() -> int:
    """Return the peak resident size of this process in bytes; 0 if it is unknown (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """Return the current resident size of this process in bytes; 0 if it is unknown (no /proc)."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return 0
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor_fingerprint() -> str:
    """Return a hash of the processor's name and instruction sets, as far as they are known."""
    lines = [platform.machine(), _processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text(encoding="utf-8").splitlines()
        lines += [line for line in text if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _memory_bytes() -> int:
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
