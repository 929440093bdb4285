"""Two commands into one place at once: one works, the other says so in one line."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.errors import InputError
from rvos_deploy.files import discard, holding, replacing_folder

SMALL = ("--size", "64x96", "--fallback", "top1", "--threads", "1")
PATIENCE = 120
BUSY = "another process is "


def wait_until(condition: Callable[[], object], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_run_is_refused_and_the_first_one_is_whole(
    start: Callable,
    process: Callable,
    output: Callable,
    make_video: Callable,
    tiny_bundle: Path,
    tmp_path: Path,
    attempt: Callable,
) -> None:
    video = make_video(tmp_path / "long.mp4", frames=600)
    out = output(tmp_path / "out")
    common = ("-b", tiny_bundle, "-o", out.folder, *SMALL, "--mode", "online")
    first = start("run", video, "a", *common)
    wait_until((out.folder / "masks" / "0" / "00001.png").exists, first)
    for _ in range(2):
        with attempt("two at once: run"):
            second = process("run", video, "b", "c", *common)
            assert second.code == 2
            assert second.error.startswith(f"{BUSY}writing into {out.folder}; wait for it")
    first.send_signal(signal.SIGINT)
    _, stderr = first.communicate(timeout=PATIENCE)
    assert first.returncode == 130, stderr
    out.check(frames=len(out.result["frames"]), expressions=1, size=(48, 80))
    assert out.result["expressions"] == ["a"]
    assert process("run", video, "b", *common, "--max-frames", 2).code == 0, "free again"


@pytest.mark.slow
def test_runs_started_together(
    start: Callable,
    output: Callable,
    make_video: Callable,
    tiny_bundle: Path,
    tmp_path: Path,
    attempt: Callable,
) -> None:
    """Whatever their order, each that says 0 left a whole result, and no other touched it."""
    video = make_video(tmp_path / "clip.mp4", frames=4)
    out = output(tmp_path / "out")
    for round_ in range(6):
        texts = [f"the dog {round_} {number}" for number in range(3)]
        common = ("-b", tiny_bundle, "-o", out.folder, *SMALL)
        with attempt("two at once: three runs"):
            children = [start("run", video, text, *common) for text in texts]
            ended = [(child.communicate(timeout=PATIENCE), child.returncode) for child in children]
            codes = [code for _, code in ended]
            assert 0 in codes, ended
            for (_, stderr), code in ended:
                assert code in (0, 2)
                if code == 2:
                    assert stderr.startswith(f"error: {BUSY}")
                    assert len(stderr.splitlines()) == 1
            out.check(frames=4, expressions=1, size=(48, 80))
            (text,) = out.result["expressions"]
            assert codes[texts.index(text)] == 0


def test_what_killed_runs_left_goes_with_the_next_one(
    start: Callable,
    process: Callable,
    output: Callable,
    make_video: Callable,
    tiny_bundle: Path,
    tmp_path: Path,
    attempt: Callable,
) -> None:
    video = make_video(tmp_path / "long.mp4", frames=600)
    out = output(tmp_path / "out")
    common = ("-b", tiny_bundle, "-o", out.folder, *SMALL, "--mode", "online")
    child = start("run", video, "a", *common)
    wait_until((out.folder / "masks" / "0" / "00001.png").exists, child)
    child.kill()
    child.communicate()
    (out.folder / "masks" / "0" / ".00007.png.0123456789ab.part").touch()
    mine = out.folder / ".film.part"
    mine.write_text("of another program")
    assert [name for name in out.files() if ".overlay.mp4." in name]
    with attempt("killed: leftovers"):
        assert process("run", video, "b", *common, "--max-frames", 2).code == 0
        assert mine.read_text() == "of another program"
        mine.unlink()
        out.check(frames=2, expressions=1, size=(48, 80))


def test_a_second_training_is_refused(process: Callable, tmp_path: Path, attempt: Callable) -> None:
    pytest.importorskip("torch")
    run = tmp_path / "run"
    for command in (
        ("train", "mevis_large", "--out", run, "--data", tmp_path),
        ("pretrain-clip", "--out", run),
    ):
        with attempt(f"two at once: {command[0]}"), holding(run, "training in"):
            (run / "kept").touch()
            result = process(*command)
            assert result.code == 2
            assert result.error.startswith(f"{BUSY}training in {run}; wait for it")
            assert [path.name for path in run.iterdir()] == ["kept"]


def test_engines_are_built_by_one_process(tmp_path: Path, attempt: Callable) -> None:
    build = pytest.importorskip("rvos_deploy.engines.build")
    place = tmp_path / "engines" / "tensorrt"
    with attempt("two at once: build-engine"), in_another_process(place, "building engines in"):
        with pytest.raises(InputError, match=f"{BUSY}building engines in"), build._staging(place):
            pass
        assert not list(place.iterdir())


class in_another_process:  # noqa: N801
    """Hold a folder as another process would."""

    def __init__(self, folder: Path, purpose: str) -> None:
        self._arguments = (str(folder), purpose)

    def __enter__(self) -> None:
        import sys

        code = (
            "import sys; from pathlib import Path; from rvos_deploy.files import holding\n"
            "with holding(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); input()"
        )
        self._child = subprocess.Popen(
            [sys.executable, "-c", code, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "held\n"

    def __exit__(self, *error: object) -> None:
        self._child.communicate("\n", timeout=PATIENCE)


def test_of_two_splits_rendered_at_once_one_is_put_in_place(
    tmp_path: Path, attempt: Callable
) -> None:
    """The second finds the first's folder there; it is not replaced unless that was asked for."""
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)

    def meanwhile(phase: str, done: int, count: int | None) -> None:
        write_mevis(target, SplitSpec(seed=1, split="valid", videos=1, config=config))

    target = tmp_path / "valid"
    with attempt("two at once: make-data"):
        with pytest.raises(InputError, match="valid cannot be written: Directory not empty"):
            write_mevis(
                target,
                SplitSpec(seed=2, split="valid", videos=1, config=config),
                progress=meanwhile,
            )
        assert (target / "sprites.json").read_text().count('"seed": 1') == 1
        assert [path.name for path in tmp_path.iterdir()] == ["valid"]


def test_a_folder_is_whole_at_any_moment_while_it_is_replaced(
    tmp_path: Path, attempt: Callable
) -> None:
    import threading

    target = tmp_path / "bundle"
    missing: list[int] = []
    ended = threading.Event()

    def write(text: str) -> None:
        with replacing_folder(target, overwrite=True) as folder:
            for name in "abc":
                (folder / name).write_text(text)

    def watch() -> None:
        while not ended.is_set():
            # One name a look: the folder may be exchanged between two.
            if not (target / "c").exists():
                missing.append(1)

    write("0")
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(200):
            with attempt("two at once: a folder while it is replaced"):
                write(str(number))
    finally:
        ended.set()
        watcher.join()
    assert not missing
    assert {(target / name).read_text() for name in "abc"} == {"199"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_staging_folders_of_killed_processes_go_and_those_in_use_stay(
    tmp_path: Path, attempt: Callable
) -> None:
    import sys

    target = tmp_path / "bundle"
    code = (
        "import sys; from pathlib import Path; from rvos_deploy.files import *\n"
        "print(create_temporary_folder(Path(sys.argv[1])), flush=True); input()"
    )
    children = []
    folders = []
    for _ in range(2):
        child: Any = subprocess.Popen(
            [sys.executable, "-c", code, str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        folders.append(Path(child.stdout.readline().strip()))
        (folders[-1] / "backbone.onnx").write_bytes(b"large")
    children[0].kill()
    children[0].wait()
    with attempt("killed: leftovers"):
        with replacing_folder(target) as folder:
            (folder / "a").touch()
        assert not folders[0].exists()
        assert folders[1].exists()
    children[1].kill()
    children[1].wait()
    for child in children:
        child.stdin.close()
        child.stdout.close()
    discard(folders[1])
