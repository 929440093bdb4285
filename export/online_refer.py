"""Export OnlineRefer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rvos_deploy.bundle.manifest import NetworkOrigin, Origin, WeightsRecord
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
from rvos_deploy.export.published import ResolvedCheckpoint, ResolvedTokenizer
from rvos_deploy.export.source import Store
from rvos_deploy.graph_io.frame_geometry import resize_frame
from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.graph_io.probe import PROBE_EXPRESSIONS
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.clip_probe import ClipProbe
from rvos_deploy.networks.export_graph import (
    WITHOUT_ROUNDING,
    ClipAnswer,
    Encoder,
    ExportableNetwork,
)
from rvos_deploy.networks.online_refer.config import OnlineReferConfig
from rvos_deploy.networks.online_refer.graphs import axes, graphs
from rvos_deploy.networks.online_refer.modules.checkpoint import load_checkpoint, random_network
from rvos_deploy.networks.online_refer.modules.inference import segment_clip
from rvos_deploy.networks.online_refer.modules.network import OnlineRefer as OnlineReferModule
from rvos_deploy.networks.online_refer.modules.precision import set_precision
from rvos_deploy.networks.online_refer.modules.resnet import ImageFeatures
from rvos_deploy.networks.online_refer.network import OnlineRefer
from rvos_deploy.networks.online_refer.tokenizer_file import (
    read_vocabulary,
    small_vocabulary,
    write_tokenizer,
)
from rvos_deploy.parity.verification import MINIMUM_J_AND_F
from rvos_deploy.progress import StepProgress, ignore_steps


@dataclass(frozen=True)
class OnlineReferWeights:
    """Choose the weights of an export, their number formats, and the limits of parity.

    Args:
        checkpoint: the published file, or a file of its layout; None: random weights.
        tokenizer: RoBERTa's vocabulary; None: a vocabulary of single bytes, for random weights.
        seed: seed of random weights.
        store: "fp16" rounds the weights and stores them as float16; the graphs compute in float32.
        precision: number format of the graphs.
        minimum_j_and_f: least J&F of the clip's masks against PyTorch's masks, 0 to 1.
        maximum_score_excess: greatest excess of the best score over the score of PyTorch's best
            query; None: the effect of rounding.
    """

    checkpoint: ResolvedCheckpoint | None = None
    tokenizer: ResolvedTokenizer | None = None
    seed: int = 0
    store: Store = "fp32"
    precision: Precision = "fp32"
    minimum_j_and_f: float = MINIMUM_J_AND_F
    maximum_score_excess: float | None = None

    def files(self) -> tuple[Path, ...]:
        """Return the files that the export reads."""
        resolved = [] if self.checkpoint is None else [self.checkpoint.file]
        resolved += [] if self.tokenizer is None else self.tokenizer.files
        return tuple(file.path for file in resolved)


def export_bundle(
    config: OnlineReferConfig,
    out: Path,
    weights: OnlineReferWeights,
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
        InputError: weights, vocabulary, form, frames or output folder cannot be used.
        VideoError: the video for int8 cannot be read.
        ParityError: checks failed; the message names all of them.
    """
    form = form or GraphForm()
    check_calibration(weights.precision, calibration)
    inputs = weights.files()
    if calibration is not None:
        inputs += (Path(calibration.source),)
    options = BundleOptions(
        store=weights.store,
        opset=form.opset,
        minimum_j_and_f=weights.minimum_j_and_f,
        maximum_slot_excess=weights.maximum_score_excess,
        overwrite=overwrite,
        inputs=inputs,
    )
    check_target(out, options)
    choose_opset(form.opset, weights.precision)
    check_static(form.static, axes(config))
    if (box := form.box()) is not None:
        config = replace(config, input_size=box, short_side=min(box))
    write = _tokenizer_writer(config, weights)
    options = with_frames(options, calibration, OnlineRefer(config), form)

    def load() -> tuple[ExportableNetwork, WeightsRecord]:
        network = load_weights(config, weights)
        return exportable(network, write, form), _record(weights)

    return export_network(load, out, options, progress=progress)


def load_weights(config: OnlineReferConfig, weights: OnlineReferWeights) -> OnlineReferModule:
    """Build the network with these weights, in eval mode and in the precision of the weights.

    Raises InputError: the checkpoint is damaged, or belongs to another network.
    """
    if weights.checkpoint is None:
        network = random_network(config, weights.seed)
    else:
        network = OnlineReferModule(config).eval()
        load_checkpoint(network, weights.checkpoint.file.path)
    if weights.store == "fp16":
        if weights.precision == "bf16":
            raise InputError(
                "--store fp16 and --precision bf16 exclude each other, since weights would be "
                "rounded twice; leave --store out: bf16 graphs store bf16"
            )
        round_to_half(network)
    set_precision(network, weights.precision)
    return network


def exportable(
    network: OnlineReferModule,
    write_tokenizer: Callable[[Path], None],
    form: GraphForm | None = None,
) -> ExportableNetwork:
    """Return the network and its weights in the form that the exporter needs.

    Raises InputError: the fixed sizes make tensors that exceed a bundle's limit.
    """
    static = None if form is None else form.static
    parts = graphs(network, static.axes() if static else {})
    check_elements({graph.spec.name: graph.spec for graph in parts})

    def answer(probe: ClipProbe, tokenizer: Tokenizer, encoder: Encoder | None) -> ClipAnswer:
        # The arrays are copied, because PyTorch warns of Pillow's read-only arrays.
        frames = [torch.tensor(resize_frame(frame, probe.geometry)) for frame in probe.frames]
        sentences = [torch.from_numpy(tokenizer(text)) for text in PROBE_EXPRESSIONS]
        backbone = None if encoder is None else lambda frame: ImageFeatures(*encoder(frame))
        found = segment_clip(network, frames, sentences, backbone)
        return ClipAnswer(found.mask_logits.numpy(), found.best.numpy())

    return ExportableNetwork(
        OnlineRefer(network.config),
        parts,
        sum(parameter.numel() for parameter in network.parameters()),
        write_tokenizer,
        answer,
        WITHOUT_ROUNDING.get(parts[0].spec.precision),
        ("transformers",),
    )


def _tokenizer_writer(
    config: OnlineReferConfig, weights: OnlineReferWeights
) -> Callable[[Path], None]:
    """Read the vocabulary now, so a wrong vocabulary is refused before the export."""
    if weights.tokenizer is not None:
        vocabulary = read_vocabulary(weights.tokenizer.path, config.text_vocabulary)
    else:
        vocabulary = small_vocabulary(config.text_vocabulary)
    return lambda file: write_tokenizer(file, vocabulary)


def _record(weights: OnlineReferWeights) -> WeightsRecord:
    random = weights.checkpoint is None
    network = (
        NetworkOrigin(random_seed=weights.seed)
        if weights.checkpoint is None
        else weights.checkpoint.origin
    )
    tokenizer = None if weights.tokenizer is None else weights.tokenizer.origin
    return WeightsRecord(
        random=random,
        seed=weights.seed if random else None,
        checkpoint=network.file,
        checkpoint_sha256=network.sha256,
        stored=weights.store,
        clip=None,
        origin=Origin(network, None, tokenizer),
    )
