"""Define the three graphs: the module that each exports, and its contract (a GraphSpec)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from rvos_deploy.graph_io.graph_spec import AxisSpec, Dim
from rvos_deploy.graph_io.input_size import STRIDE
from rvos_deploy.networks.export_graph import Graph, GraphNumbers, make_graphs
from rvos_deploy.networks.online_refer.config import OnlineReferConfig
from rvos_deploy.networks.online_refer.contract import CONTRACTS
from rvos_deploy.networks.online_refer.modules.network import FrameOutput, OnlineRefer, Track
from rvos_deploy.networks.online_refer.modules.resnet import ImageFeatures


def axes(config: OnlineReferConfig) -> tuple[AxisSpec, ...]:
    """Return all named axes, with their bounds."""
    return (
        AxisSpec("H", STRIDE, 4096, STRIDE),
        AxisSpec("W", STRIDE, 4096, STRIDE),
        AxisSpec("E", 1, 256),
        AxisSpec("L", 2, config.max_tokens),
    )


class Backbone(nn.Module):
    """Normalise a frame, and run the image trunk."""

    def __init__(self, network: OnlineRefer) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame: Tensor) -> ImageFeatures:
        """Return res2 to res5 of a frame uint8 [1,H,W,3]."""
        return self.network.image_features(frame)


class TextEncoder(nn.Module):
    """Run RoBERTa and the resizer."""

    def __init__(self, network: OnlineRefer) -> None:
        super().__init__()
        self.network = network

    def forward(self, token_ids: Tensor, text_padding: Tensor) -> Tensor:
        """Return tokens [E,L,C] of token ids int64 [E,L]; padding bool [E,L]."""
        return self.network.text_tokens(token_ids, text_padding)


class FrameDecoder(nn.Module):
    """Run fusion, encoder, decoder and pixel decoder, and choose the best query."""

    def __init__(self, network: OnlineRefer) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        res2: Tensor,
        res3: Tensor,
        res4: Tensor,
        res5: Tensor,
        text_tokens: Tensor,
        text_padding: Tensor,
        *track: Tensor,
    ) -> FrameOutput:
        """Decode one frame for E expressions.

        Args:
            res2: features of the frame at stride 4; res3 to res5 have strides 8, 16 and 32.
            text_tokens: [E,L,C].
            text_padding: bool [E,L].
            track: the fields of ``Track``.
        """
        features = ImageFeatures(res2, res3, res4, res5)
        return self.network.decode_frame(features, text_tokens, text_padding, Track(*track))


def graphs(network: OnlineRefer, fixed: Mapping[str, int] | None = None) -> tuple[Graph, ...]:
    """Return the network's three graphs with their contracts, in the order in which they run.

    Args:
        network: a network in the type in which the graphs compute.
        fixed: sizes of fixed axes, by the axis's name (``StaticShapes.axes``).
    """
    modules = {
        "backbone": Backbone(network),
        "text_encoder": TextEncoder(network),
        "frame_decoder": FrameDecoder(network),
    }
    config = network.config
    sizes: dict[Dim, Dim] = {"dim": config.dim, "queries": config.num_queries}
    sizes |= {f"c{level}": channels for level, channels in enumerate(config.channels, start=2)}
    numbers = GraphNumbers(sizes, network.dtype)
    return make_graphs(modules, CONTRACTS, axes(config), numbers, fixed)
