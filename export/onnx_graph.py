"""Export one graph's module as a checked ONNX file."""

from __future__ import annotations

import inspect
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export import Dim

from rvos_deploy.errors import ParityError
from rvos_deploy.export.graph_form import choose_opset
from rvos_deploy.export.half_storage import store_as_half
from rvos_deploy.export.ms_deform_attn import attach_function
from rvos_deploy.export.source import Store
from rvos_deploy.graph_io.graph_spec import Dim as ShapeDim
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.networks.export_graph import Graph

EXTERNAL_DATA_BYTES = 256 * 2**20
"""Size from which weights go into a ``.data`` file: protobuf is limited to 2 GiB, and a runtime can
map a separate file into memory."""

_CONVERSION_LOGGERS = (
    "torch.onnx._internal.exporter._compat",
    "onnxscript.version_converter",
    # It names nodes that it does not fold; parity is checked afterwards.
    "onnxscript.optimizer._constant_folding",
)

# Sizes for tracing. All differ, and none is 0 or 1, so tracing specialises on no equality.
_TRACE_AXES = {"H": 128, "W": 192, "E": 3, "L": 7, "M": 5}


def export_graph(
    graph: Graph, folder: Path, store: Store = "fp32", opset: int | None = None
) -> list[Path]:
    """Export one graph into ``folder``, and return the written files, the graph first.

    Axes that the contract fixes are numbers in the file.

    Args:
        graph: the module and its contract.
        folder: destination of the files.
        store: "fp16" stores weights as float16 where that is exact (``half_storage.py``).
        opset: of the file; None: the default of the graph's precision.

    Raises:
        InputError: the opset cannot be written.
        ParityError: the exported graph breaks its contract (names, types, dynamic axes), or the
            converter did not reach the opset.
    """
    spec = graph.spec
    wanted = choose_opset(opset, spec.precision)
    axes = spec.axis_sizes(_TRACE_AXES)
    with _only_real_warnings(), _quiet_conversion():
        program = torch.onnx.export(
            graph.module,
            tuple(map(torch.from_numpy, probe_inputs(spec, axes, seed=0).values())),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=_nested(_dynamic_shapes(spec), graph.module),
            opset_version=wanted,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _require_opset(model, wanted, spec.name)
    attach_function(model)
    _name_axes(model, graph)
    _drop_traces(model, keep_shapes=len(spec.fixed) == len(spec.axes))
    if store == "fp16":
        store_as_half(model)
    return save_graph(model, folder / f"{spec.name}.onnx")


@contextmanager
def _quiet_conversion() -> Iterator[None]:
    """Silence onnx's converter, which logs every opset below 18.

    The user asked for that opset, and ``_require_opset`` finds a failed conversion.
    """
    loggers = [logging.getLogger(name) for name in _CONVERSION_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators in a model."""
    return next(int(entry.version) for entry in model.opset_import if not entry.domain)


def _require_opset(model: onnx.ModelProto, opset: int, name: str) -> None:
    """Check the opset, because a failed converter leaves the model unchanged, without an error."""
    if (found := opset_of(model)) != opset:
        raise ParityError(
            f"{name}: the converter left opset {found}, asked for was {opset}; export with another "
            "--opset, or without one"
        )


def _dynamic_shapes(spec: GraphSpec) -> tuple[dict[int, Any], ...]:
    """Return torch.export dimensions of every input; an axis in multiples has a unit dimension."""
    axes = [axis for axis in spec.axes if not axis.fixed]
    units = {
        axis.name: Dim(
            f"{axis.name}_unit" if axis.multiple > 1 else axis.name,
            min=max(1, axis.minimum // axis.multiple),
            max=axis.maximum // axis.multiple,
        )
        for axis in axes
    }
    multiples = {axis.name: axis.multiple for axis in axes}

    def dimension(expression: str) -> Any:
        name, _, divisor = expression.partition("/")
        factor = multiples[name] // int(divisor or 1)
        return units[name] if factor == 1 else factor * units[name]

    return tuple(
        {
            i: dimension(dim)
            for i, dim in enumerate(tensor.fixed_shape(spec.fixed))
            if isinstance(dim, str)
        }
        for tensor in spec.inputs
    )


def _nested(shapes: tuple[dict[int, Any], ...], module: torch.nn.Module) -> tuple[Any, ...]:
    """Nest the shapes of inputs that ``module.forward`` receives as one ``*argument``."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:named], shapes[named:])


def _name_axes(model: onnx.ModelProto, graph: Graph) -> None:
    """Check names and types against the contract, and write its axis names into the file."""
    for found, wanted in (
        (model.graph.input, graph.spec.inputs),
        (model.graph.output, graph.spec.outputs),
    ):
        names = [value.name for value in found]
        if names != [tensor.name for tensor in wanted]:
            raise ParityError(
                f"{graph.spec.name}: exported tensors are {names}, "
                f"the contract names {[tensor.name for tensor in wanted]}"
            )
        for value, tensor in zip(found, wanted, strict=True):
            shape = tensor.fixed_shape(graph.spec.fixed)
            _name_tensor_axes(value, tensor, shape, graph.spec.name)


def _name_tensor_axes(
    value: onnx.ValueInfoProto, tensor: TensorSpec, shape: tuple[ShapeDim, ...], graph: str
) -> None:
    type_ = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(type_.elem_type).name
    if dtype != tensor.dtype or len(type_.shape.dim) != len(shape):
        raise ParityError(
            f"{graph}: exported {tensor.name} is {dtype} of rank {len(type_.shape.dim)}, "
            f"the contract says {tensor.dtype} {list(shape)}"
        )
    for found, wanted in zip(type_.shape.dim, shape, strict=True):
        fixed = found.HasField("dim_value")
        if fixed and found.dim_value != wanted:
            raise ParityError(
                f"{graph}: an axis of {tensor.name} is fixed at {found.dim_value}, "
                f"the contract says {wanted}"
            )
        if isinstance(wanted, str):
            found.dim_param = wanted
        else:
            found.dim_value = wanted


def _drop_traces(model: onnx.ModelProto, keep_shapes: bool) -> None:
    """Remove source locations of nodes, and shapes that inference restores: a tenth of the file.

    Args:
        model: changed in place.
        keep_shapes: keep the shapes between nodes. With every axis fixed they are numbers, and not
            every runtime that needs them can infer them through a function's body.
    """
    for holder in (model.graph, *model.functions):
        made = {name for node in holder.node for name in node.output} if keep_shapes else set()
        kept = [value for value in holder.value_info if value.name in made]
        del holder.value_info[:]
        holder.value_info.extend(kept)
        for node in holder.node:
            del node.metadata_props[:]


def save_graph(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write and check a model, and return its files: weights have their own if they are large."""
    external = model.ByteSize() > EXTERNAL_DATA_BYTES
    data = path.with_suffix(".onnx.data")
    onnx.save_model(
        model,
        path,
        save_as_external_data=external,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=1024,
    )
    if external:
        shutil.copymode(path, data)  # onnx makes it readable by its owner only
    onnx.checker.check_model(str(path), full_check=True)
    return [path, data] if external else [path]


@contextmanager
def _only_real_warnings() -> Iterator[None]:
    """Silence warnings that do not concern the graph, each by its exact text."""
    with warnings.catch_warnings():
        # The exporter copies pytree specs through its own deprecated class.
        warnings.filterwarnings(
            "ignore", message=r".*isinstance\(treespec, LeafSpec\).* is deprecated"
        )
        # The naming pass meets one axis on several inputs; the contract names the axes afterwards.
        warnings.filterwarnings(
            "ignore", message=r"# The axis name: .* will not be used, since it shares"
        )
        yield
