"""Batches on a real Ray on this machine: results, failures, kills, stops."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rvos_deploy.files import holding

pytest.importorskip("ray")
SMALL = ("--size", "64x96", "--fallback", "top1", "--backend", "onnxruntime")
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def states(out: Path) -> dict[str, str]:
    try:
        videos = json.loads((out / "batch.json").read_text())["videos"]
    except FileNotFoundError:
        return {}
    return {name: video["state"] for name, video in videos.items()}


def ray_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(".rvos.*.part"))


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.endswith(".part")]


@pytest.fixture
def batch(family: Callable, texts: Path, tiny_bundle: Path, tmp_path: Path) -> Callable:
    """Start a batch of videos, in a process of its own."""

    def launch(videos: list[Path], *options: object, out: str = "out") -> object:
        return family(
            *("batch", *videos, "-e", texts, "-o", tmp_path / out, "-b", tiny_bundle, *SMALL),
            *("--cpus", 1, *options),
            start_new_session=True,
        )

    return launch


def test_three_videos(
    batch: Callable,
    clips: Callable,
    damage: Callable,
    same_as_single_runs: Callable,
    tmp_path: Path,
) -> None:
    videos = clips(3)
    damage(videos[1])
    before, home_of_ray = ray_folders(), (Path.home() / ".ray").exists()
    one = batch(videos, "--workers", 1)
    one.wait_for(one.workers)
    (session,) = ray_folders() - before
    assert session.stat().st_mode & 0o077 == 0
    assert not (Path.home() / ".ray").exists() or home_of_ray
    processes = one.look()
    listening, remote = one.sockets()
    environments = {
        line: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        for pid, line in processes.items()
        if any(name in line for name in ("gcs_server", "raylet "))
    }
    code, stdout, stderr = one.end()

    out = tmp_path / "out"
    assert code == 1, stderr
    assert stdout == f"3 videos: 2 done, 1 damaged -> {out}\n"
    (warning,) = stderr.splitlines()
    assert warning.startswith(f"warning: {videos[1]}: damaged: ")
    assert states(out) == {"clip00": "done", "clip01": "damaged", "clip02": "done"}
    same_as_single_runs(out, videos)
    assert not leftovers(out)

    assert listening <= LOOPBACK
    assert listening
    assert remote <= LOOPBACK | {"00000000", "0" * 32}
    assert len(environments) >= 2
    for line, environment in environments.items():
        assert b"RAY_USAGE_STATS_ENABLED=0" in environment, line
    # Ray starts this process in any case; without its front end it serves nothing.
    for line in one.seen.values():
        assert "dashboard/dashboard.py" not in line or "--disable-frontend" in line
    assert one.none_left()
    assert not session.exists()

    # Nothing is due, so Ray does not start.
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    code, stdout, _ = batch(videos, "--workers", 1).end()
    assert (code, stdout) == (1, f"3 videos: 2 done, 1 damaged (3 before) -> {out}\n")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == written


def test_refused_before_ray_starts(
    rvos: Callable, clips: Callable, texts: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    videos, out = clips(2), tmp_path / "out"
    call = ("-e", texts, "-o", out, "-b", tiny_bundle)
    other = tmp_path / "clip00.avi"
    for arguments, found in (
        ((*videos, other, *call), f"{videos[0]} and {other} would both be written into 'clip00'"),
        ((*videos, *call, "--device", "cuda:1"), "write --device cuda"),
        ((*videos, *call, "-b", tmp_path / "none"), "none"),
        ((*videos, *call, "--memory", 2, "--size", "3x3"), "multiple"),
    ):
        assert found in rvos("batch", *arguments).error
        assert not out.exists()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with holding(out, "running a batch in"):
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        error = rvos("batch", *videos, *call).error
    finally:
        release.set()
        thread.join()
    assert f"another process is running a batch in {out}; wait for it" in error
