"""Memory that runs out is one line, as every other error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.parametrize("size", [2**60, None])
def test_memory_is_short(
    rvos: Callable, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    """NumPy's own refusal of an exbibyte, and Python's, which says nothing."""
    from rvos_deploy.runtime import run

    def allocate(*arguments: object, **options: object) -> None:
        if size is None:
            raise MemoryError
        np.empty(size, np.uint8)

    monkeypatch.setattr(run, "open_video", allocate)
    result = rvos("run", video, "the dog", "-o", tmp_path / "out", "--size", "32x32")
    assert result.code == 2
    *_, line = result.stderr.splitlines()
    assert line.startswith("error: memory is short")
    assert "use a smaller --size, fewer expressions" in line
    assert ("Unable to allocate" in line) == (size is not None)
    assert "Traceback" not in result.stderr
