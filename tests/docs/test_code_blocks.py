"""Every code block of README and docs is run, or says in a comment before it why it is not.

A comment has one of these forms, and GitHub does not show it:

    <!-- not run: REASON -->             REASON is one of ``REASONS``
    <!-- run by: tests/FILE.py -->       another test runs the block
    <!-- shortened: OLD -> NEW; ... -->  parts that are replaced, so that it takes seconds
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if page.name != "commands.md"  # generated
)
REASONS = {
    "it needs a GPU",
    "it needs published weights, and a network",
    "it needs a data set that nobody may pass on",
    "it needs a container",
    "it takes hours",
    "it prepares this machine",
}
FORMS = {"text", "", "{toctree}", "{include}", "{eval-rst}"}
"""Languages of blocks that show a form, and hold nothing to run."""
_FENCE = re.compile(
    r"(?:^<!-- (?P<key>not run|run by|shortened): (?P<value>[^\n]*) -->\n+)?"
    r"^```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PIP = re.compile(r"^(?:python3 -m venv|pip install) .*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block with the comment before it."""

    page: Path
    language: str
    code: str
    key: str | None = None
    value: str = ""

    @property
    def to_run(self) -> str:
        """The code as the test runs it: without installation, and with what is shortened."""
        code = _PIP.sub("", self.code)
        if self.key == "shortened":
            for part in self.value.split("; "):
                old, arrow, new = part.partition(" -> ")
                assert arrow, self
                assert old in code, f"{self.page.name}: '{old}' is not in the block"
                code = code.replace(old, new)
        return code


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, m["language"], m["code"], m["key"], m["value"] or "")
        for m in _FENCE.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), page
    return found


def test_every_block_is_run_or_says_why_not() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            where = f"{page.name}: {block.code[:60]}"
            if block.language in FORMS:
                continue
            assert block.language in ("sh", "python", "json", "toml"), where
            if block.key == "not run":
                assert block.value in REASONS, where
            elif block.key == "run by":
                assert (ROOT / block.value).is_file(), where
            elif block.language in ("sh", "python") and block.to_run.strip():
                assert page.name in RUNS, f"no test runs {where}"


def test_json_and_toml_are_valid() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "json":
                json.loads(block.code)
            elif block.language == "toml":
                tomllib.loads(block.code)


def test_every_extra_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, named = set(project["optional-dependencies"]), set()
    for page in [*PAGES, ROOT / "engines" / "README.md"]:
        text = page.read_text(encoding="utf-8")
        for found in re.findall(r"rvos-deploy\[[\w,-]+\]", text):
            named |= Requirement(found).extras
    assert named <= extras
    assert {"cpu", "train", "ray", "serve", "ui"} <= named


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which ``rvos-deploy`` is this environment's."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, module in (("rvos-deploy", "-m rvos_deploy"), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def run_page(name: str, place: Path, skip: Callable[[Block], bool] = lambda block: False) -> str:
    """Run a page's blocks in order; return what they printed."""
    page = next(page for page in PAGES if page.name == name)
    runnable = (
        block
        for block in blocks_of(page)
        if block.language in ("sh", "python")
        and block.key in (None, "shortened")
        and block.to_run.strip()
        and not skip(block)
    )
    printed = ""
    # Python blocks that follow each other are one program, as a reader types them.
    for language, blocks in groupby(runnable, lambda block: block.language):
        code = "\n".join(block.to_run for block in blocks)
        command = ["bash", "-euc", code]
        if language == "python":
            command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    return printed


@pytest.fixture
def videos(place: Path, make_video: Callable[..., Path]) -> None:
    """The videos that pages name."""
    for name in ("in.mp4", "street.mp4", "video.mp4"):
        make_video(place / name, 40)


def run_quickstart(place: Path) -> None:
    assert "24 frames, 2 expressions" in run_page("quickstart.md", place)
    assert (place / "out" / "overlay.mp4").is_file()
    assert (place / "out" / "masks" / "0" / "00000.png").is_file()
    assert (place / "demo" / "picture.png").is_file()


def run_readme(place: Path) -> None:
    assert "(2, 48, 80)" in run_page("README.md", place)


def run_embedding(place: Path) -> None:
    pytest.importorskip("supervision")
    printed = run_page("embedding.md", place)
    assert "found uint8 [48, 80]; pass np.repeat" in printed
    assert (place / "out" / "frames.ndjson").is_file()


def run_running(place: Path) -> None:
    run_page("running.md", place)
    assert (place / "out" / "result.json").is_file()
    assert (place / "live.ts").stat().st_size > 1000


def run_deploy(place: Path) -> None:
    printed = run_page("deploy.md", place)
    assert "parity checks passed" in printed
    assert (place / "out" / "overlay.mp4").is_file()


def run_batch(place: Path) -> None:
    pytest.importorskip("ray")
    printed = run_page("batch.md", place)
    assert "2 videos: 2 done -> masks\n" in printed
    assert "2 videos: 2 done -> same-texts\n" in printed
    assert {path.name for path in place.iterdir()} >= {"data", "masks", "same-texts"}


def run_training(place: Path) -> None:
    run_page("training.md", place)
    assert (place / "RUN-bundle" / "manifest.json").is_file()


def make_run(place: Path) -> None:
    """A training run of one step, and videos like its own."""
    commands = """
        small="--videos 2 --frames 16 --size 64x96 --out my-videos"
        rvos-deploy make-data sprites --split train $small
        rvos-deploy make-data sprites --split valid $small
        rvos-deploy pretrain-clip --out clip --steps 1
        rvos-deploy train tiny --data my-videos/train --out RUN --steps 1 \
            --clip-weights clip/clip.safetensors
    """
    subprocess.run(["bash", "-euc", commands], cwd=place, check=True, capture_output=True)


def run_int8(place: Path) -> None:
    make_run(place)
    assert "int8:" in run_page("int8.md", place)


def run_other_runtimes(place: Path) -> None:
    assert "ONNX opset 17, fixed at H=256" in run_page("other-runtimes.md", place)


def run_triton(place: Path) -> None:
    assert "6 models" in run_page("triton.md", place)


RUNS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "README.md": (run_readme, False),
    "quickstart.md": (run_quickstart, False),
    "embedding.md": (run_embedding, False),
    "running.md": (run_running, False),
    "triton.md": (run_triton, False),
    "deploy.md": (run_deploy, True),
    "batch.md": (run_batch, True),
    "training.md": (run_training, True),
    "int8.md": (run_int8, True),
    "other-runtimes.md": (run_other_runtimes, True),
}
"""By page: what runs it, and whether that is slow."""


def _pages(slow: bool) -> list[str]:
    return [name for name, (_, takes_long) in RUNS.items() if takes_long is slow]


@pytest.mark.parametrize("name", _pages(slow=False))
@pytest.mark.usefixtures("videos")
def test_a_page_runs_as_written(name: str, place: Path) -> None:
    RUNS[name][0](place)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", _pages(slow=True))
@pytest.mark.usefixtures("videos")
def test_a_long_page_runs_as_written(name: str, place: Path) -> None:
    pytest.importorskip("torch")
    RUNS[name][0](place)


def test_messages_of_the_troubleshooting_page_are_those_of_the_package() -> None:
    """A heading quotes parts of lines; every part stands in the sources."""
    sources = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("rvos_deploy", "export", "engines")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    # Literals that follow each other are one text.
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        part
        for line in re.findall(r"^### .*$", text, re.MULTILINE)
        for part in re.findall(r"`([^`]+)`", line)
    ]
    assert len(quoted) > 12
    missing = [part for part in quoted if part not in joined]
    assert not missing
