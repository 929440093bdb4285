"""Compare the contracts of a bundle's graphs with those that a family needs.

Upper-case sizes are dynamic axes. Lower-case sizes must be equal wherever they occur. ``real`` is
the type of tensors between the graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rvos_deploy.errors import BundleError, InputError
from rvos_deploy.graph_io.graph_spec import Dim, GraphSpec, TensorSpec

MAXIMUM_ELEMENTS = 1 << 28
"""Upper bound for one tensor at the sizes that ``verify`` runs: 1 GiB in float32."""

Tensors = Mapping[str, tuple[str, tuple[Dim, ...]]]
"""Type and shape by name."""


@dataclass(frozen=True)
class Contract:
    """Name the exact inputs of a graph, and the outputs that it must have at least, in order."""

    inputs: Tensors
    outputs: Tensors


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes with which a family's contracts are checked.

    Args:
        known: values of lower-case sizes, by name.
        cases: sizes of all axes at which ``verify`` runs the graphs.
        input_size: (height, width) in pixels that the bundle's frames have by default.
    """

    known: Mapping[str, int]
    cases: Sequence[Mapping[str, int]]
    input_size: tuple[int, int]


def check_contracts(
    graphs: Mapping[str, GraphSpec], contracts: Mapping[str, Contract], sizes: Sizes
) -> None:
    """Check that the contracts of a bundle's graphs are those of a network.

    Raises:
        BundleError: a graph, tensor or axis is missing, or has another type or size; the message
            says which.
    """
    if set(graphs) != set(contracts):
        raise _wrong("graphs", f"are {', '.join(graphs) or 'none'}", ", ".join(contracts))
    known: dict[str, Dim] = dict(sizes.known)
    for name, needed in contracts.items():
        spec = graphs[name]
        if spec.name != name:
            raise _wrong(name, f"is named {spec.name}", name)
        inputs, outputs = _by_name(spec.inputs, name), _by_name(spec.outputs, name)
        if set(inputs) != set(needed.inputs):
            found = f"has the inputs {', '.join(inputs) or 'none'}"
            raise _wrong(name, found, ", ".join(needed.inputs))
        missing = [output for output in needed.outputs if output not in outputs]
        if missing:
            raise _wrong(name, f"lacks the outputs {', '.join(missing)}", "all of them")
        for tensor, (dtype, shape) in {**needed.inputs, **needed.outputs}.items():
            _match(name, inputs.get(tensor) or outputs[tensor], dtype, shape, known)
        _check_axes(spec)
        _check_sizes(spec, sizes)


def _by_name(tensors: tuple[TensorSpec, ...], graph: str) -> dict[str, TensorSpec]:
    found = {tensor.name: tensor for tensor in tensors}
    if len(found) < len(tensors):
        raise _wrong(graph, "names a tensor twice", "every name once")
    return found


def _match(
    graph: str, found: TensorSpec, dtype: str, shape: tuple[Dim, ...], known: dict[str, Dim]
) -> None:
    """Compare a tensor with its contract; the first occurrence of a name fixes its size."""
    if dtype == "real":
        dtype = str(known.setdefault("real", found.dtype))
    fits = (
        found.dtype == dtype and found.dtype in _REAL | {dtype} and len(found.shape) == len(shape)
    )
    wanted: list[Dim] = list(shape)
    for index, (dim, there) in enumerate(zip(shape, found.shape, strict=False)):
        if isinstance(dim, str) and dim.islower():
            wanted[index] = known.setdefault(dim, there)
    if not fits or tuple(wanted) != found.shape:
        raise _wrong(
            graph,
            f"has {found.name} as {found.dtype} {_shown(found.shape)}",
            f"{dtype} {_shown(wanted)}",
        )


_REAL = {"float16", "float32"}


def _check_axes(spec: GraphSpec) -> None:
    """Check that every axis has bounds once, occurs in an input, and divides exactly."""
    axes = {axis.name: axis for axis in spec.axes}
    of_inputs = {name for tensor in spec.inputs for name in tensor.axes}
    if len(axes) < len(spec.axes) or set(axes) != of_inputs:
        found = ", ".join(axis.name for axis in spec.axes) or "none"
        raise _wrong(spec.name, f"has the axes {found}", ", ".join(sorted(of_inputs)))
    for tensor in (*spec.inputs, *spec.outputs):
        for name, divisor in tensor.axes.items():
            if name not in axes or axes[name].multiple % divisor:
                raise _wrong(
                    spec.name,
                    f"has {tensor.name} as {_shown(tensor.shape)}",
                    f"axes of its inputs, {name} in multiples of {divisor}",
                )


def _check_sizes(spec: GraphSpec, allowed: Sizes) -> None:
    """Check that the bundle's input size is allowed, and that no tensor is too large."""
    for case in allowed.cases:
        for tensor in (*spec.inputs, *spec.outputs):
            sizes = tensor.sizes(spec.axis_sizes(case))
            if math.prod(sizes) > MAXIMUM_ELEMENTS:
                raise _wrong(
                    spec.name,
                    f"has {tensor.name} as {_shown(sizes)}",
                    f"at most {MAXIMUM_ELEMENTS} elements",
                )
    height, width = allowed.input_size
    for axis in spec.axes:
        size = {"H": height, "W": width}.get(axis.name)
        if size is not None:
            try:
                axis.check(size)
            except InputError as error:
                raise _wrong(spec.name, str(error), f"the bundle's size {height}x{width}") from None


def _shown(shape: tuple[Dim, ...] | list[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _wrong(graph: str, found: str, needed: str) -> BundleError:
    return BundleError(
        f"the manifest's contracts do not fit the network: {graph} {found}, needed: {needed}; "
        "export the bundle again"
    )
