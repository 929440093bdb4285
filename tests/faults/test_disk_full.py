"""A disk that fills up, at every write: one line, no hidden file, nothing lost.

Three ways to fill it: a library that is preloaded and fails the n-th operation below a folder,
inside FFmpeg and Pillow too (failing_writes.c); a limit on the size of a file; a small file system.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.datasets import read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis

SMALL = ("--size", "64x96", "--fallback", "top1", "--threads", "1")
HERE = Path(__file__).parent
SAMPLE = 6
"""Operations that fail in the quick sample of a command."""


@dataclass
class Server:
    """Runs commands in forks, with the disk full from operation ``fail_at`` on."""

    process: subprocess.Popen[str]
    output: Path

    def __call__(
        self,
        *argv: object,
        under: Path,
        fail_at: int = 0,
        sticky: bool = True,
        file_limit: int | None = None,
    ) -> tuple[int, str, int]:
        """Exit code, what stderr says, operations counted."""
        request = {
            "argv": [str(a) for a in argv],
            "under": str(under),
            "fail_at": fail_at,
            "sticky": sticky,
            "file_limit": file_limit,
            "output": str(self.output),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], (self.output / "stderr").read_text(), answer["count"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and a system that preloads libraries")
    folder = tmp_path_factory.mktemp("server")
    library = folder / "failing_writes.so"
    build = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_writes.c", "-ldl"]
    subprocess.run(build, check=True)
    process = subprocess.Popen(
        [sys.executable, str(HERE / "forking_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    yield Server(process, folder)
    process.communicate(timeout=60)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def check_line(code: int, stderr: str) -> None:
    assert code == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith("error: "), line


def check_hidden(folder: Path) -> None:
    assert not [p for p in folder.rglob("*") if p.name.startswith(".") or ".part" in p.name]


def check_run(out: Any, before: dict[str, bytes], code: int, stderr: str) -> None:
    """Earlier results as they were, or this run's frames complete and reported."""
    check_hidden(out.folder)
    if code == 0:
        out.check(frames=3, expressions=2, size=(48, 80))
        return
    check_line(code, stderr)
    if snapshot(out.folder) == before:
        return
    assert "frames are complete in" in stderr
    (count,) = [int(w) for w in stderr.split("frames are complete")[0].split()[-1:]]
    assert count >= 1
    for path in out.folder.glob("masks/*/*.png"):
        with Image.open(path) as image:
            assert image.size == (80, 48)
            image.load()
    names = {f"masks/{e}/{t:05d}.png" for e in range(2) for t in range(count)}
    assert names | {"result.json", "overlay.mp4"} >= out.files() >= names
    if (out.folder / "result.json").exists():
        assert [frame["index"] for frame in out.result["frames"]] == list(range(count))
        assert out.result["stopped"].startswith("error: ")
    else:
        assert f"the masks of {count} frames are complete" in stderr
    if (out.folder / "overlay.mp4").exists():
        # One more where the masks of a frame could not be given their names.
        assert count <= len(out.overlay.times) <= count + 1


@pytest.fixture
def run_once(
    server: Server,
    output: Callable,
    make_video: Callable,
    tiny_bundle: Path,
    tmp_path: Path,
    attempt: Callable,
) -> Callable[..., int]:
    """Run over an earlier run's results while the disk is full from some operation on."""
    video = make_video(tmp_path / "clip.mp4", frames=3)
    earlier = tmp_path / "earlier"
    command = ("run", video, "the ball", "-b", tiny_bundle, "-o", earlier, *SMALL)
    assert server(*command, under=earlier)[0] == 0
    before = snapshot(earlier)

    def once(mode: str, under: Path | None = None, **how: Any) -> int:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(earlier, out)
        texts = ("the dog", "the cat that runs")
        command = ("run", video, *texts, "-b", tiny_bundle, "-o", out, *SMALL, "--mode", mode)
        with attempt("disk full: run"):
            code, stderr, count = server(*command, under=under or out, **how)
            check_run(output(out), before, code, stderr)
        return code if how.get("file_limit") else count

    return once


def test_run_at_a_few_operations(run_once: Callable[..., int]) -> None:
    count = run_once("online")
    assert count > 20
    for fail_at in random.Random(0).sample(range(1, count), SAMPLE):
        run_once("online", fail_at=fail_at)


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [True, False], ids=["stays full", "fails once"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_run_at_every_operation(run_once: Callable[..., int], mode: str, sticky: bool) -> None:
    for fail_at in range(1, run_once(mode) + 1):
        run_once(mode, fail_at=fail_at, sticky=sticky)


@pytest.mark.parametrize("limit", [400, 2000])
def test_run_with_a_limit_on_files(run_once: Callable[..., int], limit: int) -> None:
    assert run_once("online", file_limit=limit) == 2


@pytest.mark.slow
def test_run_with_every_limit_on_files(run_once: Callable[..., int]) -> None:
    """The overlay of three frames has some 3,000 bytes, its index another 1,000."""
    codes = [run_once("online", file_limit=limit) for limit in range(300, 6000, 100)]
    assert {0, 2} == set(codes)


EVERYTHING = "masks,palette,overlay,json,rle,coco,ytvis,alpha,cutouts"


def check_everything(out: Path, before: dict[str, bytes], code: int, stderr: str) -> None:
    """Each output that is there is whole, and tells of as many frames as the line says."""
    check_hidden(out)
    if code == 0:
        assert len(snapshot(out)) == 2 * 3 + 3 + 5 + 2 + 2 * 3
        return
    check_line(code, stderr)
    if snapshot(out) == before:
        return
    (count,) = re.findall(r"(\d+) frames are complete in", stderr)
    stems = {f"{t:05d}" for t in range(int(count))}
    for folder in ("masks/0", "masks/1", "palette", "cutouts/0"):
        assert {path.stem for path in (out / folder).glob("*")} == stems
    frames = {
        "frames.ndjson": lambda text: [json.loads(line) for line in text.splitlines()],
        "result.json": lambda text: json.loads(text)["frames"],
        "coco.json": lambda text: json.loads(text)["images"],
        "ytvis.json": lambda text: json.loads(text)["videos"][0]["file_names"],
    }
    for name, read in frames.items():
        if (out / name).exists():
            assert len(read((out / name).read_text())) == int(count), name


@pytest.fixture
def run_everything(
    server: Server, make_video: Callable, tiny_bundle: Path, tmp_path: Path, attempt: Callable
) -> Callable[..., int]:
    """Run with every output over an earlier run's, while the disk is full from an operation on."""
    video, earlier, out = (
        make_video(tmp_path / "clip.mp4", frames=3),
        tmp_path / "a",
        tmp_path / "b",
    )
    common = ("-b", tiny_bundle, *SMALL, "--mode", "online", "--save", EVERYTHING)
    assert server("run", video, "the ball", "-o", earlier, *common, under=earlier)[0] == 0
    before = snapshot(earlier)

    def once(**how: Any) -> int:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(earlier, out)
        with attempt("disk full: run --save everything"):
            code, stderr, count = server(
                "run", video, "the dog", "the cat", "-o", out, *common, under=out, **how
            )
            check_everything(out, before, code, stderr)
        return count

    return once


def test_every_output_at_a_few_operations(run_everything: Callable[..., int]) -> None:
    count = run_everything()
    assert count > 60
    for fail_at in random.Random(3).sample(range(1, count), SAMPLE // 2):
        run_everything(fail_at=fail_at)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("sticky", [True, False], ids=["stays full", "fails once"])
def test_every_output_at_every_operation(
    run_everything: Callable[..., int], sticky: bool, part: int
) -> None:
    for fail_at in range(1 + part, run_everything() + 1, 4):
        run_everything(fail_at=fail_at, sticky=sticky)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A split of one video, and its truth as predictions."""
    root = tmp_path_factory.mktemp("sprites")
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    write_mevis(root / "valid", SplitSpec(seed=2, split="valid", videos=1, config=config))
    truth = root / "truth"
    for video in read_mevis(root / "valid").videos:
        for expression in video.expressions:
            folder = truth / video.name / expression.id
            folder.mkdir(parents=True)
            for path, mask in zip(video.frames, video.union_masks(expression), strict=True):
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{path.stem}.png")
    return root / "valid", truth


@pytest.fixture
def commands(data: tuple[Path, Path], tiny_bundle: Path) -> dict[str, tuple[object, ...]]:
    """Commands that write files, by name; OUT stands for the folder that they write into."""
    valid, truth = data
    sprites = ("make-data", "sprites", "--split", "valid", "--size", "64x96", "--frames", 8)
    return {
        "evaluate": (
            *("evaluate", truth, "--data", valid, "--jobs", 1, "--json", "OUT/e.json"),
            *("--csv", "OUT/e.csv", "--submission", "OUT/s.zip"),
        ),
        "inspect": ("inspect", tiny_bundle, "--json", "OUT/i.json"),
        "make-data sprites": (
            *(*sprites, "--no-emoji", "--videos", 1, "--jobs", 1, "--out", "OUT", "--overwrite"),
        ),
        "make-data sample": ("make-data", "sample", "--out", "OUT/sample.mp4"),
        "demo": ("demo", "-b", tiny_bundle, "--threads", 2, "--out", "OUT"),
    }


def try_command(
    server: Server, command: tuple[object, ...], out: Path, before: dict[str, bytes], **how: Any
) -> int:
    """Each file is as before or as the command writes it; a failure is one line."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name, content in before.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    argv = [str(part).replace("OUT", str(out)) for part in command]
    code, stderr, count = server(*argv, under=out, **how)
    check_hidden(out)
    if code != 0:
        check_line(code, stderr)
        found = snapshot(out)
        if command[0] != "demo":
            assert set(found) == set(before)
            assert all(_whole(Path(name), content) for name, content in found.items())
    return count


def _whole(name: Path, content: bytes) -> bool:
    """Whether a file ends as its kind does."""
    ends = {".json": b"}\n", ".csv": b"\n", ".jpg": b"\xff\xd9"}
    return content.endswith(ends.get(name.suffix, b"")) and len(content) > 0


def everything(
    server: Server, attempt: Callable, commands: dict[str, Any], name: str, out: Path
) -> Iterator[Callable[..., int]]:
    """Give a way to run one command with a failure, over what it wrote before."""
    command = commands[name]
    try_command(server, command, out, {})
    before = snapshot(out)
    assert before

    def once(**how: Any) -> int:
        with attempt(f"disk full: {name}"):
            return try_command(server, command, out, before, **how)

    yield once


@pytest.mark.parametrize("name", ["evaluate", "inspect"])
def test_commands_at_a_few_operations(
    server: Server, attempt: Callable, commands: dict[str, Any], tmp_path: Path, name: str
) -> None:
    (once,) = everything(server, attempt, commands, name, tmp_path / "out")
    count = once()
    for fail_at in random.Random(1).sample(range(1, count + 1), min(SAMPLE, count)):
        once(fail_at=fail_at)


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [True, False], ids=["stays full", "fails once"])
@pytest.mark.parametrize("name", ["evaluate", "inspect", "make-data sprites", "make-data sample"])
def test_commands_at_every_operation(
    server: Server,
    attempt: Callable,
    commands: dict[str, Any],
    tmp_path: Path,
    name: str,
    sticky: bool,
) -> None:
    (once,) = everything(server, attempt, commands, name, tmp_path / "out")
    count = once()
    tried = range(1, count + 1)
    if count > 80:
        tried = sorted(random.Random(2).sample(tried, 80))
    for fail_at in tried:
        once(fail_at=fail_at, sticky=sticky)


@pytest.mark.slow
def test_the_demo_at_some_operations(
    server: Server, attempt: Callable, commands: dict[str, Any], tmp_path: Path
) -> None:
    (once,) = everything(server, attempt, commands, "demo", tmp_path / "out")
    count = once()
    for fail_at in sorted(random.Random(3).sample(range(1, count + 1), 5)):
        once(fail_at=fail_at)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("free", [0, 8192, 32768, 65536])
def test_a_small_file_system(
    process: Callable,
    output: Callable,
    make_video: Callable,
    tiny_bundle: Path,
    small_disk: Path,
    tmp_path: Path,
    attempt: Callable,
    free: int,
) -> None:
    """The disk fills up while a run replaces an earlier one."""
    video = make_video(tmp_path / "clip.mp4", frames=20)
    out = output(small_disk / "out")
    common = ("-b", tiny_bundle, "-o", out.folder, *SMALL, "--mode", "online")
    assert process("run", video, "the ball", *common, "--max-frames", 2).code == 0
    before = snapshot(out.folder)
    status = os.statvfs(small_disk)
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(status.f_bavail * status.f_frsize - free))
    with attempt("disk full: a small file system"):
        result = process("run", video, "the dog", *common)
        check_hidden(small_disk)
        check_line(result.code, result.stderr)
        if free == 0:
            assert snapshot(out.folder) == before
        if snapshot(out.folder) != before:
            frames = int(result.stderr.split(" frames")[0].split()[-1])
            assert f"{frames} frames are complete in" in result.stderr
            assert len(list(out.folder.glob("masks/0/*.png"))) == frames


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"

CHECKPOINTS = """
import signal, sys, torch
from pathlib import Path
from rvos_deploy.errors import InputError
from rvos_deploy.training.checkpoints import TrainingState, save_checkpoint
network = torch.nn.Linear(400, 400)
optimizer = torch.optim.AdamW(network.parameters())
for step in (1, 2):
    try:
        save_checkpoint(
            Path(sys.argv[1]), TrainingState(step, 0, step, {}, ""), network, optimizer
        )
    except InputError as error:
        print(error)
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""


def test_a_checkpoint_with_a_limit_on_files(tmp_path: Path, attempt: Callable) -> None:
    pytest.importorskip("torch")
    with attempt("disk full: checkpoint"):
        command = [sys.executable, "-c", CHECKPOINTS, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (line,) = done.stdout.splitlines()
        assert "step-00000002 cannot be written: " in line
        root = tmp_path / "checkpoints"
        assert {path.name for path in root.iterdir()} == {"latest", "step-00000001"}
        assert (root / "latest").read_text() == "step-00000001\n"


@pytest.mark.slow
@pytest.mark.parametrize("limit", [50_000, 1_000_000, 4_000_000])
def test_an_export_with_a_limit_on_files(tmp_path: Path, attempt: Callable, limit: int) -> None:
    pytest.importorskip("torch")
    code = LIMITED.format(limit) + "from rvos_deploy.cli.app import main; main()"
    out = tmp_path / "deep" / "bundle"
    with attempt("disk full: export"):
        command = [sys.executable, "-c", code, "export", "tiny", "--random-weights", "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: {out} cannot be written: File too large; free some")
        assert list(tmp_path.iterdir()) == []


SPILL = """
import shutil, sys
import numpy as np
from rvos_deploy.errors import InputError
from rvos_deploy.spill_store import SpillStore
usage = shutil.disk_usage("/")._replace(free=2**40)  # another process takes the rest meanwhile
shutil.disk_usage = lambda folder: usage
with SpillStore(0) as store:
    kept = store.put(np.ones(1000))
    try:
        store.put(np.ones(100_000))
    except InputError as error:
        print(error)
    assert store.pop(kept).sum() == 1000
"""


def test_frames_that_wait_on_a_disk_that_fills_up(small_disk: Path, attempt: Callable) -> None:
    """A page of a mapped file that the disk has no room for would end the process by a signal."""
    with attempt("disk full: frames that wait"):
        done = subprocess.run(
            [sys.executable, "-c", SPILL],
            env={**os.environ, "TMPDIR": str(small_disk)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "No space left on device; set TMPDIR to a larger disk" in done.stdout
        assert list(small_disk.iterdir()) == []
