"""Test ``rvos-deploy doctor``: its lines, its exit code, and its record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rvos_deploy.cache_folder import VARIABLE


def test_every_check_is_a_line(rvos: Callable, tmp_path: Path) -> None:
    result = rvos("doctor", "--json", tmp_path / "d.json")
    assert (result.code, result.stderr) == (0, "")
    record = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    rows = record["checks"]
    lines = [line for line in result.stdout.splitlines() if "fix: " not in line]
    assert len(lines) == len(rows) + 1
    for number, (line, row) in enumerate(zip(lines, rows, strict=False), start=1):
        assert line.split()[0] == str(number)
        assert line.split()[1] == {"passed": "✓", "absent": "⊘"}[row["state"]]
        assert row["check"] in line
        assert line.endswith(row["found"])
    assert f"{sum(row['state'] == 'passed' for row in rows)} checks passed" in lines[-1]


def test_a_failure_stops_nothing_and_gives_exit_code_1(
    rvos: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder", encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(file))
    result = rvos("doctor", "--bundle", tmp_path / "nothing", "--json", tmp_path / "d.json")
    assert (result.code, result.stderr) == (1, "")
    rows = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["checks"]
    failed = {row["check"]: row["fix"] for row in rows if row["state"] == "failed"}
    assert set(failed) >= {"disk", "bundle", "one frame"}
    assert sum("✗" in line for line in result.stdout.splitlines()) == len(failed)
    for fix in filter(None, failed.values()):
        assert f"fix: {fix}" in result.stdout


def test_a_terminal_without_unicode() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "rvos_deploy", "doctor", "--bundle", "nothing"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == b""
    assert b" ok Python" in result.stdout
    assert b" FAILED bundle" in result.stdout


def test_python_m_is_the_program() -> None:
    asked = [sys.executable, "-m", "rvos_deploy", "--help"]
    result = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert "Usage: rvos-deploy" in result.stdout
