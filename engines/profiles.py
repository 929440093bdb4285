"""Make optimisation profiles, the sizes that an engine supports, from the bundle and ``--profile``.

A profile gives every axis a least, a best and a greatest size. TensorRT picks kernels for the best
one and plans memory for the greatest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from rvos_deploy.bundle.engine_sidecar import Profile, format_profile, supports
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec
from rvos_deploy.stream_settings import DEFAULT_MEMORY

EXAMPLE = "H=128:256:448,W=224:448:800,E=1:2:8,M=1:24:64"
Sizes = tuple[int, int, int]

_EXPRESSIONS: Sizes = (1, 2, 8)
_TOKENS: Sizes = (2, 16, 77)
_MEMORY: Sizes = (1, DEFAULT_MEMORY, 256)
"""Online, M is the window plus the anchors from the first frame on, 64 by default. Offline, M is
the number of frames."""

_ENTRY = re.compile(r"(?P<axis>[A-Za-z]+)=(?P<sizes>\d+(?::\d+:\d+)?)")


def bundle_axes(bundle: Bundle) -> dict[str, AxisSpec]:
    """Return every named axis of the bundle's graphs."""
    return {axis.name: axis for spec in bundle.graphs.values() for axis in spec.axes}


def default_profile(bundle: Bundle) -> dict[str, Sizes]:
    """Return the sizes of every axis where ``--profile`` says nothing.

    Height and width reach from the smallest map to the bundle's own input size, which is also the
    best: most videos fill it. The default is landscape; portrait videos need a second
    ``--profile``. An axis that is unknown here has all sizes that its contract allows.
    """
    height, width = bundle.config.input_size
    axes = bundle_axes(bundle)
    known = {"E": _EXPRESSIONS, "L": _TOKENS, "M": _MEMORY}
    for name, size in (("H", height), ("W", width)):
        known[name] = (axes[name].minimum, size, size) if name in axes else (size, size, size)
    return {
        name: _within(known.get(name, (axis.minimum, axis.minimum, axis.maximum)), axis)
        for name, axis in axes.items()
    }


def _within(sizes: Sizes, axis: AxisSpec) -> Sizes:
    low, best, high = (min(max(size, axis.minimum), axis.maximum) for size in sizes)
    return low, best, high


def read_profiles(texts: Sequence[str], bundle: Bundle) -> tuple[dict[str, Sizes], ...]:
    """Parse one profile from each text; axes that a text does not name keep their defaults.

    Raises:
        InputError: a text is malformed, or the bundle's graphs do not allow its sizes.
    """
    axes, default = bundle_axes(bundle), default_profile(bundle)
    profiles = tuple(default | read_profile(text, axes) for text in texts)
    return profiles or (default,)


def read_profile(text: str, axes: Mapping[str, AxisSpec]) -> dict[str, Sizes]:
    """Parse sizes by axis from ``H=128:256:448,E=2``; a single number fixes the axis.

    Raises:
        InputError: the text is malformed, an axis is unknown or named twice, sizes are out of
            order, or the graphs do not allow a corner; gives the corners and the nearest sizes that
            are allowed.
    """
    sizes: dict[str, Sizes] = {}
    for entry in text.replace(" ", "").split(","):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise InputError(
                f"--profile '{text}': '{entry}' is not AXIS=MIN:OPT:MAX or AXIS=SIZE; "
                f"for example {EXAMPLE}"
            )
        axis = match["axis"]
        if axis not in axes or axis in sizes:
            problem = "is named twice" if axis in sizes else "is not an axis of this bundle"
            raise InputError(f"--profile '{text}': {axis} {problem}; axes are {_allowed(axes)}")
        numbers = [int(number) for number in match["sizes"].split(":")]
        low, best, high = numbers * 3 if len(numbers) == 1 else numbers
        sizes[axis] = (low, best, high)
    _check(text, sizes, axes)
    return sizes


def _check(text: str, sizes: Mapping[str, Sizes], axes: Mapping[str, AxisSpec]) -> None:
    """Check all corners at once, so that one message reports all problems."""
    problems = []
    for name, (low, best, high) in sizes.items():
        if not low <= best <= high:
            problems.append(f"{name}={low}:{best}:{high} is not in order, min <= opt <= max")
            continue
        corners = zip(("min", "opt", "max"), (low, best, high), strict=True)
        wrong = [f"{corner} {size}" for corner, size in corners if not _allows(axes[name], size)]
        if wrong:
            problems.append(f"{name} cannot be {', '.join(wrong)}")
    if problems:
        nearest = ",".join(
            f"{name}={':'.join(str(axes[name].nearest(size)) for size in sorted(three))}"
            for name, three in sizes.items()
        )
        raise InputError(
            f"--profile '{text}': {'; '.join(problems)}; the graphs allow {_allowed(axes)}; "
            f"nearest: --profile {nearest}"
        )


def _allows(axis: AxisSpec, size: int) -> bool:
    try:
        axis.check(size)
    except InputError:
        return False
    return True


def _allowed(axes: Mapping[str, AxisSpec]) -> str:
    return ", ".join(
        f"{axis.name} {axis.maximum} alone"
        if axis.fixed
        else f"{axis.name} {axis.minimum} to {axis.maximum}"
        + (f" in multiples of {axis.multiple}" if axis.multiple > 1 else "")
        for axis in axes.values()
    )


def check_streamable(profiles: Sequence[Profile], axes: Mapping[str, AxisSpec]) -> None:
    """Check that a stream of one expression can run with default settings, online and offline.

    Online, M is the window plus the anchors from the first frame on. Offline, M is the number of
    frames, so a clip of one frame needs M=1. A stream pads axes that the bundle fixes to one size.

    Args:
        profiles: of all axes of the bundle.
        axes: of the bundle, by name.

    Raises:
        InputError: no profile supports one of the two; gives a ``--profile`` that supports both.
    """
    needs = {
        "an online stream with its default memory": {"E": 1, "M": DEFAULT_MEMORY},
        "an offline stream of one frame": {"E": 1, "M": 1},
    }
    needed = {what: _stream_sizes(sizes, axes) for what, sizes in needs.items()}
    for what, sizes in needed.items():
        if not any(supports(profile, sizes) for profile in profiles):
            named = ", ".join(f"{name}={size}" for name, size in sizes.items())
            wider = format_profile(_widened(profiles[0], needed.values()))
            raise InputError(
                f"no profile supports {named}, which {what} needs; widen one: --profile {wider}"
            )


def _stream_sizes(sizes: Mapping[str, int], axes: Mapping[str, AxisSpec]) -> dict[str, int]:
    """Return the nearest sizes that the bundle allows, without the axes that it fixes."""
    return {
        name: axes[name].nearest(size)
        for name, size in sizes.items()
        if name in axes and not axes[name].fixed
    }


def _widened(profile: Profile, needed: Iterable[Mapping[str, int]]) -> Profile:
    wider = dict(profile)
    for sizes in needed:
        for name, size in sizes.items():
            low, best, high = wider[name]
            wider[name] = (min(low, size), best, max(high, size))
    return wider


def graph_profile(spec: GraphSpec, profile: Profile) -> dict[str, Sizes]:
    """Return the part of a profile that concerns one graph."""
    return {axis.name: profile[axis.name] for axis in spec.axes}


def input_shapes(spec: GraphSpec, profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the least, best and greatest shape of every input of a graph, by name."""
    at = [{axis.name: profile[axis.name][corner] for axis in spec.axes} for corner in range(3)]
    return {tensor.name: tuple(tensor.sizes(axes) for axes in at) for tensor in spec.inputs}


def corners(spec: GraphSpec, profiles: Sequence[Profile]) -> list[dict[str, int]]:
    """Return the sizes at which an engine is compared: the best, and every mix of least and
    greatest.
    """
    found: list[dict[str, int]] = []
    names = [axis.name for axis in spec.axes]
    for profile in profiles:
        extremes = [sorted({profile[name][0], profile[name][2]}) for name in names]
        best = tuple(profile[name][1] for name in names)
        for sizes in (best, *product(*extremes)):
            axes = dict(zip(names, sizes, strict=True))
            if axes not in found:
                found.append(axes)
    return found
