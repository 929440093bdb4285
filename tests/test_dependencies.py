"""Every cap of a dependency has its reason, and a test that shows it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rvos_deploy.engines.plugins.ms_deform_attn.compile import compile_ptx
from rvos_deploy.engines.plugins.ms_deform_attn.spec import KernelSpec, LayerSizes, Tactic
from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.nvrtc import nvrtc_version

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
CAPPED = {"<", "<=", "==", "~=", "!="}
NEWEST_PTX_OF_CUDA_12 = (8, 8)
"""Of 12.9, by NVIDIA's table of releases of PTX; a driver refuses a newer one."""


def requirements() -> list[Requirement]:
    """Every requirement of the package and of its extras."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for texts in lists for text in texts]


def comment_above(line: int, lines: list[str]) -> str:
    """Return the comment that stands directly above a line."""
    first = line
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(text.strip().removeprefix("#").strip() for text in lines[first:line])


def test_every_cap_names_the_test_that_shows_its_reason() -> None:
    lines, caps = TEXT.splitlines(), 0
    for number, line in enumerate(lines):
        if not (found := re.fullmatch(r'\s*"([A-Za-z][^"]*)",?(?:\s*#.*)?', line)):
            continue
        try:
            one = Requirement(found[1])
        except ValueError:  # another list of texts
            continue
        if {part.operator for part in one.specifier} & CAPPED:
            caps += 1
            named = re.search(r"\btests/[\w/]+\.py\b", comment_above(number, lines))
            assert named, f"{one} has a cap; say why above it, and name the test that shows it"
            assert (ROOT / named[0]).is_file(), named[0]
    capped = [one for one in requirements() if {p.operator for p in one.specifier} & CAPPED]
    assert caps == len(capped) >= 5


def test_the_cuda_toolkit_is_one_that_pytorch_takes() -> None:
    """PyTorch pins one version exactly, so another one cannot be installed beside it."""
    try:
        needed = [Requirement(text) for text in requires("torch") or ()]
    except PackageNotFoundError:
        pytest.skip("PyTorch is not installed")
    pins = [one.specifier for one in needed if one.name == "cuda-toolkit"]
    if not pins:
        pytest.skip("this build of PyTorch is without CUDA")
    (pin,) = pins[0]
    assert pin.operator == "=="
    ours = [one for one in requirements() if one.name == "cuda-toolkit"]
    beside = [one for one in ours if not one.specifier.contains("12.9.2") or one.marker]
    assert len(beside) == 4  # tensorrt, tensorrt-rtx, gpu-benchmark, dev
    assert all(one.specifier.contains(pin.version) for one in beside)
    newer = f"{pin.version.rpartition('.')[0].partition('.')[0]}.99"
    assert not any(one.specifier.contains(newer) for one in ours)


def test_ptx_of_cuda_13_needs_a_driver_for_it() -> None:
    try:
        major, _ = nvrtc_version()
    except BackendError as error:
        pytest.skip(str(error))
    sizes = LayerSizes(heads=8, head_width=16, levels=3, points=4)
    ptx = compile_ptx(KernelSpec(90, "fp32", "fp32", "fp32", sizes, Tactic(256)))
    version = re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
    assert version
    assert ((int(version[1]), int(version[2])) > NEWEST_PTX_OF_CUDA_12) == (major > 12)
