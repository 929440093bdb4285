"""Run a program of this folder where rvos_deploy cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

HERE = Path(__file__).parent
FORBIDDEN = (
    "import runpy, sys\n"
    "sys.modules['rvos_deploy'] = None\n"  # importing it raises
    "sys.path.insert(0, sys.argv[1])\n"
    "name = sys.argv.pop(2)\n"
    "del sys.argv[1]\n"
    "runpy.run_path(name, run_name='__main__')\n"
)
Results = dict[str, NDArray[Any]]


@pytest.fixture
def numpy_runtime(tmp_path: Path) -> Callable[..., Results]:
    """Segment frames by a program that cannot import rvos_deploy."""

    def run(
        program: str,
        bundle: Path,
        frames: NDArray[np.uint8],
        expressions: Sequence[tuple[str, int]],
        **settings: Any,
    ) -> Results:
        job = {"expressions": expressions, **settings}
        text = np.frombuffer(json.dumps(job).encode(), np.uint8)
        np.savez(tmp_path / "job.npz", frames=frames, job=text)
        files = [bundle, tmp_path / "job.npz", tmp_path / "out.npz"]
        command = [sys.executable, "-c", FORBIDDEN, HERE, HERE / f"{program}.py", *files]
        subprocess.run(list(map(str, command)), check=True)
        with np.load(tmp_path / "out.npz") as file:
            return dict(file)

    return run
