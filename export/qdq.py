"""Insert QuantizeLinear/DequantizeLinear pairs into an ONNX graph, with ONNX Runtime's quantizer.

- A pair stands before each int8 product; all other readers of the tensor read it in float32.
  Weights are int8 by output channel. Everything is symmetric (zero point 0), which TensorRT needs,
  and which costs ONNX Runtime no speed: it moves zero points by 128 when it loads.
- A 1x1 convolution becomes a MatMul, whose output stays in float32. ONNX Runtime computes a
  convolution in int8 only if its output is int8 too. For the trained ``tiny``, that rounding was
  four times the error of all others.
- Ranges are the least and greatest values over the calibration frames. Percentiles and entropy
  gave no smaller errors (entropy 39 % more at res2 of ``tiny``), and need every value of every
  tensor.
- Weights use all 8 bits. That suits CPUs with VNNI, whose sums are exact. On an x86 CPU without it,
  ONNX Runtime's sums of two products can saturate; ``rvos-deploy verify`` tells (NOT RUN).

The module needs onnx and onnxruntime, not PyTorch.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QDQQuantizer,
    QuantType,
    TensorsData,
    create_calibrator,
)

from rvos_deploy.environment import usable_cores
from rvos_deploy.export.calibration import Image
from rvos_deploy.export.pointwise import TURNED, products_of_pointwise

Ranges: TypeAlias = TensorsData
"""The least and greatest value of tensors, by name."""
Outputs: TypeAlias = list[NDArray[np.float32]]
"""All outputs of a graph for one frame."""

_KINDS = ("MatMul", "Conv")
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_FUSED = re.compile(r"\A(Conv(Mul|Add|BN)Fusion_[A-Z]+_)+")
"""What ONNX Runtime puts before the names of weights that it folds scales into."""


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants, scales and batch norms, and turn 1x1 convolutions into products."""
    # The scales after a convolution are folded into its weights only while it is a convolution.
    return _optimized(products_of_pointwise(_optimized(model)))


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return what ONNX Runtime makes of a model with operators of ONNX alone."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "optimized.onnx"
        options = _session_options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(out)
        _session(model, options)
        return onnx.load(out)


def candidates(model: onnx.ModelProto) -> dict[str, str]:
    """Return the layers that can be int8: names for people, by the name of the node.

    These are products with constant weights. Depthwise convolutions have few products, and int8
    does not speed them up.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    return {
        node.name: _layer_name(node, readers, constants)
        for node in model.graph.node
        if node.op_type in _KINDS and node.input[1] in constants and _groups(node) == 1
    }


def _groups(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _layer_name(
    node: onnx.NodeProto,
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    constants: Collection[str],
) -> str:
    """Return the module's name, from its weight or bias; else the name of the weight.

    The exporter turns weights of linear layers, and gives them numbers for names.
    """
    names = [_FUSED.sub("", node.input[1]).removesuffix(TURNED)]
    names += [
        _FUSED.sub("", name)
        for reader in readers.get(node.output[0], ())
        if reader.op_type == "Add"
        for name in reader.input
        if name in constants
    ]
    modules = [
        name.removesuffix(kind) for name in names for kind in (".weight", ".bias") if kind in name
    ]
    return (modules or names)[0]


def tensor_ranges(model: onnx.ModelProto, frames: Sequence[Image]) -> Ranges:
    """Return the range of every tensor around a product, over all frames."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(model, file)
        calibrator = create_calibrator(
            file, list(_KINDS), augmented_model_path=str(Path(folder) / "ranges.onnx")
        )
        calibrator.collect_data(_Frames(model.graph.input[0].name, frames))
        return calibrator.compute_data()


class _Frames(CalibrationDataReader):
    """Give the calibrator one frame after the other."""

    def __init__(self, name: str, frames: Sequence[Image]) -> None:
        self._inputs = iter([{name: frame} for frame in frames])

    def get_next(self) -> dict[str, Image] | None:
        """Return the next inputs; None at the end."""
        return next(self._inputs, None)


def insert_pairs(
    model: onnx.ModelProto, ranges: Ranges, layers: Collection[str]
) -> onnx.ModelProto:
    """Return a prepared model with these layers in int8.

    Args:
        model: from :func:`prepare`; not changed.
        ranges: of its tensors.
        layers: names of nodes among the :func:`candidates`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=list(layers),
        nodes_to_exclude=[],
        op_types_to_quantize=list(_KINDS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # TensorRT takes no int32 biases; ONNX Runtime quantizes them when it loads.
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    _restore_float_readers(quantized, layers)
    quantizer.model.topological_sort()
    return quantized


def _restore_float_readers(model: onnx.ModelProto, layers: Collection[str]) -> None:
    """Let only int8 layers read quantized inputs; the quantizer redirects every reader.

    The residual stream, for example, would be rounded in every block. Outputs of a layer that are
    quantized stay so, because ONNX Runtime needs them.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in layers or node.op_type in _PAIR:
            continue
        for i, name in enumerate(node.input):
            source = _before_pair(makers, name)
            if source is not None and not (source in makers and makers[source].name in layers):
                node.input[i] = source


def _before_pair(makers: Mapping[str, onnx.NodeProto], name: str) -> str | None:
    """Return the tensor that a pair before ``name`` quantizes; None where there is no pair."""
    dequantize = makers.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = makers.get(dequantize.input[0])
    return None if quantize is None else quantize.input[0]


def finish(quantized: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Restore what ONNX Runtime's tools change: axis names, imported domains, the producer."""
    finished = helper.make_model(
        helper.make_graph(
            quantized.graph.node,
            original.graph.name,
            original.graph.input,
            original.graph.output,
            quantized.graph.initializer,
        ),
        opset_imports=[entry for entry in original.opset_import if not entry.domain],
        ir_version=original.ir_version,
        producer_name=original.producer_name,
        producer_version=original.producer_version,
    )
    return onnx.shape_inference.infer_shapes(finished) if _is_fixed(original) else finished


def _is_fixed(model: onnx.ModelProto) -> bool:
    return all(
        dim.HasField("dim_value")
        for value in model.graph.input
        for dim in value.type.tensor_type.shape.dim
    )


def run_frames(model: onnx.ModelProto, frames: Sequence[Image]) -> list[Outputs]:
    """Return all outputs for each frame, by ONNX Runtime's fastest kernels."""
    session = _session(model, _session_options())
    (frame,) = session.get_inputs()
    return [session.run(None, {frame.name: image}) for image in frames]


def _session_options() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_cores()
    return options


def _session(model: onnx.ModelProto, options: Any) -> Any:
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings of the quantizer, which advises steps that were taken."""
    logger = logging.getLogger()

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
