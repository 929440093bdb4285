"""A disk that fills up during a fetch: one line, no wrong file, and the next try succeeds."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CONTENT = random.Random(0).randbytes(100_000)
HASH = sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def failing_writes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and a system that preloads libraries")
    library = tmp_path_factory.mktemp("library") / "failing_writes.so"
    build = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_writes.c", "-ldl"]
    subprocess.run(build, check=True)
    return library


@pytest.mark.parametrize("sticky", ["sticky", "once"])
def test_at_every_operation(
    file_server: Any, failing_writes: Path, tmp_path: Path, attempt: Callable, sticky: str
) -> None:
    url = file_server.serve("/w.pth", CONTENT)
    program = HERE / "fetch_with_full_disk.py"
    child = subprocess.run(
        [sys.executable, program, url, HASH, tmp_path, sticky],
        env={**os.environ, "LD_PRELOAD": str(failing_writes)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    *failed, last = json.loads(child.stdout)
    assert len(failed) >= 8, "the record, the part, both renames"
    assert last["left"] == ["w.pth", "w.pth.origin.json"]
    for result in failed:
        with attempt("disk full: fetch"):
            assert "cannot be written: No space left on device; free some space" in result["error"]
            assert set(result["left"]) <= {"w.pth.part", "w.pth.origin.json"}
            assert result["again"] == HASH


def test_a_limit_on_files_keeps_what_fitted(file_server: Any, tmp_path: Path) -> None:
    url, cache = file_server.serve("/w.pth", CONTENT), tmp_path / "cache"
    program = (
        "import signal, sys; from pathlib import Path; from rvos_deploy.export.download import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: fetch(sys.argv[1], Path(sys.argv[2]))\n"
        "except InputError as error: print(error)"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, url, cache],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "w.pth.part cannot be written: File too large; free some space" in child.stdout
    (part,) = cache.rglob("w.pth.part")
    assert part.read_bytes() == CONTENT[:40_000]
    from rvos_deploy.export.download import fetch

    assert fetch(url, cache).sha256 == HASH
    assert file_server.ranges == [None, "bytes=40000-"]
