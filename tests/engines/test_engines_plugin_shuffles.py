"""Test that the host shim's warps shuffle as a GPU's do, and refuse what a GPU leaves undefined."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.engines.plugins.ms_deform_attn import host

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")

_SOURCE = """
#include "host_shim.h"

extern "C" void run(int blocks, int block_x, int block_y, int case_, int* output) {
  launch_warps(dim3(blocks), dim3(block_x, block_y), [&] {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, lane = thread % 32;
    int* to = output + blockIdx.x * blockDim.x * blockDim.y + thread;
    if (case_ == 0) {  // a sum over groups of 8, then the number of the group's third thread
      int number = thread * thread;
      for (int step = 1; step < 8; step *= 2) number += __shfl_xor_sync(0xffffffffu, number, step);
      *to = 1000 * __shfl_sync(0xffffffffu, thread, 2, 8) + number % 1000;
    }
    if (case_ == 1) {  // the last lane has returned
      if (lane == 31) return;
      *to = __shfl_sync(0xffffffffu, thread, 31);
    }
    if (case_ == 2) {  // odd lanes are at another shuffle
      *to = lane % 2 ? __shfl_xor_sync(0xffffffffu, thread, 1)
                     : __shfl_xor_sync(0xffffffffu, thread, 3);
    }
    if (case_ == 3) *to = __shfl_sync(0x0000ffffu, thread, 0);
    if (case_ == 4) *to = static_cast<int>(__shfl_sync(0xffffffffu, 0.5f * lane, lane ^ 16) * 2);
  });
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shuffles.cpp").write_text(_SOURCE)
    includes = [f"-I{path}" for path in host.include_folders(host.HOST_HEADERS)]
    command = ["g++", "-std=c++17", "-O2", "-fPIC", "-shared", f"-I{host.SOURCE.parent}", *includes]
    target = folder / "shuffles.so"
    subprocess.run([*command, str(folder / "shuffles.cpp"), "-o", str(target)], check=True)
    return target


def run(library: Path, case: int, blocks: int, block: tuple[int, int]) -> np.ndarray:
    output = np.full((blocks, block[0] * block[1]), -1, np.int32)
    ctypes.CDLL(str(library)).run(blocks, *block, case, ctypes.c_void_p(output.ctypes.data))
    return output


@pytest.mark.parametrize("block", [(8, 4), (4, 24), (16, 5)], ids=str)
def test_groups_of_a_warp_exchange_numbers(library: Path, block: tuple[int, int]) -> None:
    """Whole warps, several warps, and a last warp that is not full."""
    thread = np.arange(block[0] * block[1])
    sums = (thread.reshape(-1, 8) ** 2).sum(1).repeat(8)
    wanted = 1000 * (thread // 8 * 8 + 2) + sums % 1000
    assert (run(library, 0, 3, block) == wanted).all()


def test_floats_are_exchanged_by_their_bits(library: Path) -> None:
    assert (run(library, 4, 1, (32, 1))[0] == np.arange(32) ^ 16).all()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (1, "lane 0 reads lane 31, which is not at this shuffle"),
        (2, "lane 0 reads lane 3, which is not at this shuffle"),
        (3, "only shuffles of whole warps"),
    ],
)
def test_a_shuffle_that_a_gpu_leaves_undefined_aborts(
    library: Path, case: int, message: str
) -> None:
    code = (
        "import ctypes, sys\n"
        "buffer = (ctypes.c_int * 32)()\n"
        "ctypes.CDLL(sys.argv[1]).run(1, 32, 1, int(sys.argv[2]), buffer)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(library), str(case)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode < 0
    assert message in done.stderr
