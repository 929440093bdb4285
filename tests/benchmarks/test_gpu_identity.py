"""Test that clocks and power are those of the GPU that CUDA shows, not of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rvos_deploy.benchmarks.gpu_rates import ask_nvidia_smi
from rvos_deploy.errors import BackendError

UUID = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
NVIDIA_SMI = """#!/bin/sh
echo "$@" >> "$0.asked"
case "$1" in
  --query-gpu=*) echo "$1" | sed 's/--query-gpu=//; s/,/, /g' ;;
  *) echo "12, python, 300 MiB" ;;
esac
"""


def test_nvidia_smi_is_asked_about_one_gpu_by_its_uuid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = ask_nvidia_smi(UUID)
    asked = Path(f"{program}.asked").read_text().splitlines()
    assert all(f"--id={UUID}" in line.split() for line in asked)
    assert len(asked) == 2
    assert found["state"]["power.draw"] == "power.draw"
    assert found["processes"] == ["12, python, 300 MiB"]


def test_a_gpu_without_a_uuid_is_one_line() -> None:
    with pytest.raises(BackendError, match="does not tell the GPU's UUID"):
        ask_nvidia_smi(None)
