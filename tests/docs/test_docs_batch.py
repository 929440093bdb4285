"""The commands of docs/batch.md, as they are written, in their order."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "batch.md"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    script = "\n".join(blocks)
    assert script.count("rvos-deploy") == 4
    command = f"{sys.executable} -m rvos_deploy"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("rvos-deploy", command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 videos: 2 done -> masks\n" in done.stdout
    assert "2 videos: 2 done -> same-texts\n" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "data", "masks", "texts.json", "same-texts",
    }  # fmt: skip
