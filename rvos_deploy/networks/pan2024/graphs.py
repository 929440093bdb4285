"""The five graphs: what each computes (as a module) and its contract (as a GraphSpec)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec, TensorSpec
from rvos_deploy.graph_io.input_size import STRIDE
from rvos_deploy.graph_io.tokenizer import CONTEXT_LENGTH
from rvos_deploy.networks.export_graph import Float32Edges, Graph
from rvos_deploy.networks.pan2024.modules.clip import ImageFeatures, TextFeatures
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import POSITION_NUMBERS
from rvos_deploy.networks.pan2024.modules.mask_head import unite_masks
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, referred_scores
from rvos_deploy.networks.pan2024.modules.precision import DTYPES

HEIGHT = AxisSpec("H", STRIDE, 4096, STRIDE)
WIDTH = AxisSpec("W", STRIDE, 4096, STRIDE)
EXPRESSIONS = AxisSpec("E", 1, 256)
TOKENS = AxisSpec("L", 2, CONTEXT_LENGTH)
MEMORY = AxisSpec("M", 1, 65536)

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 0.13}
"""Outputs of one graph on the same inputs differ by the order of summation only. In float32 that is
about 1e-6 a layer on normalised scales: 1e-4 leaves room for tens of layers and none for a wrong
operator. In float16 PyTorch and the file round after each operator, and not after the same ones:
5e-4 each, about 3e-3 after tens of layers; what survives of it shows in J&F. Queries that the last
bit decides go further (``verification.MAXIMUM_UNDECIDED_QUERIES``). bfloat16
rounds by 4e-3: 2.3e-2 after 36 layers, the largest of ten thousand numbers four times that, and the
difference of two such results 1.4 times that again. It is too much to prove an operator by, which
is why the same file is also compared without its rounding (see parity.py)."""

WITHOUT_ROUNDING = {"fp16": 2e-3, "bf16": 1e-2}
"""Of graphs in half precision, both sides in float32. Weights are the same numbers, but factors
that PyTorch keeps in float32 are rounded in the file, by up to 2e-3 in bfloat16 and 2.4e-4 in
float16: the exporter puts one before the queries and one before the keys of an attention. Found in
the trained ``tiny``: 4e-3 and 3.1e-4."""


class Backbone(nn.Module):
    """Normalisation and the frozen image trunk."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame: Tensor) -> ImageFeatures:
        """Frame uint8 [1,H,W,3] -> res2..res5."""
        return self.network.encode_frames(frame)


class TextEncoder(nn.Module):
    """The frozen text tower and the trained resizers."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, token_ids: Tensor) -> TextFeatures:
        """Token ids int64 [E,L] -> tokens, sentence, padding."""
        return self.network.encode_text(token_ids)


class FrameDecoder(nn.Module):
    """Cross-modal encoder, frame query decoder, and the initializer's share of one frame."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        res2: Tensor,
        res3: Tensor,
        res4: Tensor,
        res5: Tensor,
        text_tokens: Tensor,
        sentence: Tensor,
        text_padding: Tensor,
    ) -> tuple[Tensor, ...]:
        """One frame, E expressions -> mask features, frame queries, their mask embeddings, slot
        values and logits, and the cues that slots are aligned by.
        """
        features = ImageFeatures(res2, res3, res4, res5)
        text = TextFeatures(text_tokens, sentence, text_padding)
        output = self.network.decode_frames(features, text)
        values, logits = self.network.initializer.per_frame(output.queries)
        return (
            output.mask_features,
            output.queries,
            output.mask_embeddings,
            values,
            logits,
            *self.network.slot_cues(output.facts),
        )


class VideoDecoder(nn.Module):
    """Video query decoder and heads."""

    def __init__(self, network: RvosNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        memory: Tensor,
        memory_ages: Tensor,
        memory_empty: Tensor,
        video_queries: Tensor,
        text_tokens: Tensor,
        sentence: Tensor,
        text_padding: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Memory of M frames, E expressions -> scores, mask embeddings."""
        last = self.network.video_decoder(
            memory, memory_ages, memory_empty, video_queries, text_tokens, sentence, text_padding
        )[-1]
        return referred_scores(last.logits), last.mask_embeddings


class MaskHead(nn.Module):
    """Mask logits of the queries that pass, united."""

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
        """E expressions on one frame's mask features -> mask logits [E,H/4,W/4]."""
        logits = self.mask_head(mask_embeddings, mask_features, frame_mask_embeddings)
        return unite_masks(logits, scores, threshold)


def _wide_specs(tensors: tuple[TensorSpec, ...], dtype: str) -> tuple[TensorSpec, ...]:
    """float32 for those of ``dtype``."""
    return tuple(replace(t, dtype="float32") if t.dtype == dtype else t for t in tensors)


def _fix(axis: AxisSpec, fixed: Mapping[str, int]) -> AxisSpec:
    size = fixed.get(axis.name)
    return axis if size is None else replace(axis, minimum=size, maximum=size)


def graphs(network: RvosNetwork, fixed: Mapping[str, int] | None = None) -> tuple[Graph, ...]:
    """The network's five graphs with their contracts, in the order in which they run.

    ``fixed``: sizes of axes that have that size alone, by name (``StaticShapes.axes``).
    """
    config = network.config
    dim, slots = config.dim, config.num_queries
    dtype = next(network.mask_head.parameters()).dtype
    precision = next(name for name, known in DTYPES.items() if known == dtype)
    real = str(dtype).removeprefix("torch.")
    pyramid = tuple(
        TensorSpec(f"res{level}", real, (1, channels, f"H/{2**level}", f"W/{2**level}"))
        for level, channels in zip(range(2, 6), network.clip.image_channels, strict=True)
    )
    text = (
        TensorSpec("text_tokens", real, ("E", "L", dim)),
        TensorSpec("sentence", real, ("E", dim)),
        TensorSpec("text_padding", "bool", ("E", "L")),
    )
    queries = ("E", slots, dim)
    mask_features = TensorSpec("mask_features", real, ("E", dim, "H/4", "W/4"))
    scores = TensorSpec("scores", "float32", ("E", slots))
    embeddings = TensorSpec("mask_embeddings", real, queries)
    frame_embeddings = TensorSpec("frame_mask_embeddings", real, queries)

    def graph(
        module: nn.Module,
        name: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *axes: AxisSpec,
    ) -> Graph:
        if precision == "bf16":
            module = Float32Edges(module, tuple(tensor.dtype == real for tensor in inputs))
            inputs, outputs = _wide_specs(inputs, real), _wide_specs(outputs, real)
        bounds = tuple(_fix(axis, fixed or {}) for axis in axes)
        spec = GraphSpec(name, inputs, outputs, bounds, TOLERANCES[precision], precision)
        return Graph(module.eval(), spec)

    return (
        graph(
            Backbone(network),
            "backbone",
            (TensorSpec("frame", "uint8", (1, "H", "W", 3)),),
            pyramid,
            HEIGHT,
            WIDTH,
        ),
        graph(
            TextEncoder(network),
            "text_encoder",
            (TensorSpec("token_ids", "int64", ("E", "L")),),
            text,
            EXPRESSIONS,
            TOKENS,
        ),
        graph(
            FrameDecoder(network),
            "frame_decoder",
            (*pyramid, *text),
            (
                mask_features,
                TensorSpec("frame_queries", real, queries),
                frame_embeddings,
                TensorSpec("slot_values", real, queries),
                TensorSpec("slot_logits", real, ("E", slots)),
                TensorSpec("slot_position", "float32", ("E", slots, POSITION_NUMBERS)),
                TensorSpec("slot_content", real, ("E", slots, network.content_width)),
                TensorSpec("slot_score", "float32", ("E", slots)),
            ),
            HEIGHT,
            WIDTH,
            EXPRESSIONS,
            TOKENS,
        ),
        graph(
            VideoDecoder(network),
            "video_decoder",
            (
                TensorSpec("memory", real, ("E", "M", slots, dim)),
                TensorSpec("memory_ages", "float32", ("E", "M")),
                TensorSpec("memory_empty", "bool", ("E", "M")),
                TensorSpec("video_queries", real, queries),
                *text,
            ),
            (scores, embeddings),
            EXPRESSIONS,
            TOKENS,
            MEMORY,
        ),
        graph(
            MaskHead(network),
            "mask_head",
            (
                scores,
                TensorSpec("threshold", "float32", ("E",)),
                embeddings,
                frame_embeddings,
                mask_features,
            ),
            (TensorSpec("mask_logits", "float32", ("E", "H/4", "W/4")),),
            HEIGHT,
            WIDTH,
            EXPRESSIONS,
        ),
    )
