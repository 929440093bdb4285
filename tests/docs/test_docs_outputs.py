"""The code of docs/embedding.md and of docs/running.md's outputs, as it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def blocks(document: str, language: str) -> list[str]:
    text = (DOCS / document).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture
def folder(make_video: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a video in.mp4."""
    make_video(tmp_path / "in.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_about_embedding(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("supervision")
    names: dict[str, object] = {}
    printed = []
    for block in blocks("embedding.md", "python"):
        exec(compile(block, "docs/embedding.md", "exec"), names)
        printed.append(capfd.readouterr().out)
    # What the comments promise.
    assert printed[0].startswith("FrameMasks(index=0, pts=0.000, masks=bool[2, 48, 80], ")
    assert "found uint8 [48, 80]; pass np.repeat(image[..., None], 3, axis=2)" in printed[3]
    assert printed[-1].endswith("3 None\n")
    assert {path.name for path in (folder / "out").iterdir()} == {"masks", "frames.ndjson"}


def test_the_commands_about_outputs(folder: Path) -> None:
    block = blocks("running.md", "sh")[0]
    program = f"{sys.executable} -c 'from rvos_deploy.cli.app import main; main()'"
    script = re.sub(r"^rvos-deploy\b", lambda _: program, block, flags=re.MULTILINE)
    assert script.count(program) == 3
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()[:1]
    assert line.startswith('{"schema": "rvos-deploy/frame/1", "index": 0')
    assert (folder / "live.ts").stat().st_size > 1000
    written = {path.name for path in (folder / "out").iterdir()}
    assert written == {"overlay.mp4", "coco.json", "alpha"}  # the last command leaves them


def test_every_kind_of_output_is_described() -> None:
    from rvos_deploy.video.sinks.registry import SINKS

    text = (DOCS / "running.md").read_text(encoding="utf-8")
    described = re.findall(r"^\| `(\w+)` \|", text.split("## Frames")[0], re.MULTILINE)
    assert described == list(SINKS)
