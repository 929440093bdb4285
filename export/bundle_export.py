"""Export a network with its weights to a bundle whose parity is checked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvos_deploy.bundle.folder import (
    GOLDEN,
    MANIFEST,
    PARITY,
    TOKENIZER,
    bundle_files,
    open_bundle,
    write_manifest,
)
from rvos_deploy.bundle.manifest import REVISION, QuantizationRecord, WeightsRecord, plain
from rvos_deploy.environment import peak_memory_bytes, versions
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.export.calibration import Calibration, CalibrationOptions, read_calibration
from rvos_deploy.export.graph_form import GraphForm, choose_opset
from rvos_deploy.export.int8_backbone import (
    GRAPH as INT8_GRAPH,
)
from rvos_deploy.export.int8_backbone import (
    Int8Backbone,
    check_int8,
    int8_encoder,
    quantize_backbone,
)
from rvos_deploy.export.onnx_graph import export_graph
from rvos_deploy.export.parity import Reference, check_graph, check_without_rounding
from rvos_deploy.export.pytorch_weights import write_record
from rvos_deploy.export.source import Store
from rvos_deploy.files import cannot_write, replacing_folder
from rvos_deploy.networks.clip_probe import clip_probe
from rvos_deploy.networks.export_graph import ExportableNetwork
from rvos_deploy.networks.network import Network
from rvos_deploy.overlap import refuse_overlap
from rvos_deploy.parity.golden_vectors import golden_vectors
from rvos_deploy.parity.verification import (
    CLIP_LOGITS,
    CLIP_ORDER,
    MAXIMUM_UNDECIDED,
    MINIMUM_J_AND_F,
    CheckResult,
    MaskCheck,
    check_masks,
)
from rvos_deploy.progress import StepProgress, ignore_steps
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.backends.onnxruntime.bf16_reference import Bf16ReferenceBackend

NOT_PROVED = {
    "bf16": "that a library's own bfloat16 kernels give these numbers: they were computed in "
    "float32 and rounded to bfloat16 after every operator",
    "int8": "what int8 loses in masks: parity compares back ends with the int8 graph itself, and "
    "the errors are of the backbone's outputs on the calibration data; measure J&F of this bundle "
    "and of an fp32 one with 'rvos-deploy evaluate BUNDLE --data DIR'",
}
"""Statements that an export cannot prove, by precision; the manifest records them."""


@dataclass(frozen=True)
class BundleOptions:
    """Configure the export of a bundle.

    Args:
        store: "fp16" keeps weights as float16 where that is exact.
        opset: opset of the graph files; None: the default of the graphs' precision.
        minimum_j_and_f: least J&F of the clip's masks against PyTorch's masks, 0 to 1.
        maximum_slot_excess: greatest extra cost of PyTorch's choices over the best choices of the
            exported graphs; None: the effect of rounding.
        overwrite: replace an existing bundle.
        inputs: files that the export reads, which the bundle must not replace.
        calibration: frames for an int8 backbone; None: every graph stays in the network's type.
    """

    store: Store = "fp32"
    opset: int | None = None
    minimum_j_and_f: float = MINIMUM_J_AND_F
    maximum_slot_excess: float | None = None
    overwrite: bool = False
    inputs: tuple[Path, ...] = ()
    calibration: Calibration | None = None


def with_frames(
    options: BundleOptions,
    calibration: CalibrationOptions | None,
    network: Network,
    form: GraphForm,
) -> BundleOptions:
    """Read the frames for int8, fitted to the network's input; other precisions need none.

    Raises the errors of ``read_calibration``.
    """
    if calibration is None:
        return options
    fixed = None if form.static is None else form.box()
    return replace(options, calibration=read_calibration(calibration, network, fixed))


@dataclass(frozen=True)
class ExportReport:
    """Hold the results of an export; ``peak_memory_bytes`` is of the whole process.

    ``quantization`` is None unless the backbone is int8.
    """

    path: Path
    results: tuple[CheckResult, ...]
    quantization: QuantizationRecord | None
    seconds: float
    peak_memory_bytes: int


def export_network(
    load: Callable[[], tuple[ExportableNetwork, WeightsRecord]],
    out: Path,
    options: BundleOptions | None = None,
    *,
    progress: StepProgress = ignore_steps,
) -> ExportReport:
    """Export all graphs, check them against PyTorch, and install the bundle if all checks pass.

    The bundle is built in a temporary folder beside ``out``, and moved to ``out`` only if every
    check passes.

    Args:
        load: returns the network with its weights, and the record of their origin.
        out: folder of the bundle.
        options: store, opset, limits and inputs; None: the defaults.
        progress: called with the name of each step.

    Raises:
        InputError: ``load`` fails, the output folder cannot be used, or the opset cannot be
            written.
        ParityError: checks failed; the message names all of them.
    """
    started = time.perf_counter()
    options = options or BundleOptions()
    check_target(out, options)
    progress("network")
    network, weights = load()
    try:
        with replacing_folder(out, overwrite=options.overwrite) as staging:
            export = _Export(staging, network, weights, options, progress)
            results = export.run()
            _require_all(results, network.network.choice_excess_name)
    except OSError as error:
        raise InputError(cannot_write(out, error)) from error
    seconds = time.perf_counter() - started
    record = None if export.int8 is None else export.int8.record
    return ExportReport(out, results, record, seconds, peak_memory_bytes())


def check_target(out: Path, options: BundleOptions) -> None:
    """Refuse an output folder that cannot be replaced, or that holds an input.

    Raises InputError: the folder is not an old bundle, holds other files, or holds an input.
    """
    if out.is_dir() and any(out.iterdir()):
        if not options.overwrite:
            raise InputError(f"{out} exists and is not empty; pass --overwrite, or another --out")
        if not (out / MANIFEST).is_file():
            raise InputError(f"{out} is not a bundle, so it is not replaced; choose another --out")
        ours = set(bundle_files(out))
        others = (file for file in out.rglob("*") if not file.is_dir() and file not in ours)
        if (other := next(others, None)) is not None:
            raise InputError(
                f"{out} also holds {other.relative_to(out)}, which is not the bundle's and would "
                "be lost; move it, or choose another --out"
            )
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose another --out")
    refuse_overlap(options.inputs, [out])


@dataclass
class _Export:
    """Run one export into an empty folder."""

    folder: Path
    exportable: ExportableNetwork
    weights: WeightsRecord
    options: BundleOptions
    progress: StepProgress
    int8: Int8Backbone | None = None
    """The backbone, once it is int8."""

    def __post_init__(self) -> None:
        self.specs = {graph.spec.name: graph.spec for graph in self.exportable.graphs}
        if self.options.calibration is not None and INT8_GRAPH not in self.specs:
            raise InputError(
                f"--precision int8 is for a network with the graph '{INT8_GRAPH}', found: "
                f"{', '.join(self.specs)}; export with --precision fp32"
            )

    @property
    def precision(self) -> str:
        """The precision of the bundle."""
        if self.options.calibration is not None:
            return "int8"
        return self.exportable.graphs[0].spec.precision

    @property
    def backend(self) -> OnnxRuntimeBackend:
        return Bf16ReferenceBackend() if self.precision == "bf16" else OnnxRuntimeBackend()

    def run(self) -> tuple[CheckResult, ...]:
        """Write all files of the bundle, and return the results of all checks."""
        results: list[CheckResult] = []
        reference: Reference = {}
        names = self._export_graphs(results, reference)
        self.exportable.write_tokenizer(self.folder / TOKENIZER)
        self.progress("parity of the masks of a clip")
        self._segment_clip(reference)
        np.savez_compressed(self.folder / PARITY, **reference)  # type: ignore[arg-type]
        names += [TOKENIZER, PARITY]
        graphs, network = self.exportable.graphs, self.exportable.network
        if (record := write_record(graphs, network, self.folder)) is not None:
            names.append(record)
        # The runtime checks the masks, and opens only folders with a manifest.
        self._write_manifest(names, results)
        bundle = open_bundle(self.folder)
        logits, choices = reference[CLIP_LOGITS], reference[CLIP_ORDER]
        results.append(check_masks(bundle, self.backend, logits, choices))
        if all(result.passed for result in results):
            self.progress("golden vectors")
            golden = golden_vectors(bundle, self.backend)
            np.savez_compressed(self.folder / GOLDEN, **golden)  # type: ignore[arg-type]
            names.append(GOLDEN)
        self._write_manifest(names, results)
        return tuple(results)

    def _export_graphs(self, results: list[CheckResult], reference: Reference) -> list[str]:
        """Write and check every graph, and return the names of the files."""
        names: list[str] = []
        for graph in self.exportable.graphs:
            self.progress(f"export {graph.spec.name}")
            calibration = self.options.calibration if graph.spec.name == INT8_GRAPH else None
            store = self.options.store if calibration is None else "fp32"
            written = export_graph(graph, self.folder, store, self.options.opset)
            self.progress(f"parity {graph.spec.name}")
            network, tolerance = self.exportable.network, self.exportable.without_rounding
            checks = check_graph(graph, network, written[0], self.backend, reference)
            if tolerance is not None:
                checks += check_without_rounding(graph, network, written[0], tolerance)
            if calibration is not None:
                results += [replace(check, name=f"{check.name}, in float32") for check in checks]
                self.int8 = quantize_backbone(
                    graph.spec, written, calibration, self.options.store, self.progress
                )
                self.specs[INT8_GRAPH], written = self.int8.spec, list(self.int8.files)
                checks = check_int8(self.int8, network, self.backend, reference)
            results += checks
            names += [file.name for file in written]
        return names

    def _segment_clip(self, reference: Reference) -> None:
        network = self.exportable.network
        contracts = self.specs
        file = self.folder / TOKENIZER
        tokenizer = network.tokenizer(file, file.read_bytes(), contracts)
        probe, segment = clip_probe(network, contracts), self.exportable.segment_clip
        if self.int8 is None:
            answer = segment(probe, tokenizer, None)
        else:
            # Back ends are compared with the masks that int8 should give. The clip is not like the
            # user's frames, so masks without int8 would say nothing about its loss.
            with int8_encoder(self.int8) as encode:
                answer = segment(probe, tokenizer, encode)
        reference[CLIP_LOGITS], reference[CLIP_ORDER] = answer.mask_logits, answer.choices

    def _write_manifest(self, names: list[str], results: list[CheckResult]) -> None:
        network, graphs = self.exportable.network, self.specs.values()
        config, opset = network.config, choose_opset(self.options.opset, self.precision)
        manifest: dict[str, Any] = {
            "revision": REVISION,
            "family": network.family,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": config.as_dict(),
            "precision": self.precision,
            "threshold": config.threshold,
            "input_size": list(config.input_size),
            "weights": plain(self.weights),
            "parameters": self.exportable.parameters,
            "versions": {
                **versions("torch", *self.exportable.packages, "onnx", "onnxscript"),
                "backend": self.backend.describe(),
            },
            "graphs": {spec.name: spec.as_dict() for spec in graphs},
            "opsets": {spec.name: opset for spec in graphs},
            "parity": {
                "reference": f"PyTorch {torch.__version__}",
                "minimum_j_and_f": self.options.minimum_j_and_f,
                "maximum_slot_excess": self.options.maximum_slot_excess,
                "not_proved": NOT_PROVED.get(self.precision),
                "checks": [result.as_dict() for result in results],
            },
        }
        if GOLDEN in names:
            made_by = self.backend.describe()
            manifest["golden"] = (
                f"made by a stream with {made_by['name']} {made_by['version']}; an example of the "
                "loop between the graphs, not the reference of the parity checks"
            )
        if self.int8 is not None:
            manifest["quantization"] = plain(self.int8.record)
        write_manifest(self.folder, manifest, names)


def _require_all(results: tuple[CheckResult, ...], excess_name: str) -> None:
    failed = [_failure(result, excess_name) for result in results if not result.passed]
    if failed:
        raise ParityError(
            f"{len(failed)} of {len(results)} parity checks failed, no bundle was written: "
            + "; ".join(failed[:8])
            + (" ..." if len(failed) > 8 else "")
        )


def _failure(result: CheckResult, excess_name: str) -> str:
    """Return a check's name; for masks also the measured values, and options that accept them."""
    if not isinstance(result, MaskCheck):
        return result.name
    found = (
        f"{result.name} (J&F {result.j_and_f:.4f}, needed {result.tolerance}; "
        f"{result.undecided:.2%} of the pixels too near 0 to compare, allowed "
        f"{MAXIMUM_UNDECIDED:.0%}; {excess_name} {result.slot_excess:.2g}, allowed "
        f"{result.allowed_excess:.2g}; export with --precision fp32"
    )
    if result.undecided > MAXIMUM_UNDECIDED:
        return found + ")"  # no option accepts masks that prove nothing
    options = []
    if result.j_and_f < result.tolerance:
        options.append(f"--minimum-j-and-f {_floor(result.j_and_f)}")
    if result.slot_excess > result.allowed_excess:
        options.append(f"--maximum-slot-excess {_ceil(result.slot_excess)}")
    if not options:
        return found + ")"
    return f"{found}, or measure what videos lose and accept it with {' '.join(options)})"


def _floor(share: float) -> float:
    return math.floor(share * 1000) / 1000


def _ceil(excess: float) -> float:
    return math.ceil(excess * 100) / 100
