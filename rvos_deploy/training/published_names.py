"""Map our parameter names to those of Mask2Former and FC-CLIP, and define how each is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from rvos_deploy.networks.pan2024.config import ModelConfig

HEAD = "sem_seg_head."
PIXEL_DECODER = HEAD + "pixel_decoder."
PREDICTOR = HEAD + "predictor."

HEADS, LEVELS = 8, 3

ARITHMETIC = {"num_heads": HEADS, "num_points": 4, "norm_groups": 32, "position_cycles": 1.0}
"""Values of their configurations that no weight's shape shows."""

Shape = tuple[int, ...]
Reasons = tuple[tuple[str, str], ...]


class Reading(NamedTuple):
    """Define how one of our weights is read from a published one.

    needs: returns the published shape for our shape.
    read: returns our weight from the published one and our shape.
    more_rows: whether the published weight may have more rows.
    """

    needs: Callable[[Shape], Shape]
    read: Callable[[Tensor, Shape], Tensor]
    more_rows: bool = False


def _third(index: int) -> Reading:
    """Read one of query, key and value, which ``nn.MultiheadAttention`` stacks in this order."""
    return Reading(
        lambda ours: (3 * ours[0], *ours[1:]), lambda published, _: published.chunk(3)[index]
    )


def _reverse_level_rows(published: Tensor, _: Shape) -> Tensor:
    """Reverse the order of the levels in rows over heads, levels and points (and x, y)."""
    rows = published.unflatten(0, (HEADS, LEVELS, -1))
    return rows.flip(1).flatten(0, 2)


AS_IS = Reading(lambda ours: ours, lambda published, _: published)
REVERSED = Reading(lambda ours: ours, lambda published, _: published.flip(0))
REVERSED_LEVEL_ROWS = Reading(lambda ours: ours, _reverse_level_rows)
FIRST_ROWS = Reading(
    lambda ours: ours, lambda published, ours: published[: ours[0]], more_rows=True
)

# Each row is (ours, published): a module with weight and bias, unless a comment says otherwise.

# Their pixel decoder orders its levels by strides 32, 16, 8; our encoder by 8, 16, 32.
_PIXEL_DECODER = (
    ("encoder.projections.0.0", "input_proj.2.0"),
    ("encoder.projections.0.1", "input_proj.2.1"),
    ("encoder.projections.1.0", "input_proj.1.0"),
    ("encoder.projections.1.1", "input_proj.1.1"),
    ("encoder.projections.2.0", "input_proj.0.0"),
    ("encoder.projections.2.1", "input_proj.0.1"),
    # One FPN level, from stride 8 to 4. The norm is a child of detectron2's Conv2d.
    ("encoder.lateral.0", "adapter_1"),
    ("encoder.lateral.1", "adapter_1.norm"),
    ("encoder.fpn.0", "layer_1"),
    ("encoder.fpn.1", "layer_1.norm"),
    ("encoder.mask_features", "mask_features"),
)
# A published convolution before a norm has no bias. Ours has one, which becomes 0.
ZERO_IF_ABSENT = ("encoder.lateral.0.bias", "encoder.fpn.0.bias")

# In both, offsets are pixels of the sampled level, divided by its (W, H).
_ENCODER_LAYER = (
    ("sampling_offsets", "self_attn.sampling_offsets", REVERSED_LEVEL_ROWS),
    ("attention_logits", "self_attn.attention_weights", REVERSED_LEVEL_ROWS),
    ("value", "self_attn.value_proj", AS_IS),
    ("output", "self_attn.output_proj", AS_IS),
    ("norm", "norm1", AS_IS),
    ("ffn.expand", "linear1", AS_IS),
    ("ffn.shrink", "linear2", AS_IS),
    ("ffn.norm", "norm2", AS_IS),
)

# Both decoders read the levels coarse to fine, so their order stays. The published decoder has
# separate stacks for cross-attention, self-attention and feed-forward, and ours has one stack. {}
# is the number of the layer.
_CROSS = "transformer_cross_attention_layers.{}."
_SELF = "transformer_self_attention_layers.{}."
_FFN = "transformer_ffn_layers.{}."
_DECODER_LAYER = (
    ("memory_attention.attention.output", _CROSS + "multihead_attn.out_proj"),
    ("memory_attention.norm", _CROSS + "norm"),
    ("self_attention.attention.output", _SELF + "self_attn.out_proj"),
    ("self_attention.norm", _SELF + "norm"),
    ("ffn.expand", _FFN + "linear1"),
    ("ffn.shrink", _FFN + "linear2"),
    ("ffn.norm", _FFN + "norm"),
)
# Published as one in_proj_weight and one in_proj_bias; ours has query, key and value.
_DECODER_ATTENTION = (
    ("memory_attention.attention", _CROSS + "multihead_attn"),
    ("self_attention.attention", _SELF + "self_attn"),
)
_DECODER = (
    ("frame_decoder.norm", "decoder_norm"),
    # Our numbers also count the ReLUs between the layers.
    ("frame_decoder.mask_embedding.0", "mask_embed.layers.0"),
    ("frame_decoder.mask_embedding.2", "mask_embed.layers.1"),
    ("frame_decoder.mask_embedding.4", "mask_embed.layers.2"),
)

# Parameters outside modules. We read the first N of their 100 to 250 query positions. Queries are
# matched to objects by cost and not by index, so every choice of N is equally good, and the loaded
# attention was trained with positions of this distribution.
_PARAMETERS = (
    ("encoder.level_embedding", PIXEL_DECODER + "transformer.level_embed", REVERSED),
    ("frame_decoder.level_embedding", PREDICTOR + "level_embed.weight", AS_IS),
    ("frame_decoder.query_position", PREDICTOR + "query_embed.weight", FIRST_ROWS),
)

_CLIP = "comes with the configuration or from --clip-weights"
NO_COUNTERPART: Reasons = (
    (r"clip\.", f"frozen CLIP part: {_CLIP}"),
    (r"text_resizer\.", "text resizer: they have no text tokens"),
    (r"encoder\.layers\.\d+\.(fusion|text_attention|text_ffn)\.", "text fusion in the encoder"),
    (r"frame_decoder\.layers\.\d+\.text_attention\.", "text attention in the frame decoder"),
    (r"frame_decoder\.object_head\.", "object head: (object, no object), not their categories"),
    (r"frame_decoder\.mask_position\.", "position of a query's mask: ours alone"),
    (r"frame_decoder\.mask_content\.", "what lies under a query's mask: ours alone"),
    (r"frame_decoder\.query_share", "share of a query in its token: ours alone"),
    (r"initializer\.", "video query initializer: they see single images"),
    (r"video_decoder\.", "video query decoder: they see single images"),
    (r"mask_head\.", "convolution before the video masks: ours after LMPM"),
)
UNUSED: Reasons = (
    (r"backbone\.", f"backbone: ours is the frozen CLIP, which {_CLIP}"),
    (r".*\.(query_feat|static_query)\.", "contents of queries: ours start from the sentence"),
    (
        r"void_embedding\.|.*\.predictor\.(class_embed|logit_scale|_mask_pooling_proj)\b",
        "classification into their categories: ours says referred to or not",
    ),
    (r".*\.predictor\.input_proj\.", "projection before the decoder: ours has none"),
    (r"criterion\.", "weights of their loss"),
)


class Source(NamedTuple):
    """Name the published weight that one of ours comes from, and how it is read."""

    published: str
    reading: Reading


def name_map(config: ModelConfig) -> dict[str, Source]:
    """Return the published source of each of our weights that has one."""
    layers = [(i, f"frame_decoder.layers.{i}.") for i in range(config.frame_decoder_layers)]
    return {
        **{ours: Source(published, reading) for ours, published, reading in _PARAMETERS},
        **_modules((ours, PIXEL_DECODER + there, AS_IS) for ours, there in _PIXEL_DECODER),
        **_modules(
            (
                f"encoder.layers.{i}.deformable.{ours}",
                f"{PIXEL_DECODER}transformer.encoder.layers.{i}.{there}",
                reading,
            )
            for i in range(config.encoder_layers)
            for ours, there, reading in _ENCODER_LAYER
        ),
        **_modules((ours, PREDICTOR + there, AS_IS) for ours, there in _DECODER),
        **_modules(
            (layer + ours, PREDICTOR + there.format(i), AS_IS)
            for i, layer in layers
            for ours, there in _DECODER_LAYER
        ),
        **{
            f"{layer}{ours}.{projection}.{kind}": Source(
                f"{PREDICTOR}{there.format(i)}.in_proj_{kind}", _third(third)
            )
            for i, layer in layers
            for ours, there in _DECODER_ATTENTION
            for third, projection in enumerate(("query", "key", "value"))
            for kind in ("weight", "bias")
        },
    }


def _modules(rows: Iterable[tuple[str, str, Reading]]) -> dict[str, Source]:
    """Return the sources of weight and bias of each module (ours, published)."""
    return {
        f"{ours}.{kind}": Source(f"{published}.{kind}", reading)
        for ours, published, reading in rows
        for kind in ("weight", "bias")
    }
