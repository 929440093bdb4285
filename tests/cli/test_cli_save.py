"""``run --save``: chosen outputs, standard output, live streams, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from rvos_deploy.datasets import read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis

SMALL = ("--size", "64x96", "--fallback", "top1")


@pytest.fixture
def save(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run with --save, into the folder "out"."""

    def call(source: object, *arguments: object, texts: tuple[str, ...] = ("the ball",)) -> Any:
        out = tmp_path / "out"
        return rvos("run", source, *texts, "-b", tiny_bundle, "-o", out, *SMALL, *arguments)

    return call


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_saved(save: Callable, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = save(video, "--save", "json, rle", "--save", "palette")
    assert (result.code, result.stderr) == (0, "")
    assert names(out) == {"result.json", "frames.ndjson", "palette"}
    outputs = json.loads((out / "result.json").read_text())["outputs"]
    assert outputs == {
        "palette": {"files": "palette/{file}.png"},
        "rle": {"files": "frames.ndjson"},
    }
    assert save(video, "--save", "coco,ytvis,cutouts,alpha").code == 0
    assert names(out) == {"coco.json", "ytvis.json", "cutouts", "alpha"}
    assert save(video).code == 0
    assert names(out) == {"masks", "overlay.mp4", "result.json"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("masks,", "--save names nothing between two commas"),
        ("", "--save names nothing"),
        ("mask", "there is no sink 'mask'; choose from masks, palette, overlay, json, rle"),
        ("rle=x", "lines of JSON go to frames.ndjson (rle) or to standard output (rle=-)"),
        ("alpha=hevc", "alpha has no format 'hevc'; choose from prores, vp9"),
        ("mpegts=udp.ts", "for a file, save the overlay"),
    ],
)
def test_what_cannot_be_saved(
    save: Callable, video: Path, tmp_path: Path, given: str, message: str
) -> None:
    result = save(video, "--save", given)
    assert result.code == 2
    assert message in result.error
    assert not (tmp_path / "out").exists()


def test_lines_on_standard_output_are_alone_there(
    save: Callable, video: Path, tmp_path: Path
) -> None:
    result = save(video, "--save", "rle=-")
    assert result.code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    assert result.stderr.startswith("6 frames, 1 expression, offline")
    assert "->" not in result.stderr  # nothing lies in the folder
    assert not (tmp_path / "out").exists()


def test_a_run_that_writes_nothing_into_the_folder_leaves_it_alone(
    save: Callable, rvos: Callable, video: Path, tmp_path: Path
) -> None:
    """Its files may be the source, too."""
    out = tmp_path / "out"
    assert save(video).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = save(out / "overlay.mp4", "--save", "rle=-")
    assert (result.code, len(result.stdout.splitlines())) == (0, 6)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.fixture
def start_piped(tiny_bundle: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Start a run as a process of its own whose standard output is a pipe of bytes."""
    program = "from rvos_deploy.cli.app import main; main()"

    def start(source: Path, saved: str, out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, "run", str(source), "the ball"]
        command += ["-b", str(tiny_bundle), "-o", str(out), *SMALL, "--save", saved]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


def test_a_reader_that_ends_early_ends_the_run(
    start_piped: Callable, make_video: Callable, output: Callable, tmp_path: Path
) -> None:
    """The frames that were written are complete in every output, and the line says so."""
    source, out = make_video(tmp_path / "long.mp4", frames=40), output(tmp_path / "out")
    with start_piped(source, "masks,json,rle=-", out.folder) as run:
        run.stdout.readline()
        run.stdout.close()
        (line,) = run.stderr.read().decode().splitlines()
        assert run.wait(60) == 2
    assert line.startswith("error: standard output cannot be written: Broken pipe; the program")
    frames = [frame["file"] for frame in out.result["frames"]]
    assert 0 < len(frames) < 40
    assert f"{len(frames)} frames are complete in" in line
    assert {path.stem for path in (out.folder / "masks" / "0").iterdir()} == set(frames)


def read_live(source: object) -> tuple[list[float], set[tuple[int, int]]]:
    with av.open(source, format="mpegts") as container:  # type: ignore[call-overload]
        frames = list(container.decode(video=0))
        return [float(f.time) for f in frames], {(f.height, f.width) for f in frames}


def test_a_live_stream_in_a_pipe(start_piped: Callable, video: Path, tmp_path: Path) -> None:
    with start_piped(video, "mpegts=-,json", tmp_path / "out") as run:
        times, sizes = read_live(run.stdout)
        assert run.wait(60) == 0
    assert times == pytest.approx([t / 10 for t in range(6)])
    assert sizes == {(48, 80)}
    assert names(tmp_path / "out") == {"result.json"}


@pytest.mark.parametrize("saved", ["mpegts=-", "mpegts=-,masks,json"])
def test_a_viewer_that_leaves_ends_the_run(
    start_piped: Callable, make_video: Callable, tmp_path: Path, saved: str
) -> None:
    source, out = make_video(tmp_path / "long.mp4", frames=40, size=(240, 400)), tmp_path / "out"
    with start_piped(source, saved, out) as run:
        run.stdout.read(188)
        run.stdout.close()
        (line,) = run.stderr.read().decode().splitlines()
        assert run.wait(60) == 2
    assert "Broken pipe; the program that reads it has ended; " in line
    if "json" not in saved:
        assert line.endswith(" frames were sent")
        assert not out.exists()
        return
    frames = json.loads((out / "result.json").read_text())["frames"]
    assert line.endswith(f" {len(frames)} frames are complete in {out}")
    assert len(names(out / "masks" / "0")) == len(frames)


def test_a_live_stream_in_a_fifo(save: Callable, video: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "live"
    os.mkfifo(fifo)
    result = save(video, "--save", f"mpegts={fifo}")
    assert result.code == 2
    assert "nobody reads" in result.error
    assert "start its reader first" in result.error
    seen: list[bytes] = []
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    reader = threading.Thread(target=lambda: seen.append(os.fdopen(descriptor, "rb").read()))
    # A reader waits for the first byte, or it would see the end at once.
    keep = os.open(fifo, os.O_WRONLY)
    reader.start()
    assert save(video, "--save", f"mpegts={fifo}").code == 0
    os.close(keep)
    reader.join(30)
    (tmp_path / "seen.ts").write_bytes(seen[0])
    assert len(read_live(str(tmp_path / "seen.ts"))[0]) == 6
    assert fifo.is_fifo()


def test_a_live_stream_over_udp(save: Callable, video: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.settimeout(5)
        port = receiver.getsockname()[1]
        assert save(video, "--save", f"mpegts=udp://127.0.0.1:{port},json").code == 0
        receiver.setblocking(False)
        packets = []
        while True:
            try:
                packets.append(receiver.recv(65_536))
            except BlockingIOError:
                break
    assert max(map(len, packets)) <= 1316
    (tmp_path / "seen.ts").write_bytes(b"".join(packets))
    assert len(read_live(str(tmp_path / "seen.ts"))[0]) == 6
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert saved["outputs"]["mpegts"] == {"files": f"udp://127.0.0.1:{port}"}


REPLACED = "an input of this command, and its output would replace it"


def test_the_source_is_what_the_run_would_replace(
    save: Callable, video: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    everything = "masks,palette,overlay,json,rle,coco,ytvis,alpha,cutouts"
    assert save(video, "--save", everything).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sources = ["alpha/0.mov", "cutouts/0", "palette", "palette/00001.png", "overlay.mp4"]
    for source in sources:
        for saved in ("json", "alpha", "palette"):
            result = save(out / source, "--save", saved)
            assert result.code == 2
            assert REPLACED in result.error, (source, saved)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_masks_of_a_data_set_are_as_its_server_takes_them(
    save: Callable, rvos: Callable, tmp_path: Path
) -> None:
    """VIDEO/EXPRESSION/FRAME.png, with the frames' own names: 00000, 00005, as YouTube-VOS has."""
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    write_mevis(tmp_path / "valid", SplitSpec(seed=2, split="valid", videos=1, config=config))
    data = tmp_path / "valid"
    (video,) = read_mevis(data).videos
    frames = data / "JPEGImages" / video.name
    texts = tuple(expression.text for expression in video.expressions)
    assert save(frames, "--save", "masks,json", texts=texts).code == 0
    predictions = tmp_path / "predictions"
    shutil.copytree(tmp_path / "out" / "masks", predictions / video.name)
    for number, expression in enumerate(video.expressions):
        folder = predictions / video.name / expression.id
        assert expression.id == str(number)
        assert {path.stem for path in folder.iterdir()} == {path.stem for path in video.frames}
    report = tmp_path / "report.json"
    assert rvos("evaluate", predictions, "--data", data, "--json", report).code == 0
    rows = json.loads(report.read_text())["by_expression"]
    assert [row["missing_frames"] for row in rows] == [0] * len(texts)
    # Other names than numbers that follow one another.
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(frames.iterdir())):
        shutil.copy(path, renamed / f"{5 * number:05d}.jpg")
    assert save(renamed, "--save", "masks").code == 0
    wanted = {f"{5 * number:05d}.png" for number in range(8)}
    assert names(tmp_path / "out" / "masks" / "0") == wanted
    with Image.open(tmp_path / "out" / "masks" / "0" / "00025.png") as image:
        assert np.asarray(image).shape == (64, 96)
