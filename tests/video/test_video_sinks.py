"""What each sink writes, read again by other libraries: pycocotools, Pillow, PyAV."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.errors import InputError, RvosError, VideoError
from rvos_deploy.files import create_temporary
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.run_folder import check_run_folder, run_folder
from rvos_deploy.runtime.run_writer import RunWriter
from rvos_deploy.video import Frame, VideoInfo
from rvos_deploy.video.drawing.palette import colour_of
from rvos_deploy.video.sinks.base import FrameNames, FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.registry import (
    SINKS,
    chosen_outputs,
    make_sinks,
    parse_choices,
    writes_to_standard_output,
)

SIZE = (49, 65)  # sides that no video codec likes
TEXTS = ["the dog", "the ball", "nothing at all"]
INFO = VideoInfo(SIZE[1], SIZE[0], 10.0, 4, "clip", Fraction(1, 10))
FILES = ("masks", "palette", "json", "rle", "coco", "ytvis", "cutouts")
"""Sinks that withdraw a frame wholly."""


def masks_of(index: int) -> NDArray[np.bool_]:
    """Two masks that overlap and move; the first is empty in frame 1, the third always."""
    masks = np.zeros((3, *SIZE), np.bool_)
    masks[0, 5:30, 4 + 3 * index : 30 + 3 * index] = index != 1
    masks[1, 20:44, 10:41] = True
    masks[1, 25, 15] = False
    return masks


def image_of(index: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([x * 3, y * 4, np.full_like(x, 40 * index)], axis=-1).astype(np.uint8)


def results(names: Sequence[str | None] = (None,) * 4) -> list[FrameMasks]:
    scores = np.array([0.9, 0.4, 0.1], np.float32)
    return [
        FrameMasks(
            Frame(index, index / 10, image_of(index), 0.1, name),
            SIZE,
            scores,
            (0, 1, 2),
            tuple(TEXTS),
            masks_of(index),
        )
        for index, name in enumerate(names)
    ]


def save(
    out: Path, chosen: Sequence[str | Sink], frames: Sequence[FrameResult] | None = None
) -> None:
    """Write frames through sinks, as a run does."""
    frames = results() if frames is None else frames
    outputs = chosen_outputs(chosen)
    check_run_folder(out, [], outputs)
    sinks = make_sinks(chosen, SinkRequest(out, lambda: {"stopped": None}))
    with run_folder(out), RunWriter(out, sinks, INFO, TEXTS) as writer:
        for frame in frames:
            writer.submit(frame)  # type: ignore[arg-type]
        writer.finish()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def decode_rle(rle: dict[str, Any]) -> NDArray[np.bool_]:
    from pycocotools import mask

    return np.asarray(mask.decode(rle)).astype(np.bool_)


# --- Pictures -------------------------------------------------------------------------------------


def test_a_palette_png_holds_the_numbers_of_expressions(tmp_path: Path) -> None:
    save(tmp_path, ["palette"])
    assert files(tmp_path) == {f"palette/{t:05d}.png" for t in range(4)}
    for t in range(4):
        with Image.open(tmp_path / "palette" / f"{t:05d}.png") as image:
            assert image.mode == "P"
            colours = image.getpalette()
            numbers = np.asarray(image)
        dog, ball, _ = masks_of(t)
        # The dog's score is higher, so it owns the pixels that both have.
        assert np.array_equal(numbers, np.where(dog, 1, np.where(ball, 2, 0)))
        assert colours is not None
        assert tuple(colours[:9]) == (0, 0, 0, *colour_of(0), *colour_of(1))


def test_a_palette_has_numbers_for_254_expressions(tmp_path: Path) -> None:
    (sink,) = make_sinks(["palette"], SinkRequest(tmp_path, dict))
    with pytest.raises(InputError, match="254 expressions, found 255; save masks instead"):
        sink.open(INFO, ["a"] * 255)
    sink.open(INFO, ["a"] * 254)
    sink.abort()
    assert not list(tmp_path.iterdir())


def test_cut_outs_hold_the_object_and_nothing_of_the_background(tmp_path: Path) -> None:
    save(tmp_path, ["cutouts", "json"])
    # Frame 1 has no dog, and there is never a third object.
    dogs = {f"cutouts/0/{t:05d}.png" for t in (0, 2, 3)}
    balls = {f"cutouts/1/{t:05d}.png" for t in range(4)}
    assert files(tmp_path) == dogs | balls | {"result.json"}
    found = json.loads((tmp_path / "result.json").read_text())
    for frame in found["frames"]:
        for number, entry in enumerate(frame["expressions"]):
            if entry["box"] is None:
                continue
            with Image.open(tmp_path / "cutouts" / str(number) / f"{frame['file']}.png") as image:
                pixels = np.asarray(image)
            left, top, width, height = entry["box"]
            window = slice(top, top + height), slice(left, left + width)
            mask = masks_of(frame["index"])[number][window]
            assert np.array_equal(pixels[..., 3], mask * np.uint8(255))
            assert np.array_equal(
                pixels[..., :3], image_of(frame["index"])[window] * mask[..., None]
            )


# --- JSON -----------------------------------------------------------------------------------------


def check_entry(entry: dict[str, Any], mask: NDArray[np.bool_]) -> None:
    from pycocotools import mask as coco

    assert np.array_equal(decode_rle(entry["rle"]), mask)
    assert entry["area"] == coco.area(entry["rle"]) == mask.sum()
    assert entry["box"] == (coco.toBbox(entry["rle"]).tolist() if mask.any() else None)


def test_lines_are_whole_after_each_frame(tmp_path: Path) -> None:
    class Reader(Sink):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def write(self, result: FrameResult) -> None:
            pass

        def commit(self) -> None:
            text = (tmp_path / "frames.ndjson").read_text()
            assert text.endswith("\n")
            self.seen.append(len([json.loads(line) for line in text.splitlines()]))

    reader = Reader()
    save(tmp_path, ["rle", reader], results(["a.jpg", None, "b.jpg", "c.jpg"]))
    assert reader.seen == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (tmp_path / "frames.ndjson").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["a.jpg", None, "b.jpg", "c.jpg"]
    assert [line["file"] for line in lines] == ["a", "00001", "b", "c"]
    for index, line in enumerate(lines):
        assert line["schema"] == "rvos-deploy/frame/1"
        assert (line["index"], line["pts"]) == (index, index / 10)
        assert [entry["text"] for entry in line["expressions"]] == TEXTS
        for entry, mask in zip(line["expressions"], masks_of(index), strict=True):
            check_entry(entry, mask)


def test_pycocotools_reads_the_coco_file(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    save(tmp_path, ["coco"], results(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]))
    coco = COCO(str(tmp_path / "coco.json"))
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == TEXTS
    assert len(set(coco.getAnnIds())) == 7
    images = coco.loadImgs(sorted(coco.getImgIds()))
    assert [one["file_name"] for one in images] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    for index, image in enumerate(images):
        assert (image["height"], image["width"]) == SIZE
        found = {one["category_id"]: one for one in coco.loadAnns(coco.getAnnIds([image["id"]]))}
        assert set(found) == ({2} if index == 1 else {1, 2})
        for category, one in found.items():
            mask = masks_of(index)[category - 1]
            assert np.array_equal(coco.annToMask(one), mask)
            check_entry({**one, "rle": one["segmentation"], "box": one["bbox"]}, mask)


def test_ytvis_has_a_track_for_each_object_that_was_seen(tmp_path: Path) -> None:
    save(tmp_path, ["ytvis"])
    found = json.loads((tmp_path / "ytvis.json").read_text())
    (video,) = found["videos"]
    assert (video["length"], video["height"], video["width"]) == (4, *SIZE)
    assert video["file_names"] == [f"{t:05d}.png" for t in range(4)]
    assert [one["name"] for one in found["categories"]] == TEXTS
    assert [one["category_id"] for one in found["annotations"]] == [1, 2]
    assert [one["score"] for one in found["annotations"]] == pytest.approx([0.9, 0.4])
    for number, track in enumerate(found["annotations"]):
        assert track["video_id"] == video["id"]
        rows = zip(track["segmentations"], track["bboxes"], track["areas"], strict=True)
        for t, (rle, box, area) in enumerate(rows):
            mask = masks_of(t)[number]
            if rle is None:
                assert not mask.any()
                assert box is area is None
            else:
                check_entry({"rle": rle, "box": box, "area": area}, mask)


# --- Videos ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "suffix", "decoder"),
    [
        ("alpha", "mov", "prores"),
        ("alpha=prores", "mov", "prores"),
        ("alpha=vp9", "webm", "libvpx-vp9"),
    ],
)
def test_alpha_videos_decode_to_the_masks(
    tmp_path: Path, chosen: str, suffix: str, decoder: str
) -> None:
    save(tmp_path, [chosen])
    assert files(tmp_path) == {f"alpha/{e}.{suffix}" for e in range(3)}
    for number in range(3):
        with av.open(str(tmp_path / "alpha" / f"{number}.{suffix}")) as container:
            stream = container.streams.video[0]
            assert (stream.height, stream.width) == SIZE
            context = av.CodecContext.create(decoder, "r")
            if stream.codec_context.extradata:
                context.extradata = stream.codec_context.extradata
            context.width, context.height = stream.width, stream.height
            context.codec_tag = stream.codec_context.codec_tag
            decoded = [f for packet in container.demux(stream) for f in context.decode(packet)]
            times = [float(frame.pts * stream.time_base) for frame in decoded]
        assert times == pytest.approx([0, 0.1, 0.2, 0.3])
        for t, frame in enumerate(decoded):
            pixels, mask = frame.to_ndarray(format="rgba"), masks_of(t)[number]
            assert np.array_equal(pixels[..., 3] > 127, mask)
            if mask.any():
                error = np.abs(pixels[mask][:, :3].astype(int) - image_of(t)[mask])
                assert error.mean() < 8


def test_live_frames_leave_at_once(tmp_path: Path) -> None:
    """Not with the next one: after each commit, the reader has a whole frame more."""
    fifo = tmp_path / "live"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    (sink,) = make_sinks([f"mpegts={fifo}"], SinkRequest(tmp_path, dict))
    sink.open(INFO, TEXTS)
    seen, counts = b"", []
    for result in results():
        sink.write(result)
        sink.commit()
        while part := _read(reader):
            seen += part
        with av.open(io.BytesIO(seen), format="mpegts") as container:
            counts.append(len(list(container.decode(video=0))))
    sink.finish()
    sink.abort()
    os.close(reader)
    assert counts == [1, 2, 3, 4]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except BlockingIOError:
        return b""


def test_alpha_refuses_what_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SinkRequest(tmp_path, dict)
    with pytest.raises(InputError, match="no format 'hevc'; choose from prores, vp9"):
        make_sinks(["alpha=hevc"], request)
    (sink,) = make_sinks(["alpha"], request)
    with pytest.raises(InputError, match="at most 16, found 17; split them"):
        sink.open(INFO, ["a"] * 17)
    monkeypatch.setattr(av, "codecs_available", {"libx264"})
    with pytest.raises(InputError, match="no encoder libvpx-vp9; install PyAV's own wheel"):
        make_sinks(["alpha=vp9"], request)
    assert not list(tmp_path.iterdir())


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["00000.jpg", "00005.jpg", "00010.jpg"], ["00000", "00005", "00010"]),
        ([None, None, None], ["00000", "00001", "00002"]),
        (["1.jpg", "1.png", "1.JPG"], ["1", "1_00001", "1_00002"]),
        (["A.png", "a.png", "b.c.png"], ["A", "a_00001", "b.c"]),
        (["../../etc/passwd", "..", "/"], ["passwd", "00001", "00002"]),
        (["", ".", "x\0y.png"], ["00000", "00001", "xy"]),
    ],
)
def test_files_have_the_names_of_the_source(given: list[str | None], named: list[str]) -> None:
    names = FrameNames()
    for index, (name, wanted) in enumerate(zip(given, named, strict=True)):
        frame = Frame(index, float(index), image_of(0), None, name)
        assert names.of(frame) == wanted
        assert names.of(frame) == wanted  # the next sink asks again


def test_all_outputs_of_a_frame_have_one_name(tmp_path: Path) -> None:
    save(tmp_path, FILES, results(["1.jpg", "1.png", "z.webp", None]))
    stems = ["1", "1_00001", "z", "00003"]
    frames = json.loads((tmp_path / "result.json").read_text())["frames"]
    assert [frame["file"] for frame in frames] == stems
    assert [frame["name"] for frame in frames] == ["1.jpg", "1.png", "z.webp", None]
    for folder in ("masks/0", "masks/2", "palette", "cutouts/1"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == {f"{s}.png" for s in stems}


# --- All of a frame, or nothing; earlier runs -----------------------------------------------------


class Fails(Sink):
    """Fails at one step of frame 2, after all other sinks."""

    irrevocable = True

    def __init__(self, step: str) -> None:
        self._step, self._index = step, -1

    def write(self, result: FrameResult) -> None:
        self._index = result.frame.index
        self._fail("write")

    def commit(self) -> None:
        self._fail("commit")

    def _fail(self, step: str) -> None:
        if (self._step, self._index) == (step, 2):
            raise VideoError("the disk is full")


@pytest.mark.parametrize("step", ["write", "commit"])
def test_a_frame_that_fails_is_in_no_output(tmp_path: Path, step: str) -> None:
    with pytest.raises(VideoError, match="the disk is full; 2 frames are complete"):
        save(tmp_path / "failed", [*FILES, Fails(step)])
    save(tmp_path / "short", FILES, results()[:2])
    for name in sorted(files(tmp_path / "short")):
        failed, short = tmp_path / "failed" / name, tmp_path / "short" / name
        assert failed.read_bytes() == short.read_bytes(), name
    assert files(tmp_path / "failed") == files(tmp_path / "short")


def test_a_first_frame_that_fails_leaves_an_earlier_run(tmp_path: Path) -> None:
    save(tmp_path, SINKS.keys() - {"mpegts"})
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    class First(Fails):
        def _fail(self, step: str) -> None:
            if step == "commit":
                raise VideoError("the disk is full")

    with pytest.raises(VideoError, match=r"the disk is full$"):
        save(tmp_path, [*FILES, "overlay", "alpha", First("commit")], results()[1:])
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_run_replaces_an_earlier_one_whatever_it_saved(tmp_path: Path) -> None:
    everything = list(SINKS.keys() - {"mpegts"})
    save(tmp_path, everything, results(["a.jpg", "b.jpg", "c.jpg", None]))
    mine = [
        "masks/0/notes.png",
        "palette/00017.png",
        "cutouts/1/7.png",
        "alpha/mine.mov",
        "masks/x/1.png",
        "a.ndjson",
    ]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "cutouts" / "1" / "photo.png").symlink_to(tmp_path / mine[0])
    save(tmp_path, ["json"])
    assert files(tmp_path) == {"result.json", "cutouts/1/photo.png", *mine}


def test_files_of_another_program_are_neither_replaced_nor_in_the_way(tmp_path: Path) -> None:
    for name in ("result.json", "frames.ndjson", "coco.json", "ytvis.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text('{"schema": "another"}')
        sink = {"result.json": "json", "frames.ndjson": "rle"}.get(name, name.partition(".")[0])
        with pytest.raises(InputError, match=f"{name} was not written by a run"):
            save(folder, [sink])
        save(folder, ["palette"])
        assert (folder / name).read_text() == '{"schema": "another"}'
    (tmp_path / "masks").write_text("mine")
    with pytest.raises(InputError, match="masks is a file, where a folder is needed"):
        save(tmp_path, ["masks"])
    (tmp_path / "elsewhere").mkdir()
    for name in ("palette", "alpha", "cutouts"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InputError, match=f"{name} is a symlink, and {name} are not written"):
            save(tmp_path, [name])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_picture_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "masks" / "1").mkdir(parents=True)
    (tmp_path / "masks" / "1" / "b.png").write_bytes(b"mine")
    with pytest.raises(VideoError, match=r"masks/1/b.png was not written by a run.*1 frames are"):
        save(tmp_path, ["masks"], results(["a.png", "b.png"]))
    assert (tmp_path / "masks" / "1" / "b.png").read_bytes() == b"mine"
    assert files(tmp_path) == {f"masks/{e}/a.png" for e in range(3)} | {"masks/1/b.png"}


def test_what_a_killed_run_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rvos_deploy import files as file_module

    names = ["frames.ndjson", "coco.json", "ytvis.json", "overlay.mp4", "alpha/0.mov",
             "alpha/1.webm", "palette/a.png", "cutouts/0/b.png", "masks/0/c.png"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        create_temporary(tmp_path / name)
    monkeypatch.setattr(file_module, "_temporaries", {})  # they are another process's
    assert len(files(tmp_path)) == len(names)
    save(tmp_path, ["json"])
    assert files(tmp_path) == {"result.json"}


def test_a_full_disk_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sink's last step fails; the others are complete."""
    from rvos_deploy.video.sinks.growing_file import GrowingFile

    def full(self: GrowingFile) -> None:
        raise InputError("no space left")

    monkeypatch.setattr(GrowingFile, "complete", full)
    with pytest.raises(RvosError, match="no space left"):
        save(tmp_path, ["coco", "ytvis", "masks", "rle", "overlay", "alpha"])
    names = {path.split("/")[0] for path in files(tmp_path)}
    assert names == {"masks", "frames.ndjson", "overlay.mp4", "alpha"}


# --- The table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["mask"], "no sink 'mask'; choose from masks, palette, "),
        (["masks", "masks"], "sink 'masks' was given twice"),
        (["masks=x"], "sink 'masks' has no target, found 'masks=x'; write 'masks'"),
        (["alpha="], "sink 'alpha' needs a target: alpha=prores|vp9"),
        (["mpegts"], "sink 'mpegts' needs a target: mpegts=udp://HOST:PORT|FIFO|-"),
        (["rle=-", "mpegts=-"], "standard output is the target of two sinks"),
    ],
)
def test_choices_that_cannot_be(given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_choices(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rle=lines.txt", r"standard output \(rle=-\), found rle=lines.txt"),
        ("mpegts=live.ts", r"found mpegts=live.ts; for a file, save the overlay"),
        ("mpegts=http://host/x", "found mpegts=http://host/x"),
    ],
)
def test_targets_that_cannot_be(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_sinks([given], SinkRequest(tmp_path, dict))


def test_the_order_of_sinks(tmp_path: Path) -> None:
    chosen = make_sinks(["mpegts=-", "json", "masks"], SinkRequest(tmp_path, dict))
    assert [type(sink).__name__ for sink in chosen] == ["MaskSink", "ResultFileSink", "MpegTsSink"]
    assert writes_to_standard_output(parse_choices(["mpegts=-"]))
    assert not writes_to_standard_output(parse_choices(SINKS.keys() - {"mpegts"}))


def test_what_is_not_asked_for_is_not_imported(process: Callable) -> None:
    import subprocess
    import sys

    code = (
        "import sys, pathlib;"
        "from rvos_deploy.video.sinks.registry import SINKS, make_sinks;"
        "from rvos_deploy.video.sinks.base import SinkRequest;"
        "make_sinks(['json'], SinkRequest(pathlib.Path('x'), dict));"
        "print(*sorted(m.rpartition('.')[2] for m in sys.modules if '.video.sinks.' in m));"
        "print('av' in sys.modules, 'PIL' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, heavy = done.stdout.splitlines()
    assert loaded.split() == [
        "base", "growing_file", "mask_record", "outputs", "registry", "result_file",
    ]  # fmt: skip
    assert heavy == "False False"
