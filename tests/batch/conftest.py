"""What the tests of batches share: processes of a command, and comparison with single runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120
SMALL = ("--size", "64x96", "--fallback", "top1", "--backend", "onnxruntime")
TEXTS = ("the dog", "the cat that runs")
# What tells of the machine's moment, and of the command.
_MOMENT = ("timings", "memory", "command")


@dataclass
class Family:
    """A process and all that it started, as /proc shows them."""

    child: subprocess.Popen[str]
    seen: dict[int, str] = field(default_factory=dict)

    def look(self) -> dict[int, str]:
        """The command lines of the living ones by process id; those seen before count, too."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError, IndexError):
                    status = (entry / "stat").read_text().rpartition(")")[2].split()
                    if status[0] != "Z":
                        parents[int(entry.name)] = int(status[1])
        found, count = {self.child.pid, *self.seen}, 0
        while len(found) > count:
            count = len(found)
            found |= {pid for pid, parent in parents.items() if parent in found}
        found = (found - {self.child.pid}) & set(parents)
        living = {}
        for pid in found:
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                living[pid] = words.replace(b"\0", b" ").decode(errors="replace").strip()
        self.seen |= living
        return living

    def workers(self) -> list[int]:
        """Actors that hold a segmenter."""
        return [pid for pid, line in self.look().items() if line.startswith("ray::Worker")]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.look()
            assert self.child.poll() is None, self.child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self) -> tuple[int, str, str]:
        """Wait for the process; what it printed."""
        while self.child.poll() is None:
            self.look()
            time.sleep(0.05)
        return self.child.returncode, *self.child.communicate()

    def none_left(self) -> bool:
        """Whether all that were seen end by themselves."""
        deadline = time.monotonic() + PATIENCE
        while self.look():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def sockets(self) -> tuple[set[str], set[str]]:
        """The addresses that the living ones listen on, and those that they talk to."""
        owned = set()
        for pid in self.look():
            with suppress(OSError):
                for entry in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(OSError):
                        owned.add(str(entry.readlink()))
        listening, remote = set(), set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if f"socket:[{words[9]}]" in owned:
                    listens = words[3] == "0A"
                    address = words[1 if listens else 2].split(":")[0]
                    (listening if listens else remote).add(address)
        return listening, remote


@pytest.fixture
def family(start: Callable[..., subprocess.Popen[str]]) -> Any:
    """Start a command, and follow all that it starts."""
    started = []

    def launch(*arguments: object, **options: Any) -> Family:
        one = Family(start(*arguments, **options))
        started.append(one)
        return one

    yield launch
    for one in started:
        one.child.kill()
        one.child.communicate()
        assert one.none_left()


@pytest.fixture
def clips(make_video: Callable[..., Path], tmp_path: Path) -> Callable[..., list[Path]]:
    """Clips that differ: one frame more each."""

    def make(count: int, frames: int = 4) -> list[Path]:
        folder = tmp_path / "clips"
        folder.mkdir()
        return [make_video(folder / f"clip{n:02d}.mp4", frames + n) for n in range(count)]

    return make


@pytest.fixture
def damage() -> Callable[[Path], None]:
    """Cut a clip, so that its last frames cannot be decoded."""

    def cut(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        begin = raw.index(b"mdat")
        half = begin + (len(raw) - begin) // 3
        end = raw.index(b"moov") - 4 if raw.index(b"moov") > begin else len(raw)
        raw[half:end] = bytes(end - half)
        path.write_bytes(raw)

    return cut


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(TEXTS))
    return file


@pytest.fixture
def same_as_single_runs(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> Callable[..., None]:
    """Compare a batch's folders with what ``run`` writes, byte by byte."""

    def compare(out: Path, videos: list[Path], *options: object, threads: int = 1) -> None:
        for video in videos:
            single = tmp_path / "single"
            done = rvos(
                *("run", video, *TEXTS, "-b", tiny_bundle, "-o", single, *SMALL),
                *("--threads", threads, *options),
            )
            assert done.code in (0, 1), done.stderr
            assert tree(out / video.stem) == tree(single)
            shutil.rmtree(single)

    return compare


def tree(folder: Path) -> dict[str, object]:
    """The content of every file; of the result all but the moment."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    result = json.loads(found["result.json"])  # type: ignore[arg-type]
    for name in _MOMENT:
        del result[name]
    result["settings"].pop("mask_budget")  # workers share the machine's memory
    found["result.json"] = result
    return found
