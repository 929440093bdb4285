"""Check the graphs of a bundle when it is opened, so that a stream misses nothing later.

Upper-case sizes are dynamic axes. Lower-case sizes must be equal wherever they occur; ``dim`` and
``slots`` come from the configuration. ``real`` is the type of tensors between the graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rvos_deploy.errors import BundleError, InputError
from rvos_deploy.graph_io.graph_spec import Dim, GraphSpec, TensorSpec
from rvos_deploy.networks.pan2024.config import ModelConfig

MAXIMUM_ELEMENTS = 1 << 28
"""Upper bound for one tensor at the sizes that ``verify`` runs: 1 GiB in float32."""

Tensors = Mapping[str, tuple[str, tuple[Dim, ...]]]
"""Type and shape by name."""

_PYRAMID: Tensors = {
    f"res{level}": ("real", (1, f"c{level}", f"H/{2**level}", f"W/{2**level}"))
    for level in range(2, 6)
}
_TEXT: Tensors = {
    "text_tokens": ("real", ("E", "L", "dim")),
    "sentence": ("real", ("E", "dim")),
    "text_padding": ("bool", ("E", "L")),
}
_FEATURES: Tensors = {"mask_features": ("real", ("E", "dim", "H/4", "W/4"))}
_OF_FRAME: Tensors = {"frame_mask_embeddings": ("real", ("E", "slots", "dim"))}
_SCORES: Tensors = {"scores": ("float32", ("E", "slots"))}
_OF_VIDEO: Tensors = {"mask_embeddings": ("real", ("E", "slots", "dim"))}


@dataclass(frozen=True)
class Contract:
    """Name the exact inputs of a graph, and the outputs that it must have at least, in order."""

    inputs: Tensors
    outputs: Tensors


CONTRACTS = {
    "backbone": Contract({"frame": ("uint8", (1, "H", "W", 3))}, _PYRAMID),
    "text_encoder": Contract({"token_ids": ("int64", ("E", "L"))}, _TEXT),
    "frame_decoder": Contract(
        {**_PYRAMID, **_TEXT},
        {
            **_FEATURES,
            "frame_queries": ("real", ("E", "slots", "dim")),
            **_OF_FRAME,
            "slot_values": ("real", ("E", "slots", "dim")),
            "slot_logits": ("real", ("E", "slots")),
            "slot_position": ("float32", ("E", "slots", 5)),
            "slot_content": ("real", ("E", "slots", "content")),
            "slot_score": ("float32", ("E", "slots")),
        },
    ),
    "video_decoder": Contract(
        {
            "memory": ("real", ("E", "M", "slots", "dim")),
            "memory_ages": ("float32", ("E", "M")),
            "memory_empty": ("bool", ("E", "M")),
            "video_queries": ("real", ("E", "slots", "dim")),
            **_TEXT,
        },
        {**_SCORES, **_OF_VIDEO},
    ),
    "mask_head": Contract(
        {**_SCORES, "threshold": ("float32", ("E",)), **_OF_VIDEO, **_OF_FRAME, **_FEATURES},
        {"mask_logits": ("float32", ("E", "H/4", "W/4"))},
    ),
}
GRAPHS = tuple(CONTRACTS)
"""Names of a bundle's graphs, in the order in which they run."""


def probe_cases(config: ModelConfig) -> list[dict[str, int]]:
    """Return the sizes for parity checks: the smallest, uncommon ones, and the bundle's own."""
    height, width = config.input_size
    return [
        {"H": 32, "W": 32, "E": 1, "L": 2, "M": 1},
        {"H": 64, "W": 96, "E": 3, "L": 9, "M": 4},
        {"H": 160, "W": 64, "E": 2, "L": 77, "M": 17},
        {"H": height, "W": width, "E": 1, "L": 12, "M": 64},
    ]


def check_contracts(graphs: Mapping[str, GraphSpec], config: ModelConfig) -> None:
    """Check that these contracts are those of this network.

    Raises:
        BundleError: a graph, tensor or axis is missing, or has another type or size; the message
            says which.
    """
    if set(graphs) != set(GRAPHS):
        raise _wrong("graphs", f"are {', '.join(graphs) or 'none'}", f"{', '.join(GRAPHS)}")
    known: dict[str, Dim] = {"dim": config.dim, "slots": config.num_queries}
    for name, needed in CONTRACTS.items():
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
        _check_sizes(spec, config)


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


def _check_sizes(spec: GraphSpec, config: ModelConfig) -> None:
    """Check that the bundle's input size is allowed, and that no tensor is too large."""
    for case in probe_cases(config):
        for tensor in (*spec.inputs, *spec.outputs):
            sizes = tensor.sizes(spec.at(case))
            if math.prod(sizes) > MAXIMUM_ELEMENTS:
                raise _wrong(
                    spec.name,
                    f"has {tensor.name} as {_shown(sizes)}",
                    f"at most {MAXIMUM_ELEMENTS} elements",
                )
    height, width = config.input_size
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
