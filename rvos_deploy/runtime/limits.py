"""Check a request against the limits of a bundle's graphs before the first frame."""

from __future__ import annotations

from collections.abc import Mapping

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.graph_spec import GraphSpec, fixed_box
from rvos_deploy.stream_settings import DEFAULT_MEMORY, StreamSettings

MAXIMUM_EXPRESSIONS = 256
"""Most expressions of one stream. A graph that is fixed to fewer expressions runs in chunks."""


def check_limits(
    graphs: Mapping[str, GraphSpec],
    settings: StreamSettings,
    expressions: int,
    frames: int | None = None,
) -> None:
    """Refuse a request that the contract of a graph does not allow.

    Args:
        graphs: contracts by name.
        settings: settings of the stream, with a size or a short side (``Network.with_size``).
        expressions: number of expressions that are followed at once.
        frames: number of frames of the video; None: unknown.

    Raises:
        InputError: the message says what is allowed and what to do.
    """
    largest = _largest(graphs)
    most = largest.get("E", expressions)
    if any("E" in spec.fixed for spec in graphs.values()):
        most = MAXIMUM_EXPRESSIONS  # fixed graphs run in chunks
    if expressions > most:
        raise InputError(
            f"found {expressions} expressions, at most {most} go into one run; split them into "
            "several runs"
        )
    if settings.size is not None:
        _check_size(settings.size, fixed_box(graphs), largest)
    if settings.short_side is not None:
        _check_short_side(settings.short_side, fixed_box(graphs), largest)
    _check_memory(largest.get("M"), settings, frames)


def check_geometry(graphs: Mapping[str, GraphSpec], geometry: FrameGeometry) -> None:
    """Refuse a frame whose resized side would exceed the limit of the graphs.

    Raises InputError: the message gives the resized frame, and what to do.
    """
    largest, (height, width) = _largest(graphs), geometry.padded
    if height > largest.get("H", height) or width > largest.get("W", width):
        shown = geometry.display
        raise InputError(
            f"a frame of {shown[1]}x{shown[0]} pixels becomes {width}x{height}, and this bundle "
            f"accepts sides up to {min(largest['H'], largest['W'])}; give a smaller --short-side, "
            "or a box with --size"
        )


def _check_size(
    box: tuple[int, int], only: tuple[int, int] | None, largest: Mapping[str, int]
) -> None:
    if only is not None and box != only:
        raise InputError(
            f"size {box[0]}x{box[1]} is not the one that this bundle is fixed to, "
            f"{only[0]}x{only[1]}; leave --size out, or export another bundle"
        )
    for axis, side in zip("HW", box, strict=True):
        if side > (most := largest.get(axis, side)):
            raise InputError(
                f"size {box[0]}x{box[1]} is too large: this bundle accepts sides up to {most}; "
                "give a smaller --size"
            )


def _check_short_side(side: int, only: tuple[int, int] | None, largest: Mapping[str, int]) -> None:
    if only is not None:
        raise InputError(
            f"this bundle is fixed to frames of {only[0]}x{only[1]}; leave --short-side out"
        )
    if side > (most := min(largest.get("H", side), largest.get("W", side))):
        raise InputError(
            f"short side {side} is too large: this bundle accepts sides up to {most}; give a "
            "smaller --short-side"
        )


def _check_memory(most: int | None, settings: StreamSettings, frames: int | None) -> None:
    if most is None:
        return
    if settings.window is None:
        if frames is not None and frames > most:
            online = "--mode online, " if most >= DEFAULT_MEMORY else ""
            raise InputError(
                f"the video has {frames} frames, and offline at most {most} can be remembered; use "
                f"--memory {most}, {online}or --max-frames {most}"
            )
    elif settings.window + settings.anchors > most:
        raise InputError(
            f"memory {settings.window} and anchors {settings.anchors} are more than the {most} "
            "frames that can be remembered; give a smaller --memory or --anchors"
        )


def _largest(graphs: Mapping[str, GraphSpec]) -> dict[str, int]:
    """Return the greatest size of every axis that all graphs allow."""
    largest: dict[str, int] = {}
    for spec in graphs.values():
        for axis in spec.axes:
            largest[axis.name] = min(axis.maximum, largest.get(axis.name, axis.maximum))
    return largest
