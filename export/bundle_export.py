"""Export a network as a checked bundle: the work of ``rvos-deploy export``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvos_deploy.bundle.folder import (
    MANIFEST,
    PARITY,
    TOKENIZER,
    bundle_files,
    open_bundle,
    write_manifest,
)
from rvos_deploy.bundle.manifest import REVISION, Origin, plain
from rvos_deploy.environment import peak_memory_bytes, versions
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.export.graph_form import GraphForm, choose_opset
from rvos_deploy.export.half_storage import round_to_half
from rvos_deploy.export.onnx_graph import export_graph
from rvos_deploy.export.parity import (
    Reference,
    check_graph,
    check_without_rounding,
    record_clip,
)
from rvos_deploy.export.weights import Weights, load_with_origin
from rvos_deploy.files import cannot_write, replacing_folder
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tokenizer import CONTEXT_LENGTH, Tokenizer
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.contract import MAXIMUM_ELEMENTS
from rvos_deploy.networks.pan2024.graphs import graphs
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.precision import set_precision
from rvos_deploy.networks.pan2024.network import Pan2024
from rvos_deploy.networks.pan2024.tokenizer_file import write_tokenizer
from rvos_deploy.overlap import refuse_overlap
from rvos_deploy.parity.verification import (
    CLIP_LOGITS,
    CLIP_ORDER,
    CheckResult,
    MaskCheck,
    check_masks,
)
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.backends.onnxruntime.bf16_reference import Bf16ReferenceBackend

Progress = Callable[[str], None]


NOT_PROVED = {
    "bf16": "that a library's own bfloat16 kernels give these numbers: they were computed in "
    "float32 and rounded to bfloat16 after every operator"
}
"""What an export cannot prove, by precision; the manifest records it."""


@dataclass(frozen=True)
class ExportReport:
    """Report an export; ``peak_memory_bytes`` are those of the whole process."""

    path: Path
    results: tuple[CheckResult, ...]
    seconds: float
    peak_memory_bytes: int


def export_bundle(
    config: ModelConfig,
    out: Path,
    weights: Weights,
    *,
    form: GraphForm | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export all graphs, check them against PyTorch, and write the bundle if every check passes.

    The bundle is built in a temporary folder beside ``out``, and renamed after the checks.

    Args:
        config: of the network.
        out: folder of the bundle.
        weights: origin and number formats of the weights.
        form: of the graph files; None: the default opset, dynamic sizes.
        overwrite: replace an existing bundle.
        progress: called with the name of each step.

    Raises:
        InputError: weights, form or output folder are unusable, or ``out`` holds the weights.
        ParityError: checks failed; the message names them.
    """
    started = time.perf_counter()
    say = progress or (lambda text: None)
    _check_target(out, overwrite)
    inputs = [weights.checkpoint, None if weights.clip is None else Path(weights.clip)]
    refuse_overlap([file for file in inputs if file is not None], [out])
    form = form or GraphForm()
    choose_opset(form.opset, weights.precision)
    if (box := form.box()) is not None:
        config = replace(config, input_size=box)
    say("network")
    network, origin = load_with_origin(config, weights)
    if weights.store == "fp16":
        if weights.precision == "bf16":
            raise InputError(
                "--store fp16 and --precision bf16 exclude each other, since weights would be "
                "rounded twice; leave --store out: bf16 graphs store bf16"
            )
        round_to_half(network)
    set_precision(network, weights.precision)
    try:
        with replacing_folder(out, overwrite=overwrite) as staging:
            results = _fill(staging, network, weights, origin, form, say)
            _require_all(results)
    except OSError as error:
        raise InputError(cannot_write(out, error)) from error
    return ExportReport(out, results, time.perf_counter() - started, peak_memory_bytes())


def _check_target(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"{out} exists and is not empty; pass --overwrite, or another --out")
        if not (out / MANIFEST).is_file():
            raise InputError(f"{out} is no bundle, so it is not replaced; choose another --out")
        ours = set(bundle_files(out))
        others = (file for file in out.rglob("*") if not file.is_dir() and file not in ours)
        if (other := next(others, None)) is not None:
            raise InputError(
                f"{out} also holds {other.relative_to(out)}, which is not the bundle's and would "
                "be lost; move it, or choose another --out"
            )
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose another --out")


def _fill(
    folder: Path,
    network: RvosNetwork,
    weights: Weights,
    origin: Origin,
    form: GraphForm,
    say: Progress,
) -> tuple[CheckResult, ...]:
    """Write all files of a bundle, and return the results of all checks."""
    narrow = weights.precision == "bf16"
    backend = Bf16ReferenceBackend() if narrow else OnnxRuntimeBackend()
    results: list[CheckResult] = []
    reference: Reference = {}
    files: list[str] = []
    all_graphs = graphs(network, form.static.axes() if form.static else {})
    contracts = {graph.spec.name: graph.spec for graph in all_graphs}
    _check_elements(contracts)
    for graph in all_graphs:
        say(f"export {graph.spec.name}")
        written = export_graph(graph, folder, weights.store, form.opset)
        files += [file.name for file in written]
        say(f"parity {graph.spec.name}")
        results += check_graph(graph, network, written[0], backend, reference)
        if weights.precision != "fp32":
            results += check_without_rounding(graph, network, written[0])
    write_tokenizer(folder / TOKENIZER)
    say("parity of the masks of a clip")
    length = form.static.tokens if form.static else CONTEXT_LENGTH
    tokenizer = Tokenizer(folder / TOKENIZER, length=length)
    record_clip(network, tokenizer, contracts, reference)
    np.savez_compressed(folder / PARITY, **reference)
    manifest = _manifest(network, weights, origin, backend)
    manifest["graphs"] = {name: spec.as_dict() for name, spec in contracts.items()}
    opset = choose_opset(form.opset, weights.precision)
    manifest["opsets"] = dict.fromkeys(contracts, opset)

    def write() -> None:
        manifest["parity"] = {
            "reference": f"PyTorch {torch.__version__}",
            "minimum_j_and_f": weights.minimum_j_and_f,
            "maximum_slot_excess": weights.maximum_slot_excess,
            "not_proved": NOT_PROVED.get(weights.precision),
            "checks": [result.as_dict() for result in results],
        }
        write_manifest(folder, manifest, [*files, TOKENIZER, PARITY])

    # The mask check uses the runtime, and the runtime needs a manifest.
    write()
    results.append(
        check_masks(open_bundle(folder), backend, reference[CLIP_LOGITS], reference[CLIP_ORDER])
    )
    write()
    return tuple(results)


def _check_elements(contracts: Mapping[str, GraphSpec]) -> None:
    """Refuse fixed sizes with too large tensors, before the export starts."""
    for spec in contracts.values():
        if len(spec.fixed) < len(spec.axes):
            continue
        for tensor in (*spec.inputs, *spec.outputs):
            sizes = tensor.sizes(spec.fixed)
            if math.prod(sizes) > MAXIMUM_ELEMENTS:
                raise InputError(
                    f"--static-shapes gives {spec.name} {tensor.name} as {list(sizes)}, needed: at "
                    f"most {MAXIMUM_ELEMENTS} elements; give smaller sizes"
                )


def _manifest(
    network: RvosNetwork, weights: Weights, origin: Origin, backend: Backend
) -> dict[str, Any]:
    config = network.config
    return {
        "revision": REVISION,
        "family": Pan2024.family,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": config.as_dict(),
        "precision": weights.precision,
        "threshold": config.threshold,
        "input_size": list(config.input_size),
        "weights": {
            "random": weights.random,
            "seed": weights.seed if weights.random else None,
            "checkpoint": origin.network.file,
            "checkpoint_sha256": origin.network.sha256,
            "stored": weights.store,
            "clip": weights.clip or (None if weights.random else config.clip_pretrained),
            "origin": plain(origin),
        },
        "parameters": sum(p.numel() for p in network.parameters()),
        "versions": {
            **versions("torch", "open_clip_torch", "timm", "onnx", "onnxscript"),
            "backend": backend.describe(),
        },
    }


def _require_all(results: tuple[CheckResult, ...]) -> None:
    failed = [_what_failed(result) for result in results if not result.passed]
    if failed:
        raise ParityError(
            f"{len(failed)} of {len(results)} parity checks failed, no bundle was written: "
            + "; ".join(failed[:8])
            + (" ..." if len(failed) > 8 else "")
        )


def _what_failed(result: CheckResult) -> str:
    """Return the name of a check; for masks, also the finding and the options that accept it."""
    if not isinstance(result, MaskCheck):
        return result.name
    found = (
        f"{result.name} (J&F {result.j_and_f:.4f}, needed {result.tolerance}; "
        f"{result.undecided:.2%} undecided, slots cost {result.slot_excess:.2g} more than the "
        f"best, allowed {result.allowed_excess:.2g}; export with --precision fp32"
    )
    options = []
    if result.j_and_f < result.tolerance:
        options.append(f"--minimum-j-and-f {_floor(result.j_and_f)}")
    if result.slot_excess > result.allowed_excess:
        options.append(f"--maximum-slot-excess {_ceil(result.slot_excess)}")
    if not options:
        return found + ")"
    return f"{found}, or measure what videos lose and accept it with {' '.join(options)})"


def _floor(share: float) -> float:
    """Round a J&F down to three digits."""
    return math.floor(share * 1000) / 1000


def _ceil(excess: float) -> float:
    """Round an excess cost up to two digits."""
    return math.ceil(excess * 100) / 100
