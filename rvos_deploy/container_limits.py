"""Read a container's limits of processor time and memory from its control groups.

Only Linux has limits. Both versions of control groups are read, and every group from the process's
own up to the root of the mount, because the smallest limit of a hierarchy counts. Inside a
container, the path in ``/proc/self/cgroup`` is often the host's; a path outside the mount is read
as the root of the mount.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def quota_cores(root: Path = ROOT) -> float | None:
    """Return the quota in processors (0.5: half the time of one); None: no quota.

    ``root``: root of the file system, for tests.
    """
    quotas = []
    for group in _groups("cpu", root):
        # Version 2: "50000 100000" or "max 100000". Version 1: two files, -1 for none.
        words = _read(group / "cpu.max").split() or [
            _read(group / "cpu.cfs_quota_us"),
            _read(group / "cpu.cfs_period_us"),
        ]
        with suppress(ValueError):
            quota, period = map(int, words)
            if quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Return the memory limit in bytes; None: no limit (version 1 returns a huge number instead).

    ``root``: root of the file system, for tests.
    """
    limits = []
    for group in _groups("memory", root):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            with suppress(ValueError):
                limits.append(int(_read(group / name)))
    return min((limit for limit in limits if limit > 0), default=None)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups that may limit a controller, innermost first."""
    memberships = [line.split(":", 2) for line in _read(root / "proc/self/cgroup").splitlines()]
    paths = {
        name: fields[2]
        for fields in memberships
        if len(fields) == 3
        for name in (fields[1].split(",") if fields[1] else [""])
    }
    for mount, top, name in _mounts(controller, root):
        path = paths.get(name)
        if path is None:
            continue
        below = PurePosixPath("/")
        if ".." not in path:
            with suppress(ValueError):
                below = PurePosixPath("/") / PurePosixPath(path).relative_to(top)
        for part in (below, *below.parents):
            yield root / mount.lstrip("/") / str(part).lstrip("/")


def _mounts(controller: str, root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each mount point, its mounted group, and the name that lists the process's own group.

    The name is the controller's, or "" for version 2.
    """
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            yield fields[4], fields[3], ""
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            yield fields[4], fields[3], controller


def _read(file: Path) -> str:
    """Return the text of a small file; "" if it is missing."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
