"""Cores and memory under control groups: fake trees of both versions, and a real group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rvos_deploy.container_limits import memory_limit_bytes, quota_cores
from rvos_deploy.environment import usable_cores, usable_memory_bytes
from rvos_deploy.spill_store import MAXIMUM_DEFAULT

V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "3{n} 24 0:2{n} {top} /sys/fs/cgroup/{folder} rw shared:9 - cgroup cgroup rw,{names}"
MIB = 2**20


def tree(root: Path, cgroup: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A file system with what the kernel would tell."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text("20 1 8:1 / / rw - ext4 /dev/sda rw\n" + "\n".join(mounts))
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def v2(root: Path, files: dict[str, str], path: str = "/", top: str = "/") -> Path:
    return tree(root, f"0::{path}\n", [V2.format(top=top)], files)


def v1(root: Path, files: dict[str, str], path: str = "/", top: str = "/") -> Path:
    cgroup = f"12:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:{path}\n"
    mounts = [
        V1.format(n=1, top=top, folder="memory", names="memory"),
        V1.format(n=2, top=top, folder="cpu,cpuacct", names="cpu,cpuacct"),
        V1.format(n=3, top=top, folder="systemd", names="name=systemd"),
    ]
    return tree(root, cgroup, mounts, files)


def v1_cpu(quota: int, period: int = 100_000, folder: str = "") -> dict[str, str]:
    base = f"cpu,cpuacct/{folder}"
    return {f"{base}cpu.cfs_quota_us": str(quota), f"{base}cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    ("files", "path", "top", "quota"),
    [
        ({"cpu.max": "50000 100000"}, "/", "/", 0.5),
        ({"cpu.max": "max 100000"}, "/", "/", None),
        ({}, "/", "/", None),
        ({"cpu.max": "nonsense"}, "/", "/", None),
        # The least of the hierarchy counts, wherever it stands.
        ({"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, "/a/b/c", "/", 1.5),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "20000 10000"}, "/a/b", "/", 2.0),
        ({"other/cpu.max": "1000 100000"}, "/a", "/", None),
        # Inside a container: the host's path, of which the mount is a part or knows nothing.
        ({"cpu.max": "50000 100000"}, "/docker/7f", "/docker/7f", 0.5),
        ({"in/cpu.max": "50000 100000"}, "/docker/7f/in", "/docker/7f", 0.5),
        ({"cpu.max": "50000 100000"}, "/host/slice", "/docker/7f", 0.5),
        ({"cpu.max": "50000 100000"}, "/../../else", "/", 0.5),
    ],
)
def test_quota_of_version_2(
    tmp_path: Path, files: dict[str, str], path: str, top: str, quota: float | None
) -> None:
    assert quota_cores(v2(tmp_path, files, path, top)) == quota


@pytest.mark.parametrize(
    ("files", "path", "top", "quota"),
    [
        (v1_cpu(50_000), "/", "/", 0.5),
        (v1_cpu(-1), "/", "/", None),
        ({**v1_cpu(250_000, folder="a/"), **v1_cpu(-1, folder="a/b/")}, "/a/b", "/", 2.5),
        (v1_cpu(50_000), "/docker/7f", "/docker/7f", 0.5),
        (v1_cpu(50_000), "/docker/7f", "/", 0.5),
    ],
)
def test_quota_of_version_1(
    tmp_path: Path, files: dict[str, str], path: str, top: str, quota: float | None
) -> None:
    assert quota_cores(v1(tmp_path, files, path, top)) == quota


@pytest.mark.parametrize(
    ("make", "files", "path", "limit"),
    [
        (v2, {"memory.max": str(512 * MIB)}, "/", 512 * MIB),
        (v2, {"memory.max": "max", "memory.high": "max"}, "/", None),
        (v2, {"memory.max": str(512 * MIB), "memory.high": str(256 * MIB)}, "/", 256 * MIB),
        (v2, {"a/memory.max": str(64 * MIB), "a/b/memory.max": str(512 * MIB)}, "/a/b", 64 * MIB),
        (v1, {"memory/memory.limit_in_bytes": str(512 * MIB)}, "/", 512 * MIB),
        (v1, {"memory/a/memory.limit_in_bytes": str(64 * MIB)}, "/a/b", 64 * MIB),
    ],
)
def test_memory(tmp_path: Path, make, files, path, limit) -> None:  # type: ignore[no-untyped-def]
    assert memory_limit_bytes(make(tmp_path, files, path)) == limit


def test_no_limit_of_version_1_is_the_machines_memory(tmp_path: Path) -> None:
    root = v1(tmp_path, {"memory/memory.limit_in_bytes": "9223372036854771712"})
    assert usable_memory_bytes(root) == usable_memory_bytes(tmp_path / "nothing")


def test_cores_are_rounded_up_and_never_more_than_affinity_allows(tmp_path: Path) -> None:
    free = usable_cores(tmp_path / "nothing")
    assert free == len(os.sched_getaffinity(0))
    for name, quota, cores in (("half", 50_000, 1), ("tiny", 1_000, 1), ("many", 10**7, free)):
        assert usable_cores(v2(tmp_path / name, {"cpu.max": f"{quota} 100000"})) == cores
    more = v2(tmp_path / "more", {"cpu.max": "110000 100000"})
    assert usable_cores(more) == min(2, free)


def test_threads_and_budget_follow_the_limits(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rvos_deploy import environment, spill_store
    from rvos_deploy.runtime.segmenter import load
    from rvos_deploy.stream_settings import StreamSettings
    from rvos_deploy.video.ffmpeg import usable_threads

    monkeypatch.setattr(environment, "quota_cores", lambda root: 0.5)
    monkeypatch.setattr(spill_store, "usable_memory_bytes", lambda: 512 * MIB)
    assert environment.machine()["cores"] == usable_threads() == 1
    assert StreamSettings().mask_budget == 64 * MIB
    with load(tiny_bundle) as segmenter:
        session = segmenter._session.graphs["mask_head"]._session  # type: ignore[attr-defined]
        assert session.get_session_options().intra_op_num_threads == 1
    monkeypatch.setattr(spill_store, "usable_memory_bytes", lambda: 64 * 2**30)
    assert StreamSettings().mask_budget == MAXIMUM_DEFAULT
    monkeypatch.setattr(spill_store, "usable_memory_bytes", lambda: 0)
    assert StreamSettings().mask_budget == MAXIMUM_DEFAULT


def test_the_budget_used_is_in_the_result(  # type: ignore[no-untyped-def]
    rvos, output, tiny_bundle: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rvos_deploy import spill_store

    monkeypatch.setattr(spill_store, "usable_memory_bytes", lambda: 512 * MIB)
    for options, budget in (((), 64 * MIB), (("--mask-budget", 3), 3 * MIB)):
        out = output(tmp_path / "out")
        small = ("--max-frames", 1, "--size", "32x32")
        result = rvos(
            "run", video, "the dog", "-b", tiny_bundle, "-o", out.folder, *small, *options
        )
        assert result.code == 0
        assert out.result["settings"]["mask_budget"] == budget


PRINT = (
    "from rvos_deploy.environment import usable_cores, usable_memory_bytes;"
    "print(usable_cores(), usable_memory_bytes())"
)


def test_a_real_group() -> None:
    """Half a core and 512 MiB, where this process may make control groups."""
    names = {"cpu.max": "50000 100000", "memory.max": str(512 * MIB)}
    old = {
        "cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
        "memory": {"memory.limit_in_bytes": str(512 * MIB)},
    }
    base, name = Path("/sys/fs/cgroup"), f"rvos-deploy-test-{os.getpid()}"
    groups = {base / folder / name: files for folder, files in old.items()}
    if (base / "cgroup.controllers").is_file():
        groups = {base / name: names}
    made: list[Path] = []
    try:
        try:
            for group, files in groups.items():
                group.mkdir()
                made.append(group)
                for file, text in files.items():
                    (group / file).write_text(text)
        except OSError as error:
            pytest.skip(f"control groups cannot be made here: {error}")

        def join() -> None:
            for group in made:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        try:
            done = subprocess.run(
                [sys.executable, "-c", PRINT],
                preexec_fn=join,
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"a process cannot be put into a control group here: {error}")
    finally:
        for group in made:
            group.rmdir()
    assert done.stdout.split() == ["1", str(512 * MIB)]
