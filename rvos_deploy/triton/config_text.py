"""Write ``config.pbtxt`` files, which configure the models of a Triton repository.

They are written as text, so an export needs neither protobuf nor tritonclient. The tests parse
them by Triton's own schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec

_TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}
_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Port:
    """Describe an input or output of the stream model.

    Args:
        name: its name.
        type: Triton's name of its type.
        dims: -1 is any size.
        optional: whether a request may leave it out.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    optional: bool = False


FRAME = Port("FRAME", "TYPE_UINT8", (-1, -1, 3), optional=True)
EXPRESSIONS = Port("EXPRESSIONS", "TYPE_STRING", (-1,), optional=True)
SETTINGS = Port("SETTINGS", "TYPE_STRING", (1,), optional=True)
STREAM_INPUTS = (FRAME, EXPRESSIONS, SETTINGS)
STREAM_OUTPUTS = (
    Port("DECIDED", "TYPE_INT64", (-1,)),
    Port("INDEX", "TYPE_INT64", (-1,)),
    Port("EXPRESSION", "TYPE_INT64", (-1,)),
    Port("TEXT", "TYPE_STRING", (-1,)),
    Port("SCORE", "TYPE_FP32", (-1,)),
    Port("BOX", "TYPE_INT32", (-1, 4)),
    Port("RLE", "TYPE_STRING", (-1,)),
    Port("MASK", "TYPE_BOOL", (-1, -1, -1)),
)
"""DECIDED: numbers of the frames that this request decided; the other outputs have one row for each
of their expressions."""
START, END, CORRELATION = "START", "END", "CORRID"


Device = Literal["auto", "cpu", "gpu"]
"""Where a graph runs; ``auto``: as Triton decides."""
_KINDS: Mapping[Device, str] = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


def graph_config(
    name: str, spec: GraphSpec, backend: Mapping[str, str], device: Device, profiles: int = 1
) -> str:
    """Return the configuration of a model that is one graph.

    Args:
        name: of the model.
        spec: contract of the graph. Its axes are Triton's dynamic dimensions, with sizes of -1.
        backend: ``backend`` with its name, and ``default_model_filename``.
        device: where it runs.
        profiles: number of optimisation profiles of a plan. Triton uses only those that are named.

    Raises:
        BundleError: the graph has a tensor that Triton cannot pass on.
    """
    named = ", ".join(f'"{number}"' for number in range(profiles))
    chosen = f" profile: [ {named} ]" if profiles > 1 else ""
    return _text(
        name,
        backend,
        _tensors("input", spec.inputs, spec.fixed),
        _tensors("output", spec.outputs, spec.fixed),
        f"instance_group [ {{ count: 1 kind: {_KINDS[device]}{chosen} }} ]",
    )


def stream_config(
    name: str,
    parameters: Mapping[str, str],
    *,
    streams: int,
    instances: int,
    idle_seconds: float,
) -> str:
    """Return the configuration of the sequence model.

    A request brings one frame, so there is no batch, and Triton gives all requests of a sequence to
    the same instance in their order.

    Args:
        name: of the model.
        parameters: that the model reads when it is loaded.
        streams: of an instance at a time.
        instances: processes of the model.
        idle_seconds: without a request, after which a stream ends.
    """
    controls = "\n".join(
        f"    {{\n      name: {json.dumps(control)}\n      control [ {{ {kind} }} ]\n    }},"
        for control, kind in (
            (START, "kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ]"),
            (END, "kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ]"),
            (CORRELATION, "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64"),
        )
    ).rstrip(",")
    batching = (
        "sequence_batching {\n"
        f"  max_sequence_idle_microseconds: {round(idle_seconds * _MICROSECONDS)}\n"
        f"  oldest {{ max_candidate_sequences: {streams} }}\n"
        f"  control_input [\n{controls}\n  ]\n}}"
    )
    values = "\n".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        for key, value in parameters.items()
    )
    return _text(
        name,
        {"backend": "python"},
        _ports("input", STREAM_INPUTS),
        _ports("output", STREAM_OUTPUTS),
        f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]",
        batching,
        values,
    )


def _text(name: str, fields: Mapping[str, str], *parts: str) -> str:
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
    body = "\n".join(part for part in parts if part)
    return f"name: {json.dumps(name)}\n{head}\nmax_batch_size: 0\n{body}\n"


def _tensors(field: str, tensors: Iterable[TensorSpec], fixed: Mapping[str, int]) -> str:
    ports = []
    for tensor in tensors:
        dims = [dim if isinstance(dim, int) else -1 for dim in tensor.fixed_shape(fixed)]
        if not dims:
            raise BundleError(
                f"{tensor.name} is a scalar, and Triton passes none without a batch; give it a "
                "dimension in the graph"
            )
        ports.append(
            f"  {{ name: {json.dumps(tensor.name)} data_type: {_TYPES[tensor.dtype]} "
            f"dims: [ {_joined(dims)} ] }}"
        )
    return f"{field} [\n" + ",\n".join(ports) + "\n]"


def _ports(field: str, ports: Sequence[Port]) -> str:
    lines = [
        f"  {{ name: {json.dumps(port.name)} data_type: {port.type} "
        f"dims: [ {_joined(port.dims)} ]{' optional: true' if port.optional else ''} }}"
        for port in ports
    ]
    return f"{field} [\n" + ",\n".join(lines) + "\n]"


def _joined(dims: Iterable[int]) -> str:
    return ", ".join(map(str, dims))
