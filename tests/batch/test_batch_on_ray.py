"""Batches on a real Ray on this machine: results, failures, kills, stops."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rvos_deploy.batch.status_file import read_status
from rvos_deploy.files import holding

# Found, not imported: a batch sets Ray's variables before.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
SMALL = ("--size", "64x96", "--fallback", "top1", "--backend", "onnxruntime")
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def status(out: Path) -> dict[str, Any]:
    """What a batch knows that begins now."""
    return {name: msgspec.to_builtins(one) for name, one in read_status(out).items()}


def states(out: Path) -> dict[str, str]:
    return {name: video["state"] for name, video in status(out).items()}


def masks(folder: Path) -> dict[str, bytes]:
    """Masks and overlay."""
    files = [*folder.rglob("*.png"), folder / "overlay.mp4"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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
    # As for a run; the result file is always there.
    chosen = ("--mode", "online", "--lookahead", 1, "--max-frames", 3)
    chosen = (*chosen, "--save", "overlay,masks", "--save", "rle")
    one = batch(videos, "--workers", 1, *chosen)
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
    assert warning.startswith("warning: damaged: ")
    assert str(videos[1]) in warning
    assert warning.endswith("; complete before it: 1 frame")
    assert states(out) == {"clip00": "done", "clip01": "damaged", "clip02": "done"}
    same_as_single_runs(out, videos, *chosen, "--save", "json")
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
    code, stdout, _ = batch(videos, "--workers", 1, *chosen).end()
    assert (code, stdout) == (1, f"3 videos: 2 done, 1 damaged (3 before) -> {out}\n")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == written


def test_refused_before_ray_starts(
    rvos: Callable,
    clips: Callable,
    texts: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    videos, out = clips(2), tmp_path / "out"
    call = ("-e", texts, "-o", out, "-b", tiny_bundle)
    other = tmp_path / "clip00.avi"
    for arguments, found in (
        ((*videos, other, *call), f"{videos[0]} and {other} would both be written into 'clip00'"),
        ((*videos, *call, "--device", "cuda:1"), "write --device cuda"),
        ((*videos, *call, "--save", "rle=-"), "'rle=-' is one place for all videos"),
        ((*videos, *call, "--save", "mpegts=udp://127.0.0.1:9"), "is one place for all videos"),
        ((*videos, *call, "--save", "video"), "there is no sink 'video'"),
        ((*videos, *call, "--start", "soon"), "soon"),
        ((*videos, *call, "--address", "127.0.0.1"), "not of the form HOST:PORT"),
        ((*videos, *call, "--address", "127.0.0.1:9"), "no Ray cluster answers at 127.0.0.1:9"),
        ((*videos, *call, "-b", tmp_path / "none"), "none"),
        ((*videos, *call, "--memory", 2, "--size", "3x3"), "multiple"),
    ):
        assert found in rvos("batch", *arguments).error
        assert not out.exists()
    with monkeypatch.context() as absent:
        absent.setattr("rvos_deploy.ray_cluster.find_spec", lambda name: None)
        error = rvos("batch", *videos, *call).error
    assert (
        error == "this command runs on Ray, which is not installed; pip install 'rvos-deploy[ray]'"
    )
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


@pytest.mark.slow
def test_twenty_videos_a_dead_worker_and_a_damaged_file(
    batch: Callable,
    clips: Callable,
    damage: Callable,
    same_as_single_runs: Callable,
    tmp_path: Path,
) -> None:
    videos, out = clips(20, frames=8), tmp_path / "out"
    damage(videos[5])
    two = batch(videos, "--workers", 2)
    two.wait_for(lambda: list(states(out).values()).count("done") >= 4 and two.workers())
    os.kill(two.workers()[0], signal.SIGKILL)
    code, stdout, stderr = two.end()
    assert (code, stdout) == (1, f"20 videos: 19 done, 1 damaged -> {out}\n"), stderr
    assert len(stderr.splitlines()) == 1
    attempts = [video["attempts"] for video in status(out).values()]
    assert sorted(attempts) in ([1] * 19 + [2], [1] * 20)  # the worker may have been between two
    assert two.none_left()
    same_as_single_runs(out, videos[:8])

    one = batch(videos, "--workers", 1, out="alone")
    assert one.end()[0] == 1
    for video in videos:
        assert masks(out / video.stem) == masks(tmp_path / "alone" / video.stem)


@pytest.mark.slow
def test_a_killed_batch_goes_on(
    batch: Callable, clips: Callable, same_as_single_runs: Callable, tmp_path: Path
) -> None:
    videos, out = clips(8, frames=12), tmp_path / "out"
    before = ray_folders()
    first = batch(videos, "--workers", 2)
    first.wait_for(lambda: list(states(out).values()).count("done") >= 2)
    first.child.kill()
    first.child.communicate()
    killed_at = states(out)
    assert "waiting" in killed_at.values()
    # At once, as a person would: workers of the killed batch may still live.
    second = batch(videos, "--workers", 2)
    finished = [name for name, state in killed_at.items() if state == "done"]
    written = {name: (out / name / "result.json").stat().st_mtime_ns for name in finished}
    code, stdout, stderr = second.end()
    assert (code, stderr) == (0, "")
    assert stdout == f"8 videos: 8 done ({len(finished)} before) -> {out}\n"
    assert {n: (out / n / "result.json").stat().st_mtime_ns for n in finished} == written
    assert first.none_left()
    assert second.none_left()
    assert ray_folders() == before
    assert not leftovers(out)
    same_as_single_runs(out, videos[3:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stop_ends_every_process(
    batch: Callable, clips: Callable, tmp_path: Path, number: int, code: int, word: str
) -> None:
    videos, out, before = clips(6, frames=40), tmp_path / "out", ray_folders()
    one = batch(videos, "--workers", 2)
    one.wait_for(lambda: list(states(out).values()).count("done") >= 1)
    if number == signal.SIGINT:  # as a terminal does: to all that run in it
        os.killpg(one.child.pid, number)
    else:
        one.child.send_signal(number)
    found, stdout, stderr = one.end()
    assert (found, stdout) == (code, ""), stderr
    hint = f"give the same command again, and it goes on ({out / 'batch.json'})"
    assert stderr == f"error: {word}; {hint}\n"
    assert one.none_left()
    assert ray_folders() == before
    assert not leftovers(out)
    assert set(states(out).values()) == {"done", "waiting"}


@pytest.mark.slow
def test_a_stop_while_ray_starts(batch: Callable, clips: Callable, tmp_path: Path) -> None:
    before = ray_folders()
    one = batch(clips(2), "--workers", 1)
    one.wait_for(lambda: any("gcs_server" in line for line in one.look().values()))
    one.child.send_signal(signal.SIGTERM)
    code, _, stderr = one.end()
    assert code == 143, stderr
    assert stderr.startswith("error: terminated; give the same command again")
    assert len(stderr.splitlines()) == 1
    assert one.none_left()
    assert ray_folders() == before


@pytest.mark.slow
def test_on_a_cluster(
    family: Callable, batch: Callable, clips: Callable, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    videos = clips(2)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        cluster = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
             f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2",
             "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not list(Path(folder).glob("session_latest/sockets/raylet")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            code, stdout, stderr = batch(videos, "--address", f"127.0.0.1:{port}").end()
            assert (code, stderr) == (0, "")
            assert stdout == f"2 videos: 2 done -> {tmp_path / 'out'}\n"
            assert cluster.poll() is None

            # No machine has the cores of one worker: Ray would wait and say nothing.
            where = ("--address", f"127.0.0.1:{port}")
            starved = batch(videos, *where, "--cpus", 3, out="starved")
            stderr = starved.child.stderr
            assert select.select([stderr], [], [], 120)[0]
            line = stderr.readline()
            assert line.startswith("warning: a worker needs 3 CPUs and 0 GPUs, and no machine of ")
            assert "(machines: 2 CPUs and 0 GPUs); nothing runs until one joins" in line
            starved.child.send_signal(signal.SIGTERM)
            assert starved.end()[0] == 143
            assert set(states(tmp_path / "starved").values()) == {"waiting"}
        finally:
            cluster.terminate()
            cluster.wait(60)


@pytest.mark.slow
def test_retries(tmp_path: Path) -> None:
    script = Path(__file__).with_name("troubled_workers.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "no back end\n"), done.stderr
    videos = status(tmp_path)
    assert {name: (video["state"], video.get("attempts")) for name, video in videos.items()} == {
        "good": ("done", 1),
        "dies": ("failed", 3),
        "dies once": ("done", 2),
        "fails once": ("done", 2),
        "refused": ("failed", 1),
        "bug": ("failed", 3),
        "unusable": ("waiting", 1),
    }
    assert "the worker process ended" in videos["dies"]["error"]
    assert videos["refused"]["error"] == "it is empty"
    assert "ZeroDivisionError: in the worker" in videos["bug"]["error"]
    assert "error" not in videos["dies once"]
