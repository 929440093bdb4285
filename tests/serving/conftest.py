"""A server on a real Ray Serve, started once."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.datasets.moving_sprites import sample_video

sys.path.insert(0, str(Path(__file__).parent))

from served import FRAMES, TEXTS, Server, start_server


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("served") / "clip.mp4"
    sample_video(file, seed=0, frames=FRAMES)
    return file


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The packaged network with tight limits, without a token."""
    one = start_server(
        *("tiny", "--cpus", 1, "--max-streams", 2, "--max-expressions", 3, "--max-frames", 12),
        *("--max-upload", 1, "--max-pixels", 100_000, "--idle-seconds", 2, "--backend"),
        *("onnxruntime", "--allow-private-urls"),
    )
    yield one
    assert one.stop()[0] == 128 + signal.SIGTERM


@pytest.fixture
def lines_of(tmp_path: Path, rvos: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """What ``run --save rle`` writes for a video."""

    def run(video: Path, *options: object) -> list[dict[str, Any]]:
        out = tmp_path / "single"
        done = rvos(
            *("run", video, *TEXTS, "-o", out, "--save", "rle", "--backend", "onnxruntime"),
            *("--mode", "online", "--threads", 1, *options),
        )
        assert done.code in (0, 1), done.stderr
        return [json.loads(line) for line in (out / "frames.ndjson").read_text().splitlines()]

    return run
