"""The README's way from data to masks: its commands, exactly as they are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    """make-data, train, export, verify, evaluate, run: three minutes of two cores."""
    script = subprocess.run(
        [ROOT / ".ci" / "readme_command", "deploy"], capture_output=True, text=True, check=True
    ).stdout
    steps = ["make-data", "make-data", "train", "export", "verify", "evaluate", "run"]
    assert [line.split()[1] for line in script.splitlines() if line.startswith("rvos-")] == steps
    # The commands stand in a clone, where the CLIP part of `tiny` lies.
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rvos-deploy export my-run --out my-run-bundle" in done.stdout
    assert "my-bundle: 73 checks passed" in done.stdout
    manifest = json.loads((tmp_path / "my-bundle" / "manifest.json").read_text())
    assert manifest["weights"]["origin"]["network"]["run"] == "my-run"
    assert manifest["weights"]["origin"]["clip"]["recorded"]
    assert len(list((tmp_path / "out" / "masks" / "0").glob("*.png"))) == 24
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 1000
