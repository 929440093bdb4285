"""Run the CPU kernel under gcc's sanitizers: bad reads, misaligned vectors, overflows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sanitizers import sanitizer_environment

ROOT = Path(__file__).parents[2]
FLAGS = "-O1 -g -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
_CODE = """
import ctypes
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from deformable_attention import SCENARIOS, make_case
from rvos_deploy.cpu_ops import ms_deform_attn as kernel

library = ctypes.CDLL(sys.argv[2])
kernel._library = lambda: library
best = kernel.INSTRUCTIONS.index(kernel.instructions())
random = np.random.default_rng(13)
if len(sys.argv) > 3:
    wrong = make_case(random, ("fp32", "fp32", "fp32"))
    kernel._check = lambda given, check=kernel._check: check(kernel.Inputs(*wrong.arrays))
    shapes = wrong.level_shapes * 40  # more pixels than there are
    wrong.sampling_offsets[:] = 0
    kernel.ms_deform_attn(kernel.Inputs(wrong.value, shapes, *wrong.arrays[2:]))
    sys.exit("nothing was found")
cases = 0
for kinds in (("fp32",) * 3, ("fp16",) * 3, ("bf16",) * 3, ("fp16", "fp32", "fp32")):
    for scenario in SCENARIOS:
        for use in kernel.INSTRUCTIONS[: best + 1]:
            arrays = [array.copy() for array in make_case(random, kinds, scenario).arrays]
            if scenario == "plain" and kinds[1] != "bf16":
                arrays[3].flat[::7] = np.inf
                arrays[3].flat[::11] = np.nan
                arrays[2].flat[::3] = np.nan
            inputs = kernel.Inputs(*arrays)
            output = kernel.ms_deform_attn(inputs, use=use, threads=3)
            if kinds[0] == "fp32":
                kernel.ms_deform_attn_backward(inputs, output, use=use, threads=3)
            cases += 1
print(cases // (best + 1))
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The library, built with sanitizers, and the environment that loads it."""
    environment = sanitizer_environment()
    folder = tmp_path_factory.mktemp("sanitized")
    source = ROOT / "rvos_deploy" / "cpu_ops" / "ms_deform_attn.cpp"
    library = folder / "kernel.so"
    flags = ["-std=c++17", *FLAGS.split(), "-fopenmp-simd", "-Wno-psabi", "-shared", "-fPIC"]
    subprocess.run(
        ["g++", *flags, "-pthread", str(source), "-o", str(library)],
        check=True,
        timeout=250,
    )
    return library, environment


def run_sanitized(
    sanitized: tuple[Path, dict[str, str]], *arguments: str
) -> subprocess.CompletedProcess[str]:
    library, environment = sanitized
    return subprocess.run(
        [sys.executable, "-c", _CODE, str(ROOT / "tests"), str(library), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


def test_sanitizers_find_nothing(sanitized: tuple[Path, dict[str, str]]) -> None:
    done = run_sanitized(sanitized)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "28"


def test_sanitizers_would_find_a_read_outside(sanitized: tuple[Path, dict[str, str]]) -> None:
    done = run_sanitized(sanitized, "with wrong level shapes")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
