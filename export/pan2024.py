"""Export the network of Pan, Fang and Lu (2024)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rvos_deploy.bundle.manifest import Origin, WeightsRecord
from rvos_deploy.errors import InputError
from rvos_deploy.export.bundle_export import (
    BundleOptions,
    ExportReport,
    check_target,
    export_network,
    with_frames,
)
from rvos_deploy.export.calibration import CalibrationOptions, check_calibration
from rvos_deploy.export.graph_form import GraphForm, check_elements, check_static, choose_opset
from rvos_deploy.export.half_storage import round_to_half
from rvos_deploy.export.weights import Weights, load_with_origin
from rvos_deploy.graph_io.frame_geometry import resize_frame
from rvos_deploy.graph_io.probe import PROBE_EXPRESSIONS
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.clip_probe import ClipProbe
from rvos_deploy.networks.export_graph import (
    WITHOUT_ROUNDING,
    ClipAnswer,
    Encoder,
    ExportableNetwork,
)
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.graphs import AXES, graphs
from rvos_deploy.networks.pan2024.modules.clip import ImageFeatures
from rvos_deploy.networks.pan2024.modules.inference import segment_clip, tokenize
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.precision import set_precision
from rvos_deploy.networks.pan2024.network import Pan2024
from rvos_deploy.networks.pan2024.tokenizer_file import write_tokenizer
from rvos_deploy.progress import StepProgress, ignore_steps


def export_bundle(
    config: ModelConfig,
    out: Path,
    weights: Weights,
    *,
    form: GraphForm | None = None,
    calibration: CalibrationOptions | None = None,
    overwrite: bool = False,
    progress: StepProgress = ignore_steps,
) -> ExportReport:
    """Load the weights and export all graphs; see ``export_network``.

    Args:
        config: configuration of the network.
        out: folder of the bundle.
        weights: origin and number formats of the weights.
        form: opset and fixed sizes of the graphs; None: the default opset, dynamic sizes.
        calibration: frames for an int8 backbone; None in other precisions.
        overwrite: replace an existing bundle.
        progress: called with the name of each step.

    Raises:
        InputError: weights, form, frames or output folder cannot be used, or ``out`` holds the
            weights.
        VideoError: the video for int8 cannot be read.
        ParityError: checks failed; the message names all of them.
    """
    check_calibration(weights.precision, calibration)
    inputs = [weights.checkpoint, None if weights.clip is None else Path(weights.clip)]
    if calibration is not None:
        inputs.append(Path(calibration.source))
    options = BundleOptions(
        store=weights.store,
        opset=None if form is None else form.opset,
        minimum_j_and_f=weights.minimum_j_and_f,
        maximum_slot_excess=weights.maximum_slot_excess,
        overwrite=overwrite,
        inputs=tuple(file for file in inputs if file is not None),
    )
    # The folder is checked first, because loading the weights of a large network takes a while.
    check_target(out, options)
    form = form or GraphForm()
    choose_opset(form.opset, weights.precision)
    check_static(form.static, AXES)
    if (box := form.box()) is not None:
        config = replace(config, input_size=box)
    options = with_frames(options, calibration, Pan2024(config), form)

    def load() -> tuple[ExportableNetwork, WeightsRecord]:
        network, origin = _load(config, weights)
        return exportable(network, form), _record(config, weights, origin)

    return export_network(load, out, options, progress=progress)


def exportable(network: RvosNetwork, form: GraphForm | None = None) -> ExportableNetwork:
    """Return the network and its weights in the form that the exporter needs.

    Raises InputError: the fixed sizes make tensors that exceed a bundle's limit.
    """
    static = None if form is None else form.static
    parts = graphs(network, static.axes() if static else {})
    check_elements({graph.spec.name: graph.spec for graph in parts})

    def answer(probe: ClipProbe, tokenizer: Tokenizer, encoder: Encoder | None) -> ClipAnswer:
        frames = [torch.tensor(resize_frame(frame, probe.geometry)) for frame in probe.frames]
        ids = tokenize(tokenizer, PROBE_EXPRESSIONS)
        backbone = None if encoder is None else lambda frame: ImageFeatures(*encoder(frame))
        found = segment_clip(network, frames, ids, "top1", backbone)
        return ClipAnswer(found.mask_logits.numpy(), found.order.numpy())

    return ExportableNetwork(
        Pan2024(network.config),
        parts,
        sum(parameter.numel() for parameter in network.parameters()),
        write_tokenizer,
        answer,
        WITHOUT_ROUNDING.get(parts[0].spec.precision),
        ("open_clip_torch", "timm"),
    )


def _load(config: ModelConfig, weights: Weights) -> tuple[RvosNetwork, Origin]:
    network, origin = load_with_origin(config, weights)
    if weights.store == "fp16":
        if weights.precision == "bf16":
            raise InputError(
                "--store fp16 and --precision bf16 exclude each other, since weights would be "
                "rounded twice; leave --store out: bf16 graphs store bf16"
            )
        round_to_half(network)
    set_precision(network, weights.precision)
    return network, origin


def _record(config: ModelConfig, weights: Weights, origin: Origin) -> WeightsRecord:
    return WeightsRecord(
        random=weights.random,
        seed=weights.seed if weights.random else None,
        checkpoint=origin.network.file,
        checkpoint_sha256=origin.network.sha256,
        stored=weights.store,
        clip=weights.clip or (None if weights.random else config.clip_pretrained),
        origin=origin,
    )
