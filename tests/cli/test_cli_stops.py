"""Stops of the command line: at its start, while a source opens or is silent, by every signal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

SMALL = ("--size", "64x96", "--fallback", "top1")
PATIENCE = 240
STOPS = [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "terminated"),
    (signal.SIGHUP, 129, "hung up"),
]


def wait_until(condition: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answers(child: subprocess.Popen[str]) -> bool:
    """Whether its handlers are there: before, there is only the interpreter's own start."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


def end(child: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=PATIENCE)
    return child.returncode, stdout, stderr


@pytest.fixture
def opened(stalled: Callable, fifo: Path) -> Callable[[str], tuple[str, Callable[[], bool]]]:
    """A source of a kind, and whether somebody opens it now."""

    def open_(kind: str) -> tuple[str, Callable[[], bool]]:
        if kind == "fifo":
            return str(fifo), lambda: True
        if kind == "silent pipe":
            return "-", lambda: True
        server = stalled(b"" if kind == "silent server" else b"HTTP/1.1 200 OK\r\n\r\n")
        return f"http:{server.host}/a.mp4", server.asked.is_set

    return open_


@pytest.mark.parametrize("kind", ["fifo", "silent pipe", "silent server", "header and silence"])
@pytest.mark.parametrize(("number", "code", "word"), STOPS[:2])
def test_a_stop_while_a_source_opens(
    start: Callable,
    opened: Callable,
    tiny_bundle: Path,
    tmp_path: Path,
    kind: str,
    number: int,
    code: int,
    word: str,
) -> None:
    source, asked = opened(kind)
    out = tmp_path / "out"
    child = start("run", source, "a", "-b", tiny_bundle, "-o", out, *SMALL, stdin=subprocess.PIPE)
    wait_until(lambda: answers(child), child)
    wait_until(asked, child)
    time.sleep(0 if "server" in kind or "header" in kind else 3)  # the start may take as long
    assert end(child, number) == (code, "", f"error: {word}\n")
    assert not out.exists()


@pytest.mark.parametrize(("number", "code", "word"), STOPS)
def test_a_stop_while_a_pipe_is_silent_in_the_middle(
    start: Callable,
    output: Callable,
    make_video: Callable,
    fifo: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    number: int,
    code: int,
    word: str,
) -> None:
    content = make_video(tmp_path / "a.mkv", frames=200).read_bytes()
    out = output(tmp_path / "out")
    child = start("run", fifo, "a", "-b", tiny_bundle, "-o", out.folder, *SMALL)
    done = threading.Event()

    def feed() -> None:
        with suppress(BrokenPipeError), fifo.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            done.wait(PATIENCE)

    threading.Thread(target=feed, daemon=True).start()
    wait_until((out.folder / "masks" / "0" / "00003.png").exists, child)
    time.sleep(2)  # until what was sent is used up; sooner, the stop meets a frame
    returned, stdout, stderr = end(child, number)
    done.set()
    frames = len(out.result["frames"])
    assert returned == code
    assert stderr == f"warning: {word}; {frames} frames are complete in {out.folder}\n"
    assert stdout.startswith(f"{frames} frames, 1 expression, online: ")
    assert out.result["stopped"] == word
    out.check(frames=frames, expressions=1, size=(48, 80))


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize(("number", "code", "word"), STOPS[:2])
def test_a_stop_while_the_program_starts(
    start: Callable, fifo: Path, tmp_path: Path, delay: float, number: int, code: int, word: str
) -> None:
    out = tmp_path / "out"
    child = start("run", fifo, "a", "-o", out, *SMALL)
    wait_until(lambda: answers(child), child)
    time.sleep(delay)
    returned, stdout, stderr = end(child, number)
    assert (returned, stdout) == (code, "")
    assert stderr.removeprefix(NOTE) == f"error: {word}\n"
    assert not out.exists()


NOTE = (
    "note: the packaged bundle knows only the world of Moving Sprites; for other videos, pass your "
    "own --bundle\n"
)


def test_an_ignored_ctrl_c_stays_ignored(video: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """nohup and background jobs ignore signals; the run goes on to its end."""
    child = subprocess.Popen(
        [
            *(sys.executable, "-c", "from rvos_deploy.cli.app import main; main()", "run", video),
            *("a", "-b", tiny_bundle, "-o", tmp_path / "out", *SMALL),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: (
            signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.signal(signal.SIGHUP, signal.SIG_IGN),
        ),
    )
    wait_until(lambda: answers(child), child)
    child.send_signal(signal.SIGHUP)
    returned, stdout, stderr = end(child, signal.SIGINT)
    assert (returned, stderr) == (0, "")
    assert stdout.startswith("6 frames")


def test_a_closed_terminal_leaves_whole_files(
    output: Callable, make_video: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    """SIGHUP comes to the group, and nothing can be written to the terminal any more."""
    long = make_video(tmp_path / "long.mp4", frames=600)
    out = output(tmp_path / "out")
    try:
        main, side = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminal can be made here ({error})")
    child = subprocess.Popen(
        [
            *(sys.executable, "-c", "from rvos_deploy.cli.app import main; main()", "run", long),
            *("a", "-b", tiny_bundle, "-o", out.folder, *SMALL, "--mode", "online"),
        ],
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(side)

    def shown() -> bool:
        while select.select([main], [], [], 0)[0]:
            os.read(main, 4096)  # a terminal that nobody reads would block the program
        return (out.folder / "masks" / "0" / "00003.png").exists()

    wait_until(shown, child)
    os.close(main)
    assert child.wait(PATIENCE) == 129
    assert out.result["stopped"] == "hung up"
    frames = len(out.result["frames"])
    assert 4 <= frames < 600
    out.check(frames=frames, expressions=1, size=(48, 80))


def test_a_demo_that_is_stopped_says_what_there_is(
    start: Callable, output: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    child = start("demo", "-o", out)
    wait_until(lambda: any(out.glob(".result.json.*.part")), child)
    returned, stdout, stderr = end(child, signal.SIGTERM)
    assert (returned, stdout) == (143, "")
    assert stderr == f"error: terminated; 0 frames are complete in {out}\n"
    assert {path.name for path in out.iterdir()} == {"result.json"}


@pytest.mark.slow
def test_a_training_that_is_stopped_says_how_to_go_on(
    start: Callable, process: Callable, small_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ("train", small_recipe, "-o", out, "--no-preflight")
    child = start(*options)
    wait_until((out / "checkpoints" / "latest").exists, child)
    returned, _, stderr = end(child, signal.SIGTERM)
    assert returned == 143
    steps = sorted((out / "checkpoints").glob("step-*"))
    assert stderr == (
        f"error: terminated; {steps[-1]} is the last whole checkpoint, --resume goes on from it\n"
    )
    assert not list(out.rglob(".*"))
    done = int(steps[-1].name.removeprefix("step-"))
    result = process(*options, "--resume", "--steps", done + 1)
    assert result.code == 0
    assert f"step {done + 1} of" in result.stdout
