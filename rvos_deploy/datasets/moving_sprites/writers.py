"""Write Moving Sprites to disk: a split in the layout of MeViS, or one video as an H.264 file.

A split is one folder, which the reader of MeViS (``datasets.mevis``) also reads::

    JPEGImages/<video>/00000.jpg ...
    meta_expressions.json      as in MeViS v1: all expressions except kind no_target
    meta_expressions_v2.json   as in MeViS v2: all expressions; no_target has empty lists
    mask_dict.json             {"<anno_id>": [compressed RLE, or null where not visible, ...]}
    sprites.json               seed, split and world of the folder, and digests of the other inputs
                               that decide its pixels (the emoji font, photographs)

Beyond MeViS, each expression has ``kind`` and ``claim``, and each video has ``objects``: obj_id,
anno_id and look of all its objects, including objects that no expression refers to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from rvos_deploy.datasets.layout import FRAMES, V1, V2
from rvos_deploy.datasets.mevis import MASKS
from rvos_deploy.datasets.moving_sprites.backgrounds import list_photos
from rvos_deploy.datasets.moving_sprites.generate import find_video, make_video
from rvos_deploy.datasets.moving_sprites.looks import require_font
from rvos_deploy.datasets.moving_sprites.render import iterate
from rvos_deploy.datasets.moving_sprites.world import (
    WORLD_VERSION,
    Expression,
    Kind,
    Split,
    SpriteVideo,
    WorldConfig,
)
from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, replacing_folder, sha256_file, writing
from rvos_deploy.overlap import refuse_overlap
from rvos_deploy.processes import WorkerPool
from rvos_deploy.progress import CountProgress, ignore_counts
from rvos_deploy.rle import Rle, encode

_SETTINGS = "sprites.json"
_NAMES = {FRAMES, MASKS, _SETTINGS, V1, V2}
_JPEG_QUALITY = 95

_SAMPLE_FPS = 8
# Without cpu-independent, x264 chooses algorithms by the processor's instruction sets.
_H264 = {"crf": "16", "x264-params": "cpu-independent=1"}


@dataclass(frozen=True)
class SplitSpec:
    """Specify the videos of a split.

    Args:
        seed: seed of the videos.
        split: name of the split.
        videos: number of videos, at least 1.
        config: the world that they are rendered from.
    """

    seed: int
    split: Split
    videos: int
    config: WorldConfig = field(default_factory=WorldConfig)


@dataclass(frozen=True)
class _Job:
    """Hold the arguments of a worker process that writes one video."""

    root: str
    spec: SplitSpec


@dataclass(frozen=True)
class _Written:
    """Hold one written video's part of the index files. runs: by object, then by frame."""

    name: str
    entry: dict[str, Any]
    expressions: tuple[Expression, ...]
    runs: list[list[Rle | None]]


def _describe(video: SpriteVideo) -> list[dict[str, Any]]:
    return [
        {
            "name": item.look.name,
            "colour": item.look.colour,
            "texture": None if item.look.is_emoji else item.look.texture,
            "size": item.size,
            "motion": item.motion,
        }
        for item in video.objects
    ]


def _write_video(job: _Job, index: int) -> _Written:
    video = make_video(job.spec.seed, job.spec.split, index, job.spec.config)
    folder = Path(job.root) / FRAMES / video.name
    folder.mkdir(parents=True)
    runs: list[list[Rle | None]] = [[] for _ in video.objects]
    for t, (frame, masks) in enumerate(iterate(video)):
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=_JPEG_QUALITY, subsampling=0)
        for rows, mask in zip(runs, masks, strict=True):
            rows.append(encode(mask) if mask.any() else None)
    entry = {
        "vid_id": index,
        "frames": [f"{t:05d}" for t in range(job.spec.config.frames)],
        "objects": _describe(video),
    }
    return _Written(video.name, entry, video.expressions, runs)


def _write_all(job: _Job, jobs: int) -> Iterator[_Written]:
    """Write the videos, in this process or in ``jobs`` processes, and yield them in order."""
    count = job.spec.videos
    if jobs <= 1:
        for index in range(count):
            yield _write_video(job, index)
        return
    with WorkerPool(jobs) as pool:
        yield from pool.map(_write_video, repeat(job, count), range(count), chunksize=4)


def _expression(item: Expression, first_anno: int) -> dict[str, Any]:
    return {
        "exp": item.text,
        "obj_id": list(item.targets),
        "anno_id": [first_anno + k for k in item.targets],
        "kind": item.kind,
        "claim": item.claim,
    }


def _write_index(
    root: Path, written: Iterator[_Written], count: int, progress: CountProgress
) -> None:
    """Write mask_dict.json while the videos arrive, then the two lists of expressions."""
    videos: dict[str, dict[str, Any]] = {}
    anno = 0
    with (root / MASKS).open("w", encoding="ascii") as masks:
        masks.write("{")
        for done, video in enumerate(written, 1):
            objects = [
                {"obj_id": k, "anno_id": anno + k, **described}
                for k, described in enumerate(video.entry["objects"])
            ]
            texts = {str(i): _expression(e, anno) for i, e in enumerate(video.expressions)}
            videos[video.name] = {**video.entry, "objects": objects, "expressions": texts}
            for rows in video.runs:
                masks.write(f'{"," if anno else ""}\n"{anno}": {json.dumps(rows)}')
                anno += 1
            progress("render", done, count)
        masks.write("\n}\n")
    _write_json(root / V2, {"videos": videos})
    for entry in videos.values():
        entry["expressions"] = {i: e for i, e in entry["expressions"].items() if e["obj_id"]}
    _write_json(root / V1, {"videos": videos})


def _describe_sources(config: WorldConfig) -> dict[str, Any]:
    """Describe the input files that decide pixels. Raises InputError: an input file is missing."""
    sources: dict[str, Any] = {}
    if config.emoji:
        font = require_font()
        sources["emoji_font"] = {"file": font.name, "sha256": sha256_file(font)}
    if config.photos is not None:
        files = [Path(photo) for photo in list_photos(config.photos)]
        listing = [[f.relative_to(config.photos).as_posix(), f.stat().st_size] for f in files]
        digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
        sources["photos"] = {"files": len(files), "names_and_sizes_sha256": digest}
    return sources


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="ascii")


def write_mevis(
    folder: str | os.PathLike[str],
    spec: SplitSpec,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    progress: CountProgress = ignore_counts,
) -> Path:
    """Write the first videos of a split into ``folder``, completely or not at all.

    jobs: the number of processes, on which the result does not depend. A script that uses more than
    one must guard its main code by ``if __name__ == "__main__"``. progress: called with the phase
    "render" after each video. All files are written to a temporary folder next to ``folder``,
    which is renamed at the end. Returns ``folder``.

    Raises InputError: ``folder`` exists and ``overwrite`` is False, holds other files than a split
    of Moving Sprites, holds the photographs, or cannot be written; and the errors of
    ``make_video``.
    """
    target = Path(folder)
    if spec.videos < 1:
        raise InputError(f"the number of videos must be at least 1, found {spec.videos}")
    _check_target(target, overwrite=overwrite)
    config = spec.config
    sources = _describe_sources(config)
    if config.photos is not None:
        refuse_overlap([Path(config.photos)], [target])
    try:
        with replacing_folder(target, overwrite=overwrite) as work:
            job = _Job(str(work), spec)
            _write_index(work, _write_all(job, jobs), spec.videos, progress)
            settings = {
                "seed": spec.seed,
                "split": spec.split,
                "videos": spec.videos,
                "world": asdict(config),
            }
            _write_json(
                work / _SETTINGS,
                {"schema": 1, "world_version": WORLD_VERSION, **settings, "sources": sources},
            )
    except OSError as error:
        raise InputError(cannot_write(target, error)) from error
    return target


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{target} exists already; choose another folder or allow overwriting")
    if not target.is_dir():
        raise InputError(f"{target} is a file, but a folder is needed")
    if any(target.iterdir()) and not (target / _SETTINGS).is_file():
        raise InputError(
            f"{target} is not a split of Moving Sprites (it has no {_SETTINGS}), so it is not "
            "replaced; choose another folder"
        )
    others = sorted({path.name for path in target.iterdir()} - _NAMES)
    if others:
        raise InputError(
            f"{target} also holds {others[0]}, which was not rendered and would be lost; move it, "
            "or choose another folder"
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """Hold a video file with its ground truth.

    masks: bool [T, K, H, W], the visible masks of ``video.objects``.
    """

    path: Path
    video: SpriteVideo
    masks: npt.NDArray[np.bool_]

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """Return the expressions of the video."""
        return self.video.expressions

    def truth(self, expression: Expression) -> npt.NDArray[np.bool_]:
        """Return the union of the masks of an expression's targets: bool [T, H, W]."""
        chosen = self.masks[:, list(expression.targets)]
        union: npt.NDArray[np.bool_] = np.logical_or.reduce(chosen, axis=1)
        return union


def sample_video(
    path: str | os.PathLike[str],
    *,
    seed: int,
    size: tuple[int, int] = (128, 224),
    frames: int = 24,
    kinds: Collection[Kind] = (),
    emoji: bool = False,
) -> Sample:
    """Write a video of the valid split as an H.264 file and return it with its ground truth.

    Equal arguments write equal bytes with the same PyAV on every machine. size: height and width in
    pixels, both even. kinds: kinds of expression that the video must have. Raises InputError: the
    size is odd, or the file cannot be written (see ``files.writing``); and the errors of
    ``find_video``.
    """
    height, width = size
    if height % 2 or width % 2:
        raise InputError(f"H.264 needs even sizes, found {height}x{width}")
    config = WorldConfig(height=height, width=width, frames=frames, emoji=emoji)
    video = find_video(seed, "valid", kinds, config)
    target = Path(path)
    masks = np.empty((frames, len(video.objects), height, width), np.bool_)
    try:
        with (
            writing(target) as temporary,
            av.open(f"file:{temporary.resolve()}", "w", format="mp4") as container,
        ):
            stream = container.add_stream("libx264", rate=_SAMPLE_FPS, options=_H264)
            stream.codec_context.thread_count = 1  # x264 cuts a frame into one slice per thread
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for t, (frame, mask) in enumerate(iterate(video)):
                masks[t] = mask
                for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    except (av.FFmpegError, OSError) as error:
        raise InputError(cannot_write(target, error)) from error
    return Sample(target, video, masks)
