"""Define the five graphs: the module that each exports, and its contract (a GraphSpec)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from rvos_deploy.graph_io.graph_spec import AxisSpec, Dim, GraphSpec, TensorSpec
from rvos_deploy.graph_io.input_size import STRIDE
from rvos_deploy.networks.export_graph import Float32Edges, Graph
from rvos_deploy.networks.modules.precision import DTYPES
from rvos_deploy.networks.pan2024.contract import CONTRACTS, Tensors
from rvos_deploy.networks.pan2024.modules.clip import ImageFeatures, TextFeatures
from rvos_deploy.networks.pan2024.modules.mask_head import unite_masks
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, referred_scores
from rvos_deploy.networks.pan2024.modules.video_query_decoder import FrameMemory
from rvos_deploy.networks.pan2024.tokenizer import CONTEXT_LENGTH

HEIGHT = AxisSpec("H", STRIDE, 4096, STRIDE)
WIDTH = AxisSpec("W", STRIDE, 4096, STRIDE)
EXPRESSIONS = AxisSpec("E", 1, 256)
TOKENS = AxisSpec("L", 2, CONTEXT_LENGTH)
MEMORY = AxisSpec("M", 1, 65536)

AXES = (HEIGHT, WIDTH, EXPRESSIONS, TOKENS, MEMORY)

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 0.13}
"""Largest difference between PyTorch and the file for the same inputs, on normalised scales.

fp32: only the order of summation differs, by about 1e-6 a layer. 1e-4 covers tens of layers and no
wrong operator. fp16: PyTorch and the file round after different operators, by 5e-4 each and about
3e-3 after tens of layers; J&F measures the effect. Queries that the last bit decides differ more
(``verification.MAXIMUM_UNDECIDED_QUERIES``). bf16: an operator rounds by 4e-3, and 36 layers by
2.3e-2. The largest of ten thousand numbers errs by four times that, and the difference of two such
results by another factor of 1.4. That cannot prove an operator, so the file is also compared
without its rounding (``export/parity.py``)."""

WITHOUT_ROUNDING = {"fp16": 2e-3, "bf16": 1e-2}
"""Tolerance for graphs in half precision when both sides compute in float32. The weights are equal.
The exporter scales queries and keys of an attention by factors that PyTorch keeps in float32 and
the file rounds, by up to 2e-3 in bfloat16 and 2.4e-4 in float16. The trained ``tiny`` differs by
4e-3 and 3.1e-4."""


class Backbone(nn.Module):
    """Normalise a frame, and run the frozen image trunk."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame: Tensor) -> ImageFeatures:
        """Return res2 to res5 of a frame uint8 [1,H,W,3]."""
        return self.network.encode_frames(frame)


class TextEncoder(nn.Module):
    """Run the frozen text tower and the trained resizers."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, token_ids: Tensor) -> TextFeatures:
        """Return tokens, sentence and padding of token ids int64 [E,L]."""
        return self.network.encode_text(token_ids)


class FrameDecoder(nn.Module):
    """Run cross-modal encoder, frame query decoder, and the initializer's part of one frame."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        res2: Tensor,
        res3: Tensor,
        res4: Tensor,
        res5: Tensor,
        *text: Tensor,
    ) -> tuple[Tensor, ...]:
        """Decode one frame for E expressions.

        Args:
            res2: features of the frame at stride 4; res3 to res5 have strides 8, 16 and 32.
            text: outputs of the text encoder for E expressions.

        Returns:
            Mask features, frame queries, their mask embeddings, slot values and logits, and the
            cues that align slots.
        """
        features = ImageFeatures(res2, res3, res4, res5)
        output = self.network.decode_frames(features, TextFeatures(*text))
        values, logits = self.network.initializer.per_frame(output.queries)
        return (
            output.mask_features,
            output.queries,
            output.mask_embeddings,
            values,
            logits,
            *self.network.slot_cues(output.descriptors),
        )


class VideoDecoder(nn.Module):
    """Run the video query decoder and its heads."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        memory: Tensor,
        memory_ages: Tensor,
        memory_empty: Tensor,
        video_queries: Tensor,
        *text: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return scores and mask embeddings of E expressions.

        Args:
            memory: [E,M,N,C], see ``FrameMemory``; likewise ages and empty [E,M].
            video_queries: [E,N,C], initial ones.
            text: outputs of the text encoder for E expressions.
        """
        stored = FrameMemory(memory, memory_ages, memory_empty)
        last = self.network.video_decoder(stored, video_queries, TextFeatures(*text))[-1]
        return referred_scores(last.logits), last.mask_embeddings


class MaskHead(nn.Module):
    """Compute the united mask logits of the queries that pass."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.mask_head = network.mask_head

    def forward(
        self,
        scores: Tensor,
        threshold: Tensor,
        mask_embeddings: Tensor,
        frame_mask_embeddings: Tensor,
        mask_features: Tensor,
    ) -> Tensor:
        """Return mask logits [E,H/4,W/4] of E expressions in one frame."""
        logits = self.mask_head(mask_embeddings, mask_features, frame_mask_embeddings)
        return unite_masks(logits, scores, threshold)


def _wide_specs(tensors: tuple[TensorSpec, ...], dtype: str) -> tuple[TensorSpec, ...]:
    """Return the specs with float32 in place of ``dtype``."""
    return tuple(replace(t, dtype="float32") if t.dtype == dtype else t for t in tensors)


def _fix(axis: AxisSpec, fixed: Mapping[str, int]) -> AxisSpec:
    size = fixed.get(axis.name)
    return axis if size is None else replace(axis, minimum=size, maximum=size)


_MODULES: Mapping[str, Callable[[RvosNetwork], nn.Module]] = {
    "backbone": Backbone,
    "text_encoder": TextEncoder,
    "frame_decoder": FrameDecoder,
    "video_decoder": VideoDecoder,
    "mask_head": MaskHead,
}


def graphs(network: RvosNetwork, fixed: Mapping[str, int] | None = None) -> tuple[Graph, ...]:
    """Return the network's five graphs with their contracts, in the order in which they run.

    Args:
        network: in the type that the graphs compute in.
        fixed: sizes of axes that are fixed, by the axis's name (``StaticShapes.axes``).
    """
    dtype = next(network.mask_head.parameters()).dtype
    precision = next(name for name, known in DTYPES.items() if known == dtype)
    real = str(dtype).removeprefix("torch.")
    values = _values(network, real)
    made = []
    for name, contract in CONTRACTS.items():
        module = _MODULES[name](network)
        inputs, outputs = (_specs(side, values) for side in (contract.inputs, contract.outputs))
        names = {axis for tensor in inputs for axis in tensor.axes}
        axes = tuple(_fix(axis, fixed or {}) for axis in AXES if axis.name in names)
        if precision == "bf16":
            module = Float32Edges(module, tuple(tensor.dtype == real for tensor in inputs))
            inputs, outputs = _wide_specs(inputs, real), _wide_specs(outputs, real)
        spec = GraphSpec(name, inputs, outputs, axes, TOLERANCES[precision], precision)
        made.append(Graph(module.eval(), spec))
    return tuple(made)


def _values(network: RvosNetwork, real: str) -> dict[Dim, Dim]:
    """Return the values of the names in contracts; ``real`` is the type that graphs compute in."""
    config = network.config
    values: dict[Dim, Dim] = {
        "dim": config.dim,
        "slots": config.num_queries,
        "content": network.content_width,
        "real": real,
    }
    for level, channels in enumerate(network.clip.image_channels, start=2):
        values[f"c{level}"] = channels
    return values


def _specs(tensors: Tensors, values: Mapping[Dim, Dim]) -> tuple[TensorSpec, ...]:
    """Return the specs of a contract's tensors with these values."""
    return tuple(
        TensorSpec(name, str(values.get(dtype, dtype)), tuple(values.get(x, x) for x in shape))
        for name, (dtype, shape) in tensors.items()
    )
