"""Read the frames that int8 is calibrated on, from the user's own video or data set.

Frames are fitted to the network's input as in a stream. Every second one calibrates; the others
measure the error, so the error is of frames that set no range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.datasets.layout import FRAMES, find_split
from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.graph_io.frame_geometry import resize_frame
from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.images import read_rgb
from rvos_deploy.networks.network import Network
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import read_video
from rvos_deploy.video.sources.folder import image_files
from rvos_deploy.video.sources.registry import has_end

Image = NDArray[np.uint8]
Fit = Callable[[Image], Image]
"""Makes the network's input of an RGB image [H,W,3]."""

DEFAULT_FRAMES = 32
"""Number of frames, of which half calibrate."""
MINIMUM_FRAMES = 2
MAXIMUM_ERROR = 0.015
"""Default of the greatest allowed error of any output: root mean square of the difference from
float32, over that of float32, on frames that set no range. The products of the trained ``tiny`` err
by 0.009 at most, its four dense convolutions by 0.03 (their outputs are rounded too)."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Name the frames for int8.

    Args:
        source: a video file, a folder of images, or a split of a data set.
        frames: number of frames to take from it, spread evenly.
        maximum_error: greatest allowed error of the graph's outputs, above 0 (``MAXIMUM_ERROR``).
    """

    source: str
    frames: int = DEFAULT_FRAMES
    maximum_error: float = MAXIMUM_ERROR


@dataclass(frozen=True, eq=False)
class Calibration:
    """Hold frames as the network's inputs, uint8 [1,H,W,3], and the name of their source.

    ``maximum_error`` is that of the options.
    """

    source: str
    calibrating: tuple[Image, ...]
    measuring: tuple[Image, ...]
    maximum_error: float = MAXIMUM_ERROR


def check_calibration(precision: Precision, options: CalibrationOptions | None) -> None:
    """Check that frames are named for int8, and for int8 alone; reads nothing.

    Raises InputError: they are missing, too few, not needed, or their source does not exist.
    """
    if precision != "int8":
        if options is not None:
            raise InputError(
                f"--calibration is for --precision int8, and this is {precision}; leave it out"
            )
        return
    if options is None:
        raise InputError(
            "--precision int8 needs frames like those that the network will see, to measure the "
            "range of every layer; pass --calibration VIDEO, or the folder of a data set's split"
        )
    if options.frames < MINIMUM_FRAMES:
        raise InputError(
            f"--calibration-frames must be at least {MINIMUM_FRAMES}, found {options.frames}: half "
            f"of them calibrate, and half measure the error; {DEFAULT_FRAMES} are usual"
        )
    if not options.maximum_error > 0:
        raise InputError(
            f"--maximum-int8-error must be above 0, found {options.maximum_error:g}; "
            f"{MAXIMUM_ERROR} is the default"
        )
    if not has_end(options.source):
        raise InputError(
            f"--calibration {options.source} has no end, and frames are spread over the whole; "
            "give a video file, a folder of images or a data set"
        )
    if not Path(options.source).exists():
        raise InputError(
            f"--calibration {options.source} does not exist; give a video file, a folder of "
            "images, or the folder of a data set's split"
        )


def read_calibration(
    options: CalibrationOptions, network: Network, fixed: tuple[int, int] | None
) -> Calibration:
    """Read the frames, and fit them to the network's input.

    Args:
        options: as checked by :func:`check_calibration`.
        network: fits frames to its input.
        fixed: fixed (height, width) of the graphs; None if they accept several sizes.

    Raises:
        InputError: there are fewer than two frames, or the data set cannot be read.
        VideoError: the video cannot be read.
    """
    settings = network.with_size(StreamSettings(), fixed)

    def fitted(image: Image) -> Image:
        height, width = image.shape[:2]
        return resize_frame(image, network.geometry((height, width), settings, fixed))

    files = _split_files(options.source)
    if files is None:
        images = (np.asarray(frame.image) for frame in read_video(options.source))
        frames = spread_frames(images, options.frames, fitted)
    else:
        chosen = _spread(len(files), options.frames)
        frames = [fitted(read_rgb(files[i])) for i in chosen]
    if len(frames) < MINIMUM_FRAMES:
        raise InputError(
            f"--calibration {options.source} holds {len(frames)} frame, needed: at least "
            f"{MINIMUM_FRAMES}; give a longer video, better one of {DEFAULT_FRAMES} frames or more"
        )
    name = Path(options.source).resolve().name
    return Calibration(name, tuple(frames[::2]), tuple(frames[1::2]), options.maximum_error)


def spread_frames(images: Iterator[Image], count: int, fitted: Fit) -> list[Image]:
    """Return ``count`` frames of a stream of unknown length, spread evenly.

    At most twice as many are kept: whenever they are that many, every second one is dropped, and
    from then on every second image passed over.
    """
    kept: list[Image] = []
    step = 1
    for index, image in enumerate(images):
        if index % step == 0:
            kept.append(fitted(image))
            if len(kept) == 2 * count:
                del kept[1::2]
                step *= 2
    return [kept[i] for i in _spread(len(kept), count)]


def _spread(length: int, count: int) -> list[int]:
    if length <= count:
        return list(range(length))
    return [int(i) for i in np.linspace(0, length - 1, count).round()]


def _holds_images(folder: Path) -> bool:
    try:
        return bool(image_files(folder))
    except VideoError:
        return False


def _split_files(source: str) -> Sequence[Path] | None:
    """Return all frames of a data set's split; None for a video or a folder of images."""
    path = Path(source)
    if path.suffix != ".json" if path.is_file() else _holds_images(path):
        return None
    split = find_split(path)
    try:
        videos = sorted(video for video in (split.folder / FRAMES).iterdir() if video.is_dir())
    except OSError as error:
        raise InputError(
            f"{split.folder / FRAMES} cannot be read ({error.strerror}); it should hold the "
            f"frames of {split.meta}"
        ) from None
    return [file for video in videos for file in image_files(video)]
