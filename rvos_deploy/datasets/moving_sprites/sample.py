"""One sprite world as an ordinary video file, with its expressions and ground truth."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from rvos_deploy.datasets.moving_sprites.generate import make_video
from rvos_deploy.datasets.moving_sprites.palette import Split
from rvos_deploy.datasets.moving_sprites.render import iterate
from rvos_deploy.datasets.moving_sprites.world import Expression, Kind, SpriteVideo, WorldConfig
from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, writing

_SEARCHED = 400  # videos tried for the kinds of expression that are asked for


@dataclass(frozen=True, eq=False)
class Sample:
    """A video file and what is in it. masks: bool [T, K, H, W], visible masks of video.objects."""

    path: Path
    video: SpriteVideo
    masks: npt.NDArray[np.bool_]

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """The sentences that fit this video."""
        return self.video.expressions

    def truth(self, expression: Expression) -> npt.NDArray[np.bool_]:
        """Return what ``expression`` means: bool [T, H, W], the union of its objects' masks."""
        chosen = self.masks[:, list(expression.targets)]
        union: npt.NDArray[np.bool_] = np.logical_or.reduce(chosen, axis=1)
        return union


def find_video(
    seed: int, split: Split, kinds: Collection[Kind], config: WorldConfig | None = None
) -> SpriteVideo:
    """Return the first video of a split that has an expression of each of ``kinds``.

    Raises InputError where none of the first 400 has.
    """
    for index in range(_SEARCHED):
        video = make_video(seed, split, index, config)
        if {e.kind for e in video.expressions}.issuperset(kinds):
            return video
    raise InputError(
        f"none of {_SEARCHED} videos of seed {seed} has expressions of {', '.join(sorted(kinds))}"
    )


def _h264(quality: int) -> dict[str, str]:
    # Without cpu-independent, x264 chooses some methods by the instructions that the processor has.
    return {"crf": str(quality), "x264-params": "cpu-independent=1"}


def sample_video(
    path: str | os.PathLike[str],
    *,
    seed: int,
    size: tuple[int, int] = (128, 224),
    frames: int = 24,
    split: Split = "valid",
    kinds: Collection[Kind] = (),
    emoji: bool = False,
    photos: str | None = None,
    fps: int = 8,
    quality: int = 16,
) -> Sample:
    """Write one world as an H.264 file and return it with its ground truth.

    The same arguments give the same bytes with the same PyAV, whatever the machine. size: height
    and width in pixels, both even. kinds: expressions that it must have. quality: H.264's constant
    rate factor, less is better. Raises InputError for an odd size, a file that cannot be written
    (see ``files.writing``), and as ``find_video``.
    """
    height, width = size
    if height % 2 or width % 2:
        raise InputError(f"H.264 needs even sizes, found {height}x{width}")
    config = WorldConfig(height=height, width=width, frames=frames, emoji=emoji, photos=photos)
    video = find_video(seed, split, kinds, config)
    target = Path(path)
    masks = np.empty((frames, len(video.objects), height, width), np.bool_)
    try:
        with (
            writing(target) as temporary,
            av.open(f"file:{temporary.resolve()}", "w", format="mp4") as container,
        ):
            stream = container.add_stream("libx264", rate=fps, options=_h264(quality))
            stream.codec_context.thread_count = 1  # slices, so pixels, would follow the cores
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
