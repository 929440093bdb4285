"""Readers under a coverage-guided fuzzer, each for half a minute; see fuzz_readers.py."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

SECONDS = 30
TARGETS = ("manifest", "parity", "onnx", "run-lengths", "expression", "source", "recipe")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_raises_nothing_but_errors_of_ours(
    target: str, attempt: Callable[[str], AbstractContextManager[None]], tmp_path: Path
) -> None:
    pytest.importorskip("atheris", reason="pip install atheris")
    script = Path(__file__).with_name("fuzz_readers.py")
    limits = (f"-max_total_time={SECONDS}", "-max_len=4096", "-rss_limit_mb=4096", "-seed=7")
    with attempt(f"fuzzed half a minute: {target}"):
        found = subprocess.run(
            [sys.executable, script, target, *limits, f"-artifact_prefix={tmp_path}/"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=20 * SECONDS,
            check=False,
        )
        assert found.returncode == 0, found.stderr[-3000:]
        done = re.search(r"Done (\d+) (?:runs|in)", found.stderr)
        assert done is not None, found.stderr[-500:]
        assert int(done[1]) > 1000
        assert not list(tmp_path.iterdir())
