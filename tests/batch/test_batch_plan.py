"""How many workers there are, what each gets, and what the table says of them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rvos_deploy.batch.cluster import Shares
from rvos_deploy.batch.plan import choose_shares, plan_segmenter
from rvos_deploy.batch.schedule import Running
from rvos_deploy.batch.status_file import VideoStatus
from rvos_deploy.batch.table import count_line, draw
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import InputError
from rvos_deploy.stream_settings import StreamSettings


@pytest.mark.parametrize(
    ("backend", "device", "gpus", "share"),
    [
        ("auto", "auto", None, 0.0),
        ("onnxruntime", "cpu", None, 0.0),
        ("onnxruntime", "cuda", None, 1.0),
        ("tensorrt", "auto", None, 1.0),
        ("tensorrt-rtx", "auto", 0.5, 0.5),
        ("auto", "auto", 2.0, 2.0),
    ],
)
def test_shares_of_gpus(backend: str, device: str, gpus: float | None, share: float) -> None:
    assert choose_shares(3, 2, gpus, backend, device) == Shares(3, 2, share)


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [
        ("cuda:1", None, "write --device cuda"),
        ("cuda", 0.0, "give --gpus 1"),
        ("cuda", 1.5, "neither a whole number nor below 1"),
    ],
)
def test_refused_shares(device: str, gpus: float | None, found: str) -> None:
    with pytest.raises(InputError, match=found):
        choose_shares(None, None, gpus, "onnxruntime", device)


def test_workers_share_cores_and_memory() -> None:
    cores = usable_cores()
    assert choose_shares(None, None, None, "auto", "auto") == Shares(None, min(4, cores), 0.0)
    settings = StreamSettings(mode="offline", mask_budget=2**30)
    one, many = (plan_segmenter(Path("b"), "auto", "cpu", n, settings) for n in (cores, 1))
    assert (one.threads, many.threads) == (cores, 1)
    assert one.stream.mask_budget == 2**30
    assert many.stream.mask_budget == max(2**30 // cores, 64 * 2**20)


def statuses(**counts: int) -> list[VideoStatus]:
    return [
        VideoStatus(
            video=f"{state}{number}.mp4",
            state=state,
            fingerprint="",
            expressions=1,
            error="no frame can be decoded " * 9 if state == "failed" else None,
        )
        for state, count in counts.items()
        for number in range(count)
    ]


def test_counts() -> None:
    assert count_line(statuses(done=1)) == "1 video: 1 done"
    every = statuses(waiting=5, failed=1, done=2, damaged=1, running=3)
    assert count_line(every) == ("12 videos: 2 done, 1 damaged, 1 failed, 3 running, 5 waiting")


def test_the_table_fits_a_terminal() -> None:
    running = [
        Running("clip" * 20, 2.0, "frames", 10, 40),
        Running("[b]x[/b]", 2.0, "frames", 5, 4),  # a header that states too few frames
        *(Running(f"v{number}", 0.0) for number in range(30)),
    ]
    file = io.StringIO()
    Console(file=file, width=80).print(draw(statuses(failed=9, running=32), running))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 24
    assert "10/40" in lines[2]
    assert "5.0" in lines[2]
    assert "[b]x[/b]" in lines[3]
    assert "5/?" in lines[3]
    assert "and 16 more" in file.getvalue()
