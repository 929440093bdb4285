"""Quantize a float32 backbone to int8, statically, in the QDQ form of ONNX.

Products with constant weights (MatMul, and convolutions that mix all channels) become int8.
LayerNorm, GELU, residual sums, depthwise convolutions and everything else stay in float32:

- A QuantizeLinear/DequantizeLinear pair stands before each int8 product; all other readers of the
  tensor read it in float32. Weights are int8 by output channel. Everything is symmetric (zero point
  0), which TensorRT needs.
- A 1x1 convolution becomes a MatMul, whose output stays in float32. ONNX Runtime computes a
  convolution in int8 only if its output is int8 too. For the trained ``tiny``, that rounding was
  four times the error of all others.
- Ranges are the least and greatest values over the calibration frames. Percentiles and entropy
  gave errors within a tenth of that, and need every value of every tensor.
- If the error exceeds ``MAXIMUM_ERROR``, each layer is quantized alone, and those of the greatest
  error stay in float32.

The module needs onnx and onnxruntime, not PyTorch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from rvos_deploy.bundle.manifest import QuantizationRecord
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.export.calibration import Calibration, Image
from rvos_deploy.export.pointwise import TURNED, products_of_pointwise
from rvos_deploy.progress import StepProgress, ignore_steps

MAXIMUM_ERROR = 0.015
"""Greatest allowed error of any output: root mean square of the difference from float32, over that
of float32, on frames that set no range."""
RANKING_FRAMES = 2
"""Number of frames on which each layer's own error is measured, which only orders the layers."""

_KINDS = ("MatMul", "Conv")
_FUSED = re.compile(r"\A(Conv(Mul|Add|BN)Fusion_[A-Z]+_)+")
"""What ONNX Runtime puts before the names of weights that it folds scales into."""
_Ranges = TensorsData
Outputs = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Quantized:
    """Hold a quantized model, and the record of how it was made."""

    model: onnx.ModelProto
    record: QuantizationRecord


def quantize(
    name: str,
    model: onnx.ModelProto,
    calibration: Calibration,
    progress: StepProgress = ignore_steps,
    maximum_error: float = MAXIMUM_ERROR,
) -> Quantized:
    """Quantize a graph that has a frame as its one input.

    Args:
        name: name of the graph.
        model: float32, with its weights; not changed.
        calibration: frames that calibrate, and frames that measure the error.
        progress: called with each step.
        maximum_error: see ``MAXIMUM_ERROR``.

    Raises:
        InputError: the graph has no layer that can be quantized.
        ParityError: no choice of layers keeps the error.
    """
    with _quiet():
        prepared = _prepare(model)
        layers = candidates(prepared)
        if not layers:
            raise InputError(
                f"{name} has no MatMul or Conv with constant weights, so --precision int8 changes "
                "nothing; export with --precision fp32"
            )
        progress(f"{name}: ranges of {len(calibration.calibrating)} frames")
        trial = _Trial(prepared, _ranges(prepared, calibration.calibrating), calibration.measuring)
        kept, errors = _choose(name, trial, layers, maximum_error, progress)
        quantized = trial.quantized(kept)
    record = QuantizationRecord(
        graph=name,
        source=calibration.source,
        calibrating_frames=len(calibration.calibrating),
        measuring_frames=len(calibration.measuring),
        int8_layers=len(kept),
        float_layers=tuple(layers[node] for node in layers if node not in kept),
        errors=dict(zip([output.name for output in model.graph.output], errors, strict=True)),
        maximum_error=maximum_error,
    )
    return Quantized(_finished(quantized, model), record)


def candidates(model: onnx.ModelProto) -> dict[str, str]:
    """Return the layers that can be int8: names for people, by the name of the node.

    These are products with constant weights. Depthwise convolutions have few products, and int8
    does not speed them up.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: _FUSED.sub("", node.input[1]).removesuffix(TURNED).removesuffix(".weight")
        for node in model.graph.node
        if node.op_type in _KINDS
        and node.input[1] in constants
        and _attribute(node, "group", 1) == 1
    }


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _prepare(model: onnx.ModelProto) -> onnx.ModelProto:
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


def _finished(quantized: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
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
    return onnx.shape_inference.infer_shapes(finished) if _fixed(original) else finished


def _fixed(model: onnx.ModelProto) -> bool:
    return all(
        dim.HasField("dim_value")
        for value in model.graph.input
        for dim in value.type.tensor_type.shape.dim
    )


@dataclass(frozen=True)
class _Trial:
    """Quantize some layers of a prepared model, and measure what that changes."""

    model: onnx.ModelProto
    ranges: _Ranges
    frames: Sequence[Image]

    def quantized(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the model with these layers in int8."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=self.ranges,
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
        found: onnx.ModelProto = quantizer.model.model
        _restore_float_readers(found, set(layers))
        quantizer.model.topological_sort()
        return found

    def outputs(self, layers: Sequence[str], frames: Sequence[Image]) -> list[Outputs]:
        """Return all outputs for each frame."""
        session = _session(self.quantized(layers) if layers else self.model)
        (frame,) = session.get_inputs()
        return [session.run(None, {frame.name: image}) for image in frames]


def _restore_float_readers(model: onnx.ModelProto, layers: set[str]) -> None:
    """Let only int8 layers read quantized inputs; the quantizer redirects every reader.

    The residual stream, for example, would be rounded in every block. Outputs of a layer that are
    quantized stay so, because ONNX Runtime needs them.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in layers or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
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


def _choose(
    name: str,
    trial: _Trial,
    layers: Mapping[str, str],
    maximum: float,
    progress: StepProgress,
) -> tuple[list[str], list[float]]:
    """Return the layers to quantize, and the error of every output with them.

    If all layers together err by too much, those of the greatest own error stay in float32. Own
    errors are taken as independent, to guess how many; then the choice is measured.
    """
    reference = trial.outputs([], trial.frames)

    def measure(chosen: Sequence[str]) -> list[float]:
        return _errors(reference, trial.outputs(chosen, trial.frames))

    progress(f"{name}: error of {len(layers)} layers in int8")
    chosen = list(layers)
    errors = measure(chosen)
    if max(errors) <= maximum:
        return chosen, errors
    few = trial.frames[:RANKING_FRAMES]
    own = {}
    for number, layer in enumerate(layers, start=1):
        progress(f"{name}: error of layer {number} of {len(layers)} alone")
        own[layer] = max(_errors(reference[: len(few)], trial.outputs([layer], few)))
    ranked = sorted(layers, key=lambda layer: own[layer])
    count = len(_within([own[layer] for layer in ranked], maximum))
    while count:
        progress(f"{name}: error of {count} layers in int8")
        chosen = [layer for layer in layers if layer in ranked[:count]]
        errors = measure(chosen)
        if max(errors) <= maximum:
            return chosen, errors
        count -= max(1, len(layers) // 20)
    raise ParityError(
        f"{name}: int8 errs by more than {maximum:.1%} in every layer, so no bundle was written; "
        "export with --precision fp32, or calibrate on more frames"
    )


def _within(own: Sequence[float], maximum: float) -> Sequence[float]:
    """Return the longest beginning of ascending errors whose root of summed squares is allowed."""
    total, count = 0.0, 0
    for error in own:
        total += error**2
        if math.sqrt(total) > maximum:
            break
        count += 1
    return own[:count]


def _errors(reference: Sequence[Outputs], found: Sequence[Outputs]) -> list[float]:
    """Return the error of every output over all frames: rms of the difference over the rms."""
    energy = np.array(
        [
            [(_energy(a - b), _energy(a)) for a, b in zip(ones, others, strict=True)]
            for ones, others in zip(reference, found, strict=True)
        ]
    ).sum(axis=0)
    return [float(error) for error in np.sqrt(energy[:, 0] / np.maximum(energy[:, 1], 1e-30))]


def _energy(values: NDArray[np.float32]) -> float:
    return float((values.astype(np.float64) ** 2).sum())


def _ranges(model: onnx.ModelProto, frames: Sequence[Image]) -> _Ranges:
    """Return the least and greatest value of every tensor around a candidate, over all frames."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(model, file)
        calibrator = create_calibrator(
            file, list(_KINDS), augmented_model_path=str(Path(folder) / "ranges.onnx")
        )
        calibrator.collect_data(_Frames(model.graph.input[0].name, frames))
        return calibrator.compute_data()


class _Frames(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Give the calibrator one frame after the other."""

    def __init__(self, name: str, frames: Sequence[Image]) -> None:
        self._inputs = iter([{name: frame} for frame in frames])

    def get_next(self) -> dict[str, Image] | None:
        """Return the next inputs; None at the end."""
        return next(self._inputs, None)


def _session_options() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_cores()
    return options


def _session(model: onnx.ModelProto, options: Any = None) -> Any:
    return ort.InferenceSession(
        model.SerializeToString(),
        options or _session_options(),
        providers=["CPUExecutionProvider"],
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop log records of the quantizer, which advises steps that were taken."""
    logger = logging.getLogger()

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
