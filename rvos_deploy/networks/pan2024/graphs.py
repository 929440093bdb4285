"""Define the five graphs: the module that each exports, and its contract (a GraphSpec)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from rvos_deploy.graph_io.graph_spec import AxisSpec, Dim
from rvos_deploy.graph_io.input_size import STRIDE
from rvos_deploy.networks.export_graph import Graph, GraphNumbers, make_graphs
from rvos_deploy.networks.pan2024.contract import CONTRACTS
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
            memory: [E,M,N,C], see ``FrameMemory``, as for ages and empty [E,M].
            video_queries: initial video queries [E,N,C].
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
        network: a network in the type in which the graphs compute.
        fixed: sizes of fixed axes, by the axis's name (``StaticShapes.axes``).
    """
    dtype = next(network.mask_head.parameters()).dtype
    modules = {name: make(network) for name, make in _MODULES.items()}
    numbers = GraphNumbers(_values(network), dtype)
    return make_graphs(modules, CONTRACTS, AXES, numbers, fixed)


def _values(network: RvosNetwork) -> dict[Dim, Dim]:
    """Return the values of the lower-case sizes in contracts."""
    config = network.config
    values: dict[Dim, Dim] = {
        "dim": config.dim,
        "slots": config.num_queries,
        "content": network.content_width,
    }
    for level, channels in enumerate(network.clip.image_channels, start=2):
        values[f"c{level}"] = channels
    return values
