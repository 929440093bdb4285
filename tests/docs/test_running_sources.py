"""The commands and the program of "Sources and live video" in docs/running.md, as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rtsp_server import Camera

PAGE = Path(__file__).parents[2] / "docs" / "running.md"
SECTION = PAGE.read_text(encoding="utf-8").split("## Sources and live video")[1].split("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, make_video: Callable) -> Path:
    """What the commands name: street.mp4, street.ts, frames/ and frames.rgb."""
    make_video(tmp_path / "street.mp4", 40, fps=25)
    make_video(tmp_path / "street.ts", 4, fps=25)
    (tmp_path / "frames").mkdir()
    pictures = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "frames.rgb").write_bytes(pictures.tobytes())
    return tmp_path


def bash(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 7
    assert all(command.startswith("rvos-deploy run ") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_runs(command: str, folder: Path, request: pytest.FixtureRequest) -> None:
    if "rtsp:" in command:
        camera: Camera = request.getfixturevalue("rtsp_camera")
        command = command.replace("rtsp://127.0.0.1:8554/live", camera.url)
    done = bash(command, folder)
    if command.startswith("rvos-deploy run 0 ") and not Path("/dev/video0").exists():
        assert done.returncode == 2
        assert "error: there is no camera 0 (/dev/video0)" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
    assert found["damage"] is None
    assert len(found["frames"]) in (3, 4, 10, 40, 50)
    if "--stride" in command:
        assert [frame["index"] for frame in found["frames"]] == list(range(10, 30, 2))


def test_the_program_runs(folder: Path) -> None:
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines
    assert lines[-1][:2] == ["2", "0.08"]
    assert lines[-1][3:] == ["(1,", "48,", "64)"]
