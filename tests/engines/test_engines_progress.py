"""Test the progress of nested phases, the remaining time, and interruption. No TensorRT."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rvos_deploy.cli.build_progress import build_progress, time_left
from rvos_deploy.engines.progress import BuildProgress, make_monitor


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Told:
    """What was reported."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, float, float | None]] = []

    def __call__(self, phase: str, share: float, remaining: float | None) -> None:
        self.lines.append((phase, share, remaining))


def test_a_nested_phase_counts_within_its_parents_step() -> None:
    told, clock = Told(), Clock()
    progress = BuildProgress(told, clock)
    progress.start("build", None, 4)
    progress.step("build", 0)
    assert told.lines[-1] == ("build", 0.25, 0.0)
    progress.start("tactics", "build", 10)
    clock.now = 30.0
    progress.step("tactics", 4)
    phase, share, remaining = told.lines[-1]
    assert (phase, share) == ("tactics", pytest.approx((1 + 0.5) / 4))
    assert remaining == pytest.approx(30 * (1 - share) / share)
    progress.finish("tactics")
    progress.step("build", 1)
    assert told.lines[-1][1] == 0.5


def test_the_share_never_goes_back_nor_beyond_one() -> None:
    told = Told()
    progress = BuildProgress(told, Clock())
    progress.start("build", None, 2)
    for repeat in range(3):
        progress.start("reformats", "build", 1)
        progress.step("reformats", 0)
        progress.finish("reformats")
        progress.step("build", min(repeat, 1))
    progress.step("build", 7)
    progress.finish("build")
    progress.step("nobody knows this phase", 3)
    shares = [share for _, share, _ in told.lines]
    assert shares == sorted(shares)
    assert max(shares) == 1.0


def test_the_remaining_time_is_unknown_at_first() -> None:
    told, clock = Told(), Clock()
    progress = BuildProgress(told, clock)
    clock.now = 5.0
    progress.start("build", None, 1000)
    progress.step("build", 4)
    assert told.lines[-1][2] is None
    progress.step("build", 99)
    assert told.lines[-1][2] == pytest.approx(45.0)


class StandInTensorRT:
    """Stands in for TensorRT: only the class that a monitor derives from."""

    class IProgressMonitor:
        def __init__(self) -> None: ...


def test_ctrl_c_stops_the_build_and_crosses_no_cpp_frame() -> None:
    def interrupted(phase: str, share: float, remaining: float | None) -> None:
        raise KeyboardInterrupt

    progress = BuildProgress(interrupted)
    monitor = make_monitor(StandInTensorRT, progress)
    monitor.phase_start("build", None, 3)
    assert progress.interrupted
    assert monitor.step_complete("build", 0) is False
    monitor.phase_finish("build")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.2, ""),
        (8.4, "about 8 s left"),
        (89, "about 89 s left"),
        (150, "about 2 min left"),
    ],
)
def test_the_remaining_time_is_formatted(seconds: float | None, words: str) -> None:
    assert time_left(seconds) == words


def test_the_bar_is_drawn_on_a_terminal_only() -> None:
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120, no_color=True)
        with build_progress(console) as update:
            update("backbone", "Timing tactics", 0.4, 75.0)
        shown = out.getvalue()
        if not terminal:
            assert shown.strip() == ""
            continue
        for text in ("backbone", "40%", "about 75 s left", "Timing tactics"):
            assert text in shown
