"""Optimisation profiles: the sizes that an engine takes, from the bundle's axes and ``--profile``.

A profile gives every axis a least, a best and a greatest size. TensorRT picks kernels for the best
one and plans memory for the greatest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product

from rvos_deploy.bundle.engine_sidecar import Profile
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec

EXAMPLE = "H=128:256:448,W=224:448:800,E=1:2:8,M=1:24:64"
Sizes = tuple[int, int, int]

_EXPRESSIONS: Sizes = (1, 2, 8)
_TOKENS: Sizes = (2, 16, 77)
_MEMORY: Sizes = (1, 64, 256)
"""A stream starts with one frame and keeps 64 by default; offline it keeps the whole clip."""

_ENTRY = re.compile(r"(?P<axis>[A-Za-z]+)=(?P<sizes>\d+(?::\d+:\d+)?)")


def bundle_axes(bundle: Bundle) -> dict[str, AxisSpec]:
    """Every named axis of the bundle's graphs."""
    return {axis.name: axis for spec in bundle.graphs.values() for axis in spec.axes}


def default_profile(bundle: Bundle) -> dict[str, Sizes]:
    """Every axis's sizes where ``--profile`` says nothing.

    Height and width reach from the smallest map to the bundle's own input size, which is also the
    best: most videos fill it. That is landscape; portrait videos need a second ``--profile``. An
    axis that is not known here reaches over all that its contract allows.
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
    """One profile for each text, axes that it does not name at their defaults; or the default.

    Raises:
        InputError: not of the form, or sizes that the bundle's graphs do not allow.
    """
    axes, default = bundle_axes(bundle), default_profile(bundle)
    profiles = tuple(default | read_profile(text, axes) for text in texts)
    return profiles or (default,)


def read_profile(text: str, axes: Mapping[str, AxisSpec]) -> dict[str, Sizes]:
    """Sizes by axis from ``H=128:256:448,E=2``; a single number fixes the axis.

    Raises:
        InputError: another form, an unknown axis, one named twice, sizes out of order, or corners
            that the graphs do not allow; says which corners, and the nearest that they allow.
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
            problem = "is named twice" if axis in sizes else "is no axis of this bundle"
            raise InputError(f"--profile '{text}': {axis} {problem}; axes are {_allowed(axes)}")
        numbers = [int(number) for number in match["sizes"].split(":")]
        low, best, high = numbers * 3 if len(numbers) == 1 else numbers
        sizes[axis] = (low, best, high)
    _check(text, sizes, axes)
    return sizes


def _check(text: str, sizes: Mapping[str, Sizes], axes: Mapping[str, AxisSpec]) -> None:
    """All corners at once, so that one message tells everything."""
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
    """A stream encodes each sentence alone and starts with one frame: some profile must take that.
    Where the bundle's axis is fixed, the stream pads to it.

    Raises:
        InputError: none does; says what to add.
    """
    for axis, what in (("E", "one expression"), ("M", "a memory of one frame")):
        if axis in axes and axes[axis].fixed:
            continue
        if not any(profile[axis][0] == 1 for profile in profiles if axis in profile):
            raise InputError(
                f"no profile takes {what}, with which every stream starts; "
                f"begin the sizes of {axis} at 1, for example {axis}=1:2:8"
            )


def graph_profile(spec: GraphSpec, profile: Profile) -> dict[str, Sizes]:
    """The part of a profile that concerns one graph."""
    return {axis.name: profile[axis.name] for axis in spec.axes}


def input_shapes(spec: GraphSpec, profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Least, best and greatest shape of every input of a graph, by name."""
    at = [{axis.name: profile[axis.name][corner] for axis in spec.axes} for corner in range(3)]
    return {tensor.name: tuple(tensor.sizes(axes) for axes in at) for tensor in spec.inputs}


def corners(spec: GraphSpec, profiles: Sequence[Profile]) -> list[dict[str, int]]:
    """Sizes at which an engine must be compared: the best, and every mix of least and greatest."""
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
