"""Signals at random moments: what lies under its name is whole, and a stop leaves nothing else.

A quick sample runs by default, the rest with ``-m slow``. ``RVOS_FAULT_SEED`` draws other moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(3600),
]

SEED = int(os.environ.get("RVOS_FAULT_SEED", "11"))
FRAMES, SIZE, EXPRESSIONS = 40, (48, 80), ("a", "b")
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
PATIENCE = 600


@dataclass(frozen=True)
class Moment:
    """Seconds after the process began to answer signals, or after a file of the run appeared."""

    seconds: float
    frame: int | None = None


def moments(count: int, duration: float, mode: str, *seed: object) -> list[Moment]:
    """Half of them anywhere in a run, half at one of its frames."""
    rng = random.Random(repr((SEED, mode, *seed)))
    # Offline, all frames are written within a moment at the end.
    after = 0.2 if mode == "online" else 0.003
    return [
        Moment(rng.uniform(0, duration))
        if number % 2 == 0
        else Moment(rng.uniform(0, after), rng.randrange(FRAMES))
        for number in range(count)
    ]


def until_it_answers(child: subprocess.Popen[str]) -> None:
    """Wait for its handlers: before, a signal meets nothing but the interpreter's own start."""
    deadline = time.monotonic() + PATIENCE
    while child.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            status = Path(f"/proc/{child.pid}/status").read_text()
            caught = int(status.split("SigCgt:")[1].split()[0], 16)
            # By Python's numbers of the three; SIGTERM's is set by us alone.
            if caught >> (signal.SIGTERM - 1) & 1 and caught >> (signal.SIGHUP - 1) & 1:
                return
        time.sleep(0.002)


def until(moment: Moment, out: Path, child: subprocess.Popen[str]) -> None:
    until_it_answers(child)
    if moment.frame is not None:
        file = out / "masks" / "0" / f"{moment.frame:05d}.png"
        while child.poll() is None and not file.exists():
            time.sleep(0.001)
    end = time.monotonic() + moment.seconds
    while child.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


@dataclass(frozen=True)
class Killed:
    code: int
    lines: list[str]


@pytest.fixture(scope="module")
def clip(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("kills") / "clip.mp4", frames=FRAMES, size=SIZE)


@pytest.fixture
def kill(
    start: Callable[..., subprocess.Popen[str]], clip: Path, tiny_bundle: Path
) -> Callable[..., Killed]:
    """Run into a folder and send signals: the first at its moment, each other after a pause."""

    def kill(
        out: Path, mode: str, moment: Moment, *signals: signal.Signals, pause: float = 0.0
    ) -> Killed:
        options = ("--size", "64x96", "--fallback", "top1", "--mode", mode, "--threads", 1)
        child = start("run", clip, *EXPRESSIONS, "-b", tiny_bundle, "-o", out, *options)
        try:
            until(moment, out, child)
            for number in signals:
                if child.poll() is None:
                    child.send_signal(number)
                time.sleep(pause)
            _, stderr = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
        return Killed(child.returncode, stderr.splitlines())

    return kill


@pytest.fixture(scope="module")
def duration(
    start: Callable[..., subprocess.Popen[str]],
    clip: Path,
    tiny_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> float:
    """Seconds of an undisturbed run, from when it answers signals."""
    out = tmp_path_factory.mktemp("whole") / "out"
    options = ("--size", "64x96", "--threads", 1)
    child = start("run", clip, *EXPRESSIONS, "-b", tiny_bundle, "-o", out, *options)
    until_it_answers(child)
    started = time.monotonic()
    child.communicate(timeout=PATIENCE)
    return time.monotonic() - started


def hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob(".*")}


def check_named(out: Any) -> None:
    """Every file under its name is whole, and those that tell of others agree with them."""
    named = {name for name in out.files() if not Path(name).name.startswith(".")}
    masks = {name for name in named if name.startswith("masks/")}
    assert named - masks <= {"overlay.mp4", "result.json"}
    for name in masks:
        _, expression, file = Path(name).parts
        assert out.mask(int(expression), int(Path(file).stem)).shape == SIZE
    if "overlay.mp4" in named:
        times = out.overlay.times
        assert times == pytest.approx([index / 10 for index in range(len(times))])
        complete = {f"masks/{e}/{t:05d}.png" for e in (0, 1) for t in range(len(times))}
        assert masks == complete
    if "result.json" in named:
        frames = [frame["index"] for frame in out.result["frames"]]
        assert frames == list(range(len(frames)))
        assert ("overlay.mp4" in named) == bool(frames)
        assert masks == {f"masks/{e}/{t:05d}.png" for e in (0, 1) for t in frames}


def check_stop(out: Any, killed: Killed, number: signal.Signals) -> None:
    """A run that could answer: the right code, one line, whole files, and none but those."""
    assert not hidden(out.folder.parent)
    if killed.code == 0:  # it was over already
        assert not killed.lines
        out.check(FRAMES, len(EXPRESSIONS), SIZE)
        return
    assert killed.code == 128 + number
    (line,) = killed.lines
    word = WORDS[number]
    if not (out.folder / "result.json").exists():
        assert line == f"error: {word}"
        assert not out.files()
        return
    result = out.result
    frames = len(result["frames"])
    if result["stopped"] is None:
        assert line == f"error: {word}; all {FRAMES} frames are complete in {out.folder}"
        assert frames == FRAMES
    else:
        assert result["stopped"] == word
        assert line == f"warning: {word}; {frames} frames are complete in {out.folder}"
    if frames:
        out.check(frames, len(EXPRESSIONS), SIZE)
    else:
        assert out.files() == {"result.json"}


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
MODES = ["online", "offline"]


def _try(
    number: signal.Signals,
    mode: str,
    count: int,
    kill: Callable[..., Killed],
    duration: float,
    output: Callable[[Path], Any],
    attempt: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    codes = []
    for turn, moment in enumerate(moments(count, duration, mode, number)):
        out = output(tmp_path / str(turn) / "out")
        out.folder.parent.mkdir()
        with attempt(f"kills: {number.name} {mode}"):
            killed = kill(out.folder, mode, moment, number)
            codes.append(killed.code)
            check_named(out)
            if number == signal.SIGKILL:
                assert killed.code in (0, -signal.SIGKILL)
            else:
                check_stop(out, killed, number)
    # Moments are drawn from the length of a run that may have been slower: most must have met one.
    assert codes.count(0) <= max(1, count // 3), codes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_a_random_moment(
    number: signal.Signals,
    mode: str,
    kill: Callable[..., Killed],
    duration: float,
    output: Callable[[Path], Any],
    attempt: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    _try(number, mode, 1, kill, duration, output, attempt, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_a_signal_at_thirty_random_moments(
    number: signal.Signals,
    mode: str,
    kill: Callable[..., Killed],
    duration: float,
    output: Callable[[Path], Any],
    attempt: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    _try(number, mode, 30, kill, duration, output, attempt, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_second_signal_at_a_random_moment(
    mode: str,
    kill: Callable[..., Killed],
    duration: float,
    output: Callable[[Path], Any],
    attempt: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    """The first is answered before the second comes, or the second ends it at once."""
    rng = random.Random(repr((SEED, "second", mode)))
    for turn, moment in enumerate(moments(15, duration, mode, "second")):
        first, second = rng.sample([signal.SIGINT, signal.SIGTERM], 2)
        out = output(tmp_path / str(turn) / "out")
        out.folder.parent.mkdir()
        with attempt(f"kills: second signal {mode}"):
            killed = kill(out.folder, mode, moment, first, second, pause=rng.uniform(0.12, 0.3))
            assert not hidden(out.folder.parent)
            check_named(out)
            assert killed.code in (0, 128 + first, 128 + second)
            assert len(killed.lines) == (killed.code != 0)
            if killed.code:
                assert killed.lines[0].split(";")[0].split(": ")[1] in WORDS.values()


@pytest.mark.skipif(
    find_spec("rvos_deploy.runtime.run_folder") is None,
    reason="runs do not remove what killed ones left yet",
)
@pytest.mark.parametrize("mode", MODES)
def test_the_next_run_removes_what_a_killed_one_left(
    mode: str,
    kill: Callable[..., Killed],
    output: Callable[[Path], Any],
    attempt: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    out = output(tmp_path / "out")
    with attempt("kills: the run after a kill"):
        frame = 3 if mode == "online" else FRAMES // 2
        killed = kill(out.folder, mode, Moment(0.0, frame), signal.SIGKILL)
        assert killed.code == -signal.SIGKILL
        assert hidden(out.folder)
        assert kill(out.folder, mode, Moment(0.0)).code == 0
        out.check(FRAMES, len(EXPRESSIONS), SIZE)


COMMANDS: dict[str, tuple[str, ...]] = {
    "make-data": ("make-data", "sprites", "-o", "out", "--split", "train", "--videos", "40"),
    "make-data sample": ("make-data", "sample", "-o", "out.mp4"),
    "demo": ("demo", "-o", "out"),
    "evaluate": ("evaluate", "tiny", "--data", "data/valid", "--json", "out.json"),
    "export": ("export", "tiny", "--random-weights", "-o", "out"),
    "benchmark": ("benchmark", "--frames", "40", "--json", "out.json"),
    "train": ("train", "RECIPE", "-o", "out", "--steps", "9", "--no-preflight"),
    "pretrain-clip": ("pretrain-clip", "-o", "out", "--steps", "4", "--workers", "1"),
}
MODULES: dict[str, tuple[str, ...]] = {
    "metrics": ("--frames", "40"),
    "memory": ("BUNDLE",),
}


def _send(child: subprocess.Popen[str], seconds: float, number: signal.Signals) -> Killed:
    try:
        until(Moment(seconds), Path(), child)
        if child.poll() is None:
            child.send_signal(number)
        _, stderr = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
    return Killed(child.returncode, stderr.splitlines())


def _check_command(killed: Killed, number: signal.Signals, folder: Path) -> None:
    text = "\n".join(killed.lines)
    assert "Traceback" not in text
    assert "leaked" not in text
    assert killed.code in (0, 128 + number), text
    assert not hidden(folder)
    if killed.code:
        assert killed.lines[-1].split(": ")[1].split(";")[0] == WORDS[number]
        for file in folder.glob("*.json"):
            json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_at_random_moments(
    name: str,
    start: Callable[..., subprocess.Popen[str]],
    process: Callable[..., Any],
    attempt: Callable[[str], Any],
    small_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its own folder, the one for temporary files included."""
    rng = random.Random(repr((SEED, name)))
    for turn in range(6):
        folder = tmp_path / str(turn)
        folder.mkdir()
        if name == "evaluate":
            data = ("make-data", "sprites", "-o", folder / "data", "--split", "valid")
            assert process(*data, "--videos", 2, "--jobs", 1).code == 0
        (folder / "tmp").mkdir()
        monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        with attempt(f"kills: {name}"):
            options = [small_recipe if one == "RECIPE" else one for one in COMMANDS[name]]
            child = start(*options, cwd=folder)
            killed = _send(child, rng.uniform(0, 12), number)
            # ONNX Runtime's telemetry keeps its own file there.
            (folder / "tmp" / ".ses").unlink(missing_ok=True)
            _check_command(killed, number, folder)
            left = {path.name for path in (folder / "tmp").iterdir()}
            assert not {one for one in left if "rvos" in one or one.startswith("tmp")}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_at_random_moments(
    name: str, attempt: Callable[[str], Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    options = [str(tiny_bundle) if one == "BUNDLE" else one for one in MODULES[name]]
    rng = random.Random(repr((SEED, name)))
    for _ in range(6):
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        with attempt("kills: python -m rvos_deploy.benchmarks"):
            child = subprocess.Popen(
                [sys.executable, "-m", f"rvos_deploy.benchmarks.{name}", *options],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in WORDS],
            )
            _check_command(_send(child, rng.uniform(0, 4), number), number, tmp_path)
