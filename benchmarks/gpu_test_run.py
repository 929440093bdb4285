"""Run the tests that need a GPU, and count them."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from rvos_deploy.errors import BackendError, ParityError

TESTS_SECONDS = 3600
GPU_TESTS = (
    "tests/backends/test_backends_cuda_ops.py",
    "tests/backends/test_backends_device_names.py",
    "tests/backends/test_backends_on_device.py",
    "tests/engines/test_engines_plugin_gpu.py",
)
"""The files with tests that need a GPU. Other tests need packages that are no use here."""


def run_gpu_tests(folder: Path) -> dict[str, Any]:
    """Run the tests that need a GPU in a process of its own. NOT RUN.

    Args:
        folder: for the report.

    Raises:
        BackendError: there are no tests here, or pytest wrote no report.
        ParityError: a test failed; names it.
    """
    import rvos_deploy

    root = Path(rvos_deploy.__file__).parents[1]
    if not (root / "tests").is_dir():
        raise BackendError(f"{root} holds no tests: run the command in a clone of the repository")
    report = folder / "gpu-tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}"]
    command += GPU_TESTS
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=TESTS_SECONDS, check=False
    )
    if not report.is_file():
        raise BackendError(f"pytest wrote no report: {_last_line(done.stdout + done.stderr)}")
    return read_junit(report)


def read_junit(report: Path) -> dict[str, Any]:
    """Count the tests of a JUnit report.

    Raises:
        ParityError: a test failed; names it.
    """
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    if failed:
        raise ParityError(f"{len(failed)} of {len(cases)} gpu tests failed: {'; '.join(failed)}")
    return {"passed": len(cases) - skipped, "skipped": skipped}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
