"""Stops as a program sees them: each case is a small program of its own, which is sent signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PREFIX = """
import sys, time
from pathlib import Path
from rvos_deploy import files, stopping
stopping.install()
def ready(): print("ready", flush=True)
"""

Run = Callable[..., "Ended"]


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def stop(tmp_path: Path) -> Iterator[Run]:
    """Run ``code`` in a folder; once it says that it is ready, send the signals, a pause between.

    The folder must be empty afterwards, but for what ``keeps`` names.
    """

    def run(
        code: str, *signals: int, pause: float = 0.3, keeps: tuple[str, ...] = (), ignore: int = 0
    ) -> Ended:
        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if ignore:
                signal.signal(ignore, signal.SIG_IGN)

        with subprocess.Popen(
            [sys.executable, "-c", PREFIX + code],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        ) as child:
            assert child.stdout
            assert child.stderr
            assert child.stdout.readline() == "ready\n", child.stderr.read()
            for number in signals:
                child.send_signal(number)
                time.sleep(pause)
            try:
                code_ = child.wait(30)
            finally:
                child.kill()
            ended = Ended(code_, child.stdout.read(), child.stderr.read())
        assert {path.name for path in tmp_path.iterdir()} == set(keeps)
        return ended

    return run


STOPS = [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "terminated"),
    (signal.SIGHUP, 129, "hung up"),
]


@pytest.mark.parametrize(("number", "code", "word"), STOPS)
def test_a_stop_unwinds_and_is_one_line(stop: Run, number: int, code: int, word: str) -> None:
    ended = stop(
        """
with files.replacing(Path("a")) as temporary:
    try:
        ready()
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
""",
        number,
    )
    assert ended == Ended(code, "cleaned up\n", f"error: {word}\n")


@pytest.mark.parametrize(("number", "code", "word"), STOPS)
def test_what_the_parent_ignores_stays_ignored(
    stop: Run, number: int, code: int, word: str
) -> None:
    """As under nohup, and in a background job of a shell."""
    ended = stop("ready()\ntime.sleep(1.5)", number, ignore=number)
    assert ended == Ended(0, "", "")


# time.sleep would be interrupted: this stays in C, as FFmpeg does, without the GIL.
STUCK = "import ctypes; ctypes.CDLL(None).sleep(60)"


def test_a_main_thread_that_is_stuck_in_c_is_not_waited_for(stop: Run) -> None:
    ended = stop(
        f"""
import threading
with files.replacing(Path("a")):
    folder = files.create_temporary_folder(Path("b"))
    (folder / "x").write_text("x")
    ready()
    # A signal ends a sleep in C where it arrives in that thread: block it there.
    import signal; signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
    {STUCK}
""",
        signal.SIGTERM,
    )
    assert ended == Ended(143, "", "error: terminated\n")


def test_a_deferred_stop_waits_for_the_end_of_the_block(stop: Run) -> None:
    ended = stop(
        """
with stopping.deferred():
    ready()
    end = time.monotonic() + 1.5
    while time.monotonic() < end: time.sleep(0.01)
    Path("a").write_text("whole")
    stopping.set_hint("a is whole")
print("never")
""",
        signal.SIGTERM,
        keeps=("a",),
    )
    assert ended == Ended(143, "", "error: terminated; a is whole\n")


def test_a_deferred_stop_is_raised_where_it_may_be(stop: Run) -> None:
    ended = stop(
        """
from queue import SimpleQueue
with stopping.deferred():
    ready()
    try:
        with stopping.interruptible():
            SimpleQueue().get()
    except stopping.Stopped as error:
        print(stopping.reason_of(error), flush=True)
    stopping.check()
    print("only once")
""",
        signal.SIGINT,
    )
    assert ended.stdout == "interrupted\nonly once\n"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_deferral_without_leftovers(stop: Run, second: int) -> None:
    ended = stop(
        """
import threading
def write():
    while True:
        with files.replacing(Path(str(time.monotonic_ns()))) as temporary:
            temporary.write_text("x")
            temporary.unlink()  # never put in place
threading.excepthook = lambda *_: None
def again():
    while True:
        try: write()
        except FileNotFoundError: pass
threads = [threading.Thread(target=again, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
with stopping.deferred(), files.replacing(Path("a")):
    ready()
    while True: time.sleep(0.01)
""",
        signal.SIGINT,
        second,
    )
    assert ended.code == 128 + second
    assert ended.stderr == f"error: { {n: w for n, _, w in STOPS}[second] }\n"


def test_two_signals_at_once_are_one_stop(stop: Run) -> None:
    """`timeout` sends its signal to the process and to its group."""
    ended = stop(
        """
with stopping.deferred():
    ready()
    end = time.monotonic() + 1
    while time.monotonic() < end: time.sleep(0.01)
    print("finished", flush=True)
""",
        signal.SIGTERM,
        signal.SIGHUP,
        pause=0.0,
    )
    assert ended.code in (143, 129)
    assert ended.stdout == "finished\n"


def test_a_stop_that_a_destructor_swallows_still_stops(stop: Run) -> None:
    ended = stop(
        """
class Slow:
    def __del__(self):
        ready()
        time.sleep(60)
with files.replacing(Path("a")):
    slow = Slow()
    del slow
    time.sleep(60)
""",
        signal.SIGINT,
    )
    assert ended == Ended(130, "", "error: interrupted\n")


def test_a_stop_that_a_library_swallows_still_stops(stop: Run) -> None:
    ended = stop(
        """
with files.replacing(Path("a")):
    ready()
    while True:
        try: time.sleep(60)
        except BaseException: pass
""",
        signal.SIGINT,
    )
    assert ended == Ended(130, "", "error: interrupted\n")


def test_a_stop_during_an_import_ends_at_once(stop: Run, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import __main__, time; __main__.ready(); time.sleep(60)")
    ended = stop(
        """
sys.path.insert(0, ".")
sys.dont_write_bytecode = True
with files.replacing(Path("a")):
    try: import slow
    except BaseException: print("swallowed", flush=True)
""",
        signal.SIGINT,
        keeps=("slow.py",),
    )
    assert ended == Ended(130, "", "error: interrupted\n")


def test_a_forked_child_leaves_stops_to_its_parent(stop: Run) -> None:
    ended = stop(
        """
import os, signal, warnings
warnings.simplefilter("ignore")  # Python 3.12 and newer warn of forks beside threads
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(0)
time.sleep(0.2)
os.kill(child, signal.SIGINT)  # ignored there, and not seen here
time.sleep(0.5)
os.kill(child, signal.SIGTERM)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
try:
    ready()
    time.sleep(60)
finally:
    print(code, flush=True)
""",
        signal.SIGHUP,
    )
    assert ended == Ended(129, "-15\n", "error: hung up\n")


def test_without_install_ctrl_c_is_pythons_own(tmp_path: Path) -> None:
    code = """
import os, signal
from rvos_deploy import stopping
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with stopping.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        print("not here")
except KeyboardInterrupt as error:
    print(stopping.reason_of(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted\n"


def test_worker_processes_end_with_their_parent(tmp_path: Path) -> None:
    """Killed outright, so that it can do nothing about them."""
    script = tmp_path / "parent.py"
    script.write_text(
        """
import os, time
from rvos_deploy.processes import WorkerPool
if __name__ == "__main__":
    with WorkerPool(2) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(8)}, flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert workers
        parent.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        if all(_is_zombie(worker) for worker in workers):
            break
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_workers_leave_a_stop_of_the_whole_group_to_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        """
import os, time
from rvos_deploy import stopping
from rvos_deploy.processes import WorkerPool
if __name__ == "__main__":
    stopping.install()
    with WorkerPool(2) as pool:
        pool.submit(os.getpid).result()
        print("ready", flush=True)
        results = pool.map(time.sleep, [0.01] * 10_000)
        for _ in results: pass
"""
    )
    for number, code, word in STOPS:
        with subprocess.Popen(
            [sys.executable, script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as parent:
            assert parent.stdout
            assert parent.stderr
            parent.stdout.readline()
            time.sleep(0.3)
            os.killpg(parent.pid, number)
            assert parent.wait(30) == code
            assert parent.stderr.read() == f"error: {word}\n"
