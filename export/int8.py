"""Choose which layers of a backbone become int8, by the error that they cause.

Static quantization after training, for CPUs: products with constant weights (MatMul, and
convolutions that mix all channels) become int8; LayerNorm, GELU, residual sums, depthwise
convolutions and everything else stay in float32 (``qdq.py``). If all layers together err by more
than the user allows, each is quantized alone, and those of the greatest error stay in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from rvos_deploy.bundle.manifest import QuantizationRecord
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.export.calibration import Calibration, Image
from rvos_deploy.export.qdq import (
    Outputs,
    Ranges,
    candidates,
    finish,
    insert_pairs,
    prepare,
    quiet,
    run_frames,
    tensor_ranges,
)
from rvos_deploy.progress import StepProgress, ignore_steps

RANKING_FRAMES = 2
"""Number of frames on which each layer's own error is measured, which only orders the layers."""


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
) -> Quantized:
    """Quantize a graph that has a frame as its one input.

    Args:
        name: name of the graph.
        model: float32, with its weights; not changed.
        calibration: frames that calibrate, frames that measure the error, and the allowed error.
        progress: called with each step.

    Raises:
        InputError: the graph has no layer that can be quantized.
        ParityError: no choice of layers keeps the error.
    """
    with quiet():
        prepared = prepare(model)
        layers = candidates(prepared)
        if not layers:
            raise InputError(
                f"{name} has no MatMul or Conv with constant weights, so --precision int8 changes "
                "nothing; export with --precision fp32"
            )
        progress(f"{name}: ranges of {len(calibration.calibrating)} frames")
        ranges = tensor_ranges(prepared, calibration.calibrating)
        trial = _Trial(prepared, ranges, calibration.measuring)
        chosen, errors = _choose(name, trial, layers, calibration.maximum_error, progress)
        quantized = finish(trial.quantized(chosen), model)
    record = QuantizationRecord(
        graph=name,
        source=calibration.source,
        calibrating_frames=len(calibration.calibrating),
        measuring_frames=len(calibration.measuring),
        int8_layers=len(chosen),
        float_layers=tuple(layers[node] for node in layers if node not in chosen),
        errors=dict(zip([output.name for output in model.graph.output], errors, strict=True)),
        maximum_error=calibration.maximum_error,
    )
    return Quantized(quantized, record)


@dataclass(frozen=True)
class _Trial:
    """Quantize some layers of a prepared model, and measure what that changes."""

    model: onnx.ModelProto
    ranges: Ranges
    frames: Sequence[Image]

    def quantized(self, layers: Sequence[str]) -> onnx.ModelProto:
        return insert_pairs(self.model, self.ranges, layers)

    def errors(self, reference: Sequence[Outputs], layers: Sequence[str]) -> list[float]:
        """Return the error of every output with these layers in int8, on the first frames."""
        frames = self.frames[: len(reference)]
        return _errors(reference, run_frames(self.quantized(layers), frames))


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
    reference = run_frames(trial.model, trial.frames)
    progress(f"{name}: error of {len(layers)} layers in int8")
    chosen = list(layers)
    errors = trial.errors(reference, chosen)
    if max(errors) <= maximum:
        return chosen, errors
    own = {}
    for number, layer in enumerate(layers, start=1):
        progress(f"{name}: error of layer {number} of {len(layers)} alone")
        own[layer] = max(trial.errors(reference[:RANKING_FRAMES], [layer]))
    ranked = sorted(layers, key=lambda layer: own[layer])
    count = _count_within([own[layer] for layer in ranked], maximum)
    while count > 0:
        progress(f"{name}: error of {count} layers in int8")
        chosen = [layer for layer in layers if layer in ranked[:count]]
        errors = trial.errors(reference, chosen)
        if max(errors) <= maximum:
            return chosen, errors
        count -= max(1, len(layers) // 20)
    raise ParityError(
        f"{name}: int8 errs by more than {maximum:.1%} in every layer, so no bundle was written; "
        "export with --precision fp32, or allow more with --maximum-int8-error"
    )


def _count_within(own: Sequence[float], maximum: float) -> int:
    """Return how many of the ascending errors have an allowed root of summed squares."""
    total = 0.0
    for count, error in enumerate(own):
        total += error**2
        if math.sqrt(total) > maximum:
            return count
    return len(own)


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
