"""Read the types that layers compute in, from the parsed network and from the built engine.

TensorRT 11 takes types from the ONNX. This module checks that they arrive: a build that silently
stays in float32 is correct, and several times too slow.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rvos_deploy.errors import ParityError

if TYPE_CHECKING:
    import tensorrt as trt

HALF = {"fp16": "float16", "bf16": "bfloat16"}
"""The type that layers must have, by the bundle's precision; fp32 bundles need none."""

MINIMUM_SHARE = 0.5
"""The least share of a half-precision bundle's multiplying layers that must be half precision. Its
fp32 islands are small: softmax, LayerNorm, locations, mask logits.
"""

MINIMUM_KEPT = 0.5
"""The share of half layers in the engine, over that in the network, below which a build warns.

The two shares are of different layers: fusion merges some kinds more than others, so a good engine
may lie below. NOT RUN: to be set from real engines; then it can refuse.
"""

_MULTIPLYING = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "PLUGIN_V3"}
_FLOATS = {"float32", "float16", "bfloat16"}
# Spellings of types in the inspector's report: "Half", "FP16", "Row major linear FP16 format", ...
_SPELLINGS = (
    ("bfloat16", ("bf16", "bfloat16")),
    ("float16", ("fp16", "half", "float16")),
    ("float32", ("fp32", "float32", "float")),
)
_TYPE_KEYS = ("datatype", "format/datatype", "format")


def network_types(network: trt.INetworkDefinition) -> dict[str, Any]:
    """Count the layers of a parsed network by the type of their first output.

    Returns:
        ``all``: layers by type; ``multiplying``: convolutions, matrix products and plugins alone;
            ``kinds``: layers by kind.
    """
    every: Counter[str] = Counter()
    multiplying: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = _enum_name(layer.type)
        kinds[kind] += 1
        if layer.num_outputs == 0:
            continue
        dtype = _dtype_name(layer.get_output(0).dtype)
        every[dtype] += 1
        if kind in _MULTIPLYING:
            multiplying[dtype] += 1
    return {"all": dict(every), "multiplying": dict(multiplying), "kinds": dict(kinds)}


def _enum_name(value: Any) -> str:
    """Return the name of an enum member: ``LayerType.CONVOLUTION`` -> ``CONVOLUTION``."""
    return str(value).rsplit(".", 1)[-1]


def _dtype_name(value: Any) -> str:
    """Return NumPy's name of a TensorRT type: ``DataType.HALF`` -> ``float16``."""
    name = _enum_name(value).lower()
    return {"float": "float32", "half": "float16", "bf16": "bfloat16"}.get(name, name)


def inspected_types(report: str) -> dict[str, int]:
    """Count the layers in the engine inspector's JSON by the type of their first output.

    Args:
        report: ``get_engine_information`` of an engine built with detailed verbosity, for a context
            whose shapes are set. TensorRT 11 names the type ``DataType``, TensorRT 10 within
            ``Format/Datatype``. Other types are counted as ``unknown``.
    """
    found: Counter[str] = Counter()
    for layer in json.loads(report).get("Layers", []):
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        found[_inspected(outputs[0]) if outputs else "unknown"] += 1
    return dict(found)


def _inspected(tensor: Mapping[str, Any]) -> str:
    values = {key.lower(): str(value).lower() for key, value in tensor.items()}
    text = next((values[key] for key in _TYPE_KEYS if key in values), "")
    for name, spellings in _SPELLINGS:
        if any(spelling in text for spelling in spellings):
            return name
    return next((name for name in ("int64", "int32", "int8", "bool") if name in text), "unknown")


def half_share(counts: Mapping[str, int], precision: str) -> float:
    """Return the share of half-precision layers among those of real numbers; 0 where there are
    none.
    """
    real = sum(count for name, count in counts.items() if name in _FLOATS)
    return counts.get(HALF.get(precision, ""), 0) / real if real else 0.0


def check_network(counts: Mapping[str, int], precision: str, what: str) -> None:
    """Check that a half-precision bundle's networks multiply in half precision.

    Args:
        counts: ``multiplying`` of :func:`network_types`.
        precision: of the bundle.
        what: names the networks in the message.

    Raises:
        ParityError: too few layers are half precision.
    """
    if precision in HALF and half_share(counts, precision) < MINIMUM_SHARE:
        raise ParityError(
            f"{what}: {half_share(counts, precision):.0%} of the multiplying layers are "
            f"{HALF[precision]}, at least {MINIMUM_SHARE:.0%} are needed of a {precision} bundle; "
            f"export it again with --precision {precision}"
        )


def warn_of_lost_types(
    network: Mapping[str, int], engine: Mapping[str, int], precision: str, what: str
) -> None:
    """Warn where an engine seems to have lost the half precision of its network.

    It may be slow, and its numbers are checked all the same.

    Args:
        network: layers by type, of the network.
        engine: layers by type, of the engine.
        precision: of the bundle.
        what: names the engine in the message.
    """
    if precision not in HALF:
        return
    expected = MINIMUM_KEPT * half_share(network, precision)
    found = half_share(engine, precision)
    if not any(name in engine for name in _FLOATS):
        message = "the types of the engine's layers cannot be read"
    elif found < expected:
        message = (
            f"{found:.0%} of the engine's layers are {HALF[precision]}, {expected:.0%} were "
            "expected, so it may be slow"
        )
    else:
        return
    warnings.warn(f"{what}: {message} (it has {dict(engine)})", RuntimeWarning, stacklevel=2)
