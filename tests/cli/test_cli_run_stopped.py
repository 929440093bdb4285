"""``run`` when it does not come to the end: damaged videos and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = ("--size", "64x96", "--fallback", "top1")
PATIENCE = 60
TELEMETRY = ".ses"  # ONNX Runtime's own, in the folder for temporary files


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {TELEMETRY}


def wait_until(condition: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_damaged_clip_gives_what_came_before(
    process: Callable, output: Callable, shared_media: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    clip = shared_media / "decord_corrupted.mp4"
    result = process("run", clip, "the dog", "-b", tiny_bundle, "-o", out.folder, *SMALL)
    assert result.code == 1
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert "damaged" in warning
    assert "28 frames" in warning
    found = out.result
    assert found["damage"]
    assert len(found["frames"]) == 28
    out.check(frames=28, expressions=1, size=out.mask(0, 0).shape)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_clip_that_was_cut_short(
    rvos: Callable,
    output: Callable,
    make_video: Callable,
    tiny_bundle: Path,
    tmp_path: Path,
    mode: str,
) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=40, movflags="+faststart")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    out = output(tmp_path / "out")
    result = rvos("run", cut, "a", "-b", tiny_bundle, "-o", out.folder, *SMALL, "--mode", mode)
    assert result.code == 1
    (warning,) = result.stderr.splitlines()
    assert warning.startswith(f"warning: {cut} is damaged")
    frames = len(out.result["frames"])
    assert 0 < frames < 40
    assert f"{frames} frames" in warning
    assert out.result["damage"]
    out.check(frames=frames, expressions=1, size=(48, 80))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands put their temporary files; must be empty after them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def long(make_video: Callable, tmp_path: Path) -> Path:
    """A video that nobody waits for the end of."""
    return make_video(tmp_path / "long.mp4", frames=600)


def test_ctrl_c_keeps_every_frame_that_is_reported(
    start: Callable,
    output: Callable,
    long: Path,
    temporary: Path,
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    out = output(tmp_path / "out")
    online = ("--mode", "online", "--memory", 4)
    child = start("run", long, "a", "b", "-b", tiny_bundle, "-o", out.folder, *SMALL, *online)
    wait_until((out.folder / "masks" / "1" / "00003.png").exists, child)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130
    frames = len(out.result["frames"])
    assert 4 <= frames < 600
    assert stdout.startswith(f"{frames} frames, 2 expressions, online: ")
    assert stderr == f"warning: interrupted; {frames} frames are complete in {out.folder}\n"
    assert out.result["stopped"] == "interrupted"
    out.check(frames=frames, expressions=2, size=(48, 80))
    assert out.overlay.times == pytest.approx([index / 10 for index in range(frames)])
    assert not names(temporary)


def test_ctrl_c_offline_before_anything_is_decided(
    start: Callable,
    output: Callable,
    long: Path,
    temporary: Path,
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    out = output(tmp_path / "out")
    spill = ("--mask-budget", 0)
    child = start("run", long, "a", "-b", tiny_bundle, "-o", out.folder, *SMALL, *spill)
    wait_until(lambda: any(out.folder.glob(".result.json.*.part")), child)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130
    assert stderr == f"warning: interrupted; 0 frames are complete in {out.folder}\n"
    assert out.files() == {"result.json"}
    assert out.result["frames"] == []
    assert not names(temporary)


def test_ctrl_c_elsewhere_is_one_line(start: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    """During an export: torch is being imported, or the network is built; nothing is written."""
    child = start("export", "tiny", "--random-weights", "--out", tmp_path / "bundle")
    time.sleep(1.5)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in stderr
    assert not list(tmp_path.iterdir())
