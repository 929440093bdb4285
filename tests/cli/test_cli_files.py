"""The user's files: no command replaces its input, loses earlier results, or shows a secret."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.datasets import read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.stream import Stream

SMALL = ("--size", "64x96", "--fallback", "top1")


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder; of symlinks, where they lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def out(rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path) -> Path:
    """A folder with the results of a run."""
    folder = tmp_path / "out"
    assert rvos("run", video, "the ball", "-b", tiny_bundle, "-o", folder, *SMALL).code == 0
    return folder


@pytest.fixture
def refused(rvos: Callable, tiny_bundle: Path, out: Path) -> Callable[..., str]:
    """Run into ``out`` and give the one line; everything there is as it was."""

    def call(source: object, *options: object, texts: tuple[str, ...] = ("the dog",)) -> str:
        before = snapshot(out)
        result = rvos("run", source, *texts, "-b", tiny_bundle, "-o", out, *SMALL, *options)
        assert result.code == 2
        assert snapshot(out) == before
        return str(result.error)

    return call


REPLACED = "an input of this command, and its output would replace it"


def test_the_source_is_what_the_run_would_replace(
    refused: Callable[..., str], out: Path, tmp_path: Path
) -> None:
    overlay, masks = out / "overlay.mp4", out / "masks" / "0"
    links = {name: tmp_path / name for name in ("symlink.mp4", "hard.mp4", "frames", "out-link")}
    links["symlink.mp4"].symlink_to(overlay)
    os.link(overlay, links["hard.mp4"])
    links["frames"].symlink_to(masks)
    links["out-link"].symlink_to(out)
    copies = tmp_path / "copies"
    copies.mkdir()
    for file in masks.iterdir():
        (copies / file.name).symlink_to(file)
    for source in (
        *(overlay, masks, *list(links.values())[:3], links["out-link"] / "overlay.mp4", copies),
        *(f"file:{overlay}", masks / "%05d.png", masks / "00000.png"),
    ):
        assert REPLACED in refused(source), source


def test_standard_input_is_what_the_run_would_replace(
    process: Callable, tiny_bundle: Path, out: Path
) -> None:
    before = snapshot(out)
    with (out / "overlay.mp4").open("rb") as stdin:
        result = process("run", "-", "a", "-b", tiny_bundle, "-o", out, *SMALL, stdin=stdin)
    assert result.code == 2
    assert REPLACED in result.error
    assert snapshot(out) == before


def test_an_output_folder_beside_the_source_is_fine(
    rvos: Callable, output: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    """The video lies in the folder, and is none of the files that a run writes."""
    common = ("-b", tiny_bundle, "-o", tmp_path, *SMALL)
    content = video.read_bytes()
    for _ in range(2):
        assert rvos("run", video, "the dog", *common).code == 0
    assert video.read_bytes() == content


def test_limits_are_checked_before_anything_is_replaced(
    refused: Callable[..., str], video: Path
) -> None:
    error = refused(video, texts=tuple(f"the dog {number}" for number in range(257)))
    assert "found 257 expressions, at most 256 go into one run; split them into several" in error


def test_a_back_end_that_fails_before_the_first_frame_is_decided(
    refused: Callable[..., str], video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Stream, frame: object) -> None:
        raise BackendError("no memory on the GPU; give a smaller --size")

    monkeypatch.setattr(Stream, "push", fail)
    for mode in ("online", "offline"):
        assert refused(video, "--mode", mode).startswith("no memory on the GPU; give a smaller")


@pytest.mark.parametrize("frames", [1, 4])
def test_a_back_end_that_fails_later_leaves_what_was_decided(
    rvos: Callable,
    output: Callable,
    tiny_bundle: Path,
    out: Path,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
) -> None:
    push = Stream.push

    def fail(self: Stream, frame: Any) -> Any:
        if frame.index == frames:
            raise BackendError("no memory on the GPU")
        return push(self, frame)

    monkeypatch.setattr(Stream, "push", fail)
    common = ("-b", tiny_bundle, "-o", out, *SMALL, "--mode", "online")
    result = rvos("run", video, "the dog", "the cat", *common)
    assert result.code == 2
    assert result.error == f"no memory on the GPU; {frames} frames are complete in {out}"
    output(out).check(frames=frames, expressions=2, size=(48, 80))
    assert output(out).result["stopped"] == "error: no memory on the GPU"


def test_a_failed_first_run_leaves_no_folder(
    rvos: Callable,
    tiny_bundle: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Stream, frame: object) -> None:
        raise BackendError("no memory")

    monkeypatch.setattr(Stream, "push", fail)
    new = tmp_path / "new" / "deep"
    assert rvos("run", video, "a", "-b", tiny_bundle, "-o", new, *SMALL).code == 2
    assert not (tmp_path / "new").exists()


def test_files_of_another_program_are_not_replaced(
    refused: Callable[..., str], out: Path, video: Path
) -> None:
    (out / "result.json").write_text('{"schema": "another"}')
    assert "result.json was not written by a run, so it is not replaced" in refused(video)


def test_masks_are_not_written_through_symlinks(
    refused: Callable[..., str], out: Path, video: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    for name in ("masks/0", "masks"):
        shutil.rmtree(elsewhere, ignore_errors=True)
        (out / name).rename(elsewhere)
        (out / name).symlink_to(elsewhere)
        before = snapshot(elsewhere)
        assert f"{out / name} is a symlink, and masks are not written through" in refused(video)
        assert snapshot(elsewhere) == before
        (out / name).unlink()
        elsewhere.rename(out / name)


def test_planted_symlinks_are_replaced_and_never_followed(
    rvos: Callable, output: Callable, tiny_bundle: Path, out: Path, video: Path, tmp_path: Path
) -> None:
    victims = [tmp_path / name for name in ("a", "b", "c")]
    planted = ("masks/0/00000.png", "overlay.mp4", "masks/0/00003.png")
    for victim, name in zip(victims, planted, strict=True):
        victim.write_text("mine")
        (out / name).unlink()
        (out / name).symlink_to(victim)
    link = tmp_path / "link"
    link.symlink_to(out)
    assert rvos("run", video, "the dog", "-b", tiny_bundle, "-o", link, *SMALL).code == 0
    assert [victim.read_text() for victim in victims] == ["mine"] * 3
    assert link.is_symlink()
    output(out).check(frames=6, expressions=1, size=(48, 80))


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


def test_evaluate_replaces_neither_predictions_nor_data(
    rvos: Callable, data: tuple[Path, Path], tiny_bundle: Path, bundle_copy: Callable
) -> None:
    valid, truth = data
    mask = next(truth.rglob("*.png"))
    bundle = bundle_copy("backbone.onnx")
    for option in ("--json", "--csv", "--submission"):
        for predictions, file in (
            *((truth, mask), (truth, valid / "mask_dict.json"), (truth, valid / "sprites.json")),
            *((bundle, bundle / "backbone.onnx"), (bundle, bundle / "parity.npz")),
        ):
            before = file.read_bytes()
            result = rvos("evaluate", predictions, "--data", valid, option, file)
            assert result.code == 2
            assert REPLACED in result.error
            assert file.read_bytes() == before
    error = rvos("evaluate", truth, "--data", valid, "--json", "a", "--csv", "a").error
    assert error == "a is named for two outputs; give each its own file"


@pytest.mark.parametrize("command", ["inspect", "verify", "benchmark", "build-engine"])
def test_a_bundle_is_not_replaced_by_its_report(
    rvos: Callable, bundle_copy: Callable, video: Path, command: str
) -> None:
    bundle = bundle_copy("backbone.onnx", "manifest.json")
    before = snapshot(bundle)
    for name in ("backbone.onnx", "manifest.json", "tokenizer.json"):
        given = ("--bundle", bundle) if command == "benchmark" else (bundle,)
        result = rvos(command, *given, "--json", bundle / name)
        assert result.code == 2
        assert REPLACED in result.error
    if command == "benchmark":
        content = video.read_bytes()
        result = rvos(command, "--bundle", bundle, "--video", video, "--json", video)
        assert REPLACED in result.error
        assert video.read_bytes() == content
    assert snapshot(bundle) == before


def test_the_bundle_may_hold_the_results(
    rvos: Callable, bundle_copy: Callable, video: Path, output: Callable
) -> None:
    bundle = bundle_copy("manifest.json")
    before = snapshot(bundle)
    for _ in range(2):
        assert rvos("run", video, "a", "-b", bundle, "-o", bundle, *SMALL).code == 0
        assert before.items() <= snapshot(bundle).items()


def test_export_replaces_only_a_bundle_without_the_weights(
    rvos: Callable, bundle_copy: Callable, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    bundle = bundle_copy("manifest.json")
    weights = bundle / "weights.safetensors"
    weights.write_bytes(b"trained for a week")
    before = snapshot(bundle)
    arguments = ("export", "tiny", "--out", bundle, "--overwrite")
    for more, said in {
        ("--checkpoint", weights): "also holds weights.safetensors, which is not the bundle's",
        ("--random-weights",): "also holds weights.safetensors, which is not the bundle's",
    }.items():
        result = rvos(*arguments, *more)
        assert result.code == 2
        assert said in result.error
    weights.unlink()
    result = rvos(*arguments, "--checkpoint", bundle / "backbone.onnx")
    assert REPLACED in result.error
    given = ("--checkpoint", bundle / "backbone.onnx", "--json", bundle / "backbone.onnx")
    result = rvos("export", "tiny", "--out", tmp_path / "b", *given)
    assert REPLACED in result.error
    before.pop("weights.safetensors")
    assert snapshot(bundle) == before


def test_make_data_replaces_only_a_split(
    rvos: Callable, tmp_path: Path, data: tuple[Path, Path]
) -> None:
    arguments = ("make-data", "sprites", "--split", "valid", "--no-emoji", "--overwrite",
                 "--videos", 1, "--frames", 8, "--size", "64x96", "--jobs", 1)  # fmt: skip
    folder = tmp_path / "d" / "valid"
    shutil.copytree(data[0], folder)
    (folder / "notes.txt").write_text("mine")
    before = snapshot(folder)
    error = rvos(*arguments, "--out", folder.parent).error
    assert "also holds notes.txt, which was not rendered and would be lost" in error
    assert snapshot(folder) == before
    (folder / "sprites.json").unlink()
    assert "is not a split of Moving Sprites" in rvos(*arguments, "--out", folder.parent).error
    shutil.rmtree(folder)
    shutil.copytree(data[0], folder)
    before = snapshot(folder)
    photos = folder / "JPEGImages"
    assert REPLACED in rvos(*arguments, "--out", folder.parent, "--photos", photos).error
    assert snapshot(folder) == before
    assert rvos(*arguments, "--seed", 7, "--out", folder.parent).code == 0
    assert snapshot(folder) != before


def test_a_demo_replaces_only_a_demo(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    film = tmp_path / "video.mp4"
    film.write_bytes(b"of a birthday")
    result = rvos("demo", "-b", tiny_bundle, "--out", tmp_path)
    assert result.code == 2
    assert "video.mp4 was not written by a demo, so it is not replaced" in result.error
    assert snapshot(tmp_path) == {"video.mp4": b"of a birthday"}


def test_training_into_its_own_data(
    rvos: Callable, tmp_path: Path, data: tuple[Path, Path]
) -> None:
    pytest.importorskip("torch")
    run = tmp_path / "run"
    kept = run / "checkpoints" / "step-00000001" / "weights.safetensors"
    kept.parent.mkdir(parents=True)
    kept.touch()
    error = rvos("train", "sprites_tiny", "--out", run, "--init-from", kept).error
    assert REPLACED in error
    before = snapshot(data[0])
    error = rvos("train", "sprites_tiny", "--out", data[0], "--data", data[0]).error
    assert "is the data to train on; choose another folder for --out" in error
    assert snapshot(data[0]) == before


@pytest.fixture
def null(tmp_path: Path) -> Path:
    """A device node like /dev/null."""
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
        path.write_bytes(b"try")
    except OSError:
        pytest.skip("device nodes cannot be made here")
    return path


@pytest.mark.parametrize("option", ["--json", "--csv", "--submission"])
def test_a_device_node_stays_one(
    rvos: Callable, data: tuple[Path, Path], null: Path, option: str
) -> None:
    valid, truth = data
    before = null.lstat()
    result = rvos("evaluate", truth, "--data", valid, "--jobs", 1, option, null)
    assert (result.code, result.stderr) == (0, "")
    after = null.lstat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (
        before.st_ino,
        before.st_mode,
        before.st_rdev,
    )
    assert [path.name for path in null.parent.iterdir()] == ["null"]


def test_a_sample_goes_into_a_device_node(rvos: Callable, null: Path) -> None:
    assert rvos("make-data", "sample", "--out", null).code == 0
    assert null.is_char_device()
    assert [path.name for path in null.parent.iterdir()] == ["null"]


@pytest.mark.parametrize("option", ["--json", "--csv", "--submission"])
def test_a_fifo_is_written_into(
    rvos: Callable, data: tuple[Path, Path], tmp_path: Path, option: str
) -> None:
    valid, truth = data
    fifo, copy = tmp_path / "fifo", tmp_path / "copy"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: copy.write_bytes(fifo.read_bytes()))
    reader.start()
    result = rvos("evaluate", truth, "--data", valid, "--jobs", 1, option, fifo)
    reader.join()
    assert (result.code, result.stderr) == (0, "")
    assert fifo.is_fifo()
    if option == "--submission":
        assert len(zipfile.ZipFile(copy).namelist()) == len(list(truth.rglob("*.png")))
    elif option == "--json":
        assert json.loads(copy.read_bytes())["j_and_f"] == 1.0
    else:
        assert copy.read_text().startswith("level,video,")


def test_json_to_standard_output(process: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    result = process("inspect", tiny_bundle, "--json", "/dev/stdout")
    text = result.stdout
    assert json.loads(text[text.index("\n{\n") :])["command"] == "inspect"
    with (tmp_path / "log").open("w") as log:
        # ``process`` has pipes; a shell's > FILE is a file.
        import subprocess
        import sys

        code = "from rvos_deploy.cli.app import main; main()"
        command = [sys.executable, "-c", code, "inspect", str(tiny_bundle), "--json", "/dev/stdout"]
        subprocess.run(command, stdout=log, check=True)
    assert (tmp_path / "log").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize(
    "command", ["inspect", "verify", "benchmark", "evaluate", "export", "build-engine"]
)
def test_an_output_that_cannot_be_is_refused_before_the_work(
    rvos: Callable, tiny_bundle: Path, data: tuple[Path, Path], tmp_path: Path, command: str
) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "benchmark": (),
        "evaluate": (data[1], "--data", data[0]),
        "export": ("tiny", "--random-weights", "--out", tmp_path / "bundle"),
    }
    (tmp_path / "file").touch()
    for target, said in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "file" / "a.json", "is not a folder"),
    ):
        result = rvos(command, *arguments.get(command, (tiny_bundle,)), "--json", target)
        assert result.code == 2
        assert said in result.error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def address(video: Path) -> Iterator[str]:
    """Where the video's folder is served, without ``http://``."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    handler = partial(Quiet, directory=str(video.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_no_secret_of_a_url_is_shown_or_kept(
    rvos: Callable, tiny_bundle: Path, address: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    url = f"http://me:hunter2@{address}/clip.mp4?token=hunter2#hunter2"
    result = rvos("run", url, "the dog", "-b", tiny_bundle, "-o", out, *SMALL)
    assert result.code == 0
    found = json.loads((out / "result.json").read_text())
    assert found["settings"]["video"] == f"http://{address}/clip.mp4"
    assert f" http://{address}/clip.mp4 " in found["command"]
    for content in snapshot(out).values():
        assert b"hunter2" not in (content if isinstance(content, bytes) else content.encode())
    gone = f"http://me:hunter2@{address}/gone.mp4?token=hunter2"
    for options in ((), ("--debug",)):
        for command in (
            ("run", gone, "the dog", "-b", tiny_bundle, "-o", out),
            ("benchmark", "--bundle", tiny_bundle, "--video", gone),
        ):
            result = rvos(*options, *command)
            assert result.code == 2
            assert f"http://{address}/gone.mp4" in result.stderr
            assert "hunter2" not in result.stderr + result.stdout


def test_the_benchmark_of_a_url(
    rvos: Callable, tiny_bundle: Path, address: str, tmp_path: Path
) -> None:
    url = f"http://me:hunter2@{address}/clip.mp4?token=hunter2"
    common = ("--bundle", tiny_bundle, "--size", "64x96", "--frames", 2, "--threads", 1)
    result = rvos("benchmark", "--video", url, *common, "--json", tmp_path / "b.json")
    assert result.code == 0
    text = (tmp_path / "b.json").read_text()
    assert json.loads(text)["video"] == f"http://{address}/clip.mp4"
    assert "hunter2" not in text + result.stdout
