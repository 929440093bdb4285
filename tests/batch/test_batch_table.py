"""What a person sees of a batch while it runs."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from rvos_deploy.batch.schedule import Running
from rvos_deploy.batch.status_file import VideoStatus
from rvos_deploy.batch.table import count_line, draw, failure_line, live_table


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


def test_a_failure_names_its_video_once() -> None:
    def line(error: str) -> str:
        return failure_line(
            VideoStatus(video="a.mp4", state="failed", fingerprint="", expressions=1, error=error)
        )

    assert line("the worker process ended") == "failed: a.mp4: the worker process ended"
    assert line("/x/a.mp4 is empty") == "failed: /x/a.mp4 is empty"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with live_table(lambda: statuses(done=2, running=1)) as show:
        assert show is not None
        show([Running("clip", 2.0, "frames", 10, 40)])
    assert "3 videos: 2 done, 1 running" in terminal.getvalue()
    assert "10/40" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    with live_table(lambda: statuses(done=1)) as show:
        assert show is None
    assert not pipe.getvalue()
