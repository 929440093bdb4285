"""Define the configuration of the network and its named presets, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.input_size import check_size

Initializer = Literal["aligned", "weighted", "sentence"]
Alignment = Literal["mask_cues", "cosine"]
ReferredHeadKind = Literal["product", "linear"]
Hiding = Literal["ramp", "threshold"]
SlotPosition = Literal["shared", "separate"]

LARGEST = 1 << 15
"""Upper bound of a width, a count or a side. It keeps damaged records from allocating memory."""

RENAMED_KEYS: Mapping[str, str] = {"course": "trajectory_encoding", "rivals": "competition"}
"""Keys that older records use, and their present names."""
RENAMED_ALIGNMENTS: Mapping[str, str] = {"sight": "mask_cues"}
"""Values of ``alignment`` that older records use, and their present names."""

_COUNTS = (
    "dim",
    "num_queries",
    "num_heads",
    "encoder_layers",
    "encoder_ffn",
    "num_points",
    "fusion_heads",
    "fusion_dim",
    "frame_decoder_layers",
    "video_decoder_layers",
    "decoder_ffn",
    "norm_groups",
)


_CHOICES = {
    "initializer": Initializer,
    "alignment": Alignment,
    "referred_head": ReferredHeadKind,
    "hiding": Hiding,
    "slot_position": SlotPosition,
}


@dataclass(frozen=True)
class ModelConfig:
    """Configure the network's shape and arithmetic.

    The widths of the CLIP part follow from ``clip``. Keys marked "Ours" switch parts that none of
    the paper's ancestors has. The preset ``large-paper`` switches all of them off.

    Attributes:
        name: Name of the configuration, in messages and bundles.
        clip: open_clip's name of the frozen CLIP model.
        clip_pretrained: open_clip's tag of the CLIP weights. None: no weights are published, so
            ``--clip-weights`` is needed.
        dim: Width of queries, image tokens and text tokens; a multiple of ``num_heads``,
            ``norm_groups`` and 4. [channels]
        num_queries: Queries in each frame and clip, which bounds the objects that can be found.
            [queries]
        num_heads: Attention heads of both decoders and of deformable attention. [heads]
        encoder_layers: Layers of the cross-modal encoder. [layers]
        encoder_ffn: Hidden width of the encoder's feed-forward networks. [channels]
        num_points: Sampling points of deformable attention, per head and feature level. [points]
        fusion_heads: Attention heads of text fusion and of the text's self-attention in the
            encoder. [heads]
        fusion_dim: Width inside text fusion; a multiple of ``fusion_heads``. [channels]
        fusion_layer_scale: Initial LayerScale of the text fusion's residual branch.
        frame_decoder_layers: Layers of the frame query decoder. [layers]
        video_decoder_layers: Layers of the video query decoder. [layers]
        decoder_ffn: Hidden width of the feed-forward networks of both decoders. [channels]
        norm_groups: Groups of the encoder's group norms. [groups]
        position_cycles: Cycles of the fastest position sine across a feature map. Mask2Former has
            1; more cycles separate neighbours on small maps. [cycles]
        initializer: Initial video queries: the sum over time of aligned frame queries ("aligned"),
            the same sum without alignment ("weighted", LBVQ), or the sentence ("sentence", LMPM).
        text_fusion: Whether image and text attend to each other in the encoder.
        text_words: Ours. Whether the text resizer also reads the word embeddings that CLIP's text
            tower reads.
        mask_position: Ours. Whether frame tokens carry the position of their mask.
        mask_content: Ours. Whether frame tokens carry CLIP's features under their mask.
        frame_masks: Ours. Whether the frame query's mask embedding is added to that of the video
            query of its slot.
        trajectory_encoding: Ours. Whether an encoding of the slot's trajectory is added to each
            initial video query.
        competition: Ours. Whether a query's score falls with its distance to the best query of the
            clip.
        alignment: How slots follow objects: by the position, size and CLIP content of their masks
            ("mask_cues", ours), or by the cosine of frame queries ("cosine", after MinVIS and
            DVIS).
        own_slot: Ours. Whether half of the video decoder's heads are initialised to prefer a
            query's own slot.
        temporal_position: Ours. Whether the video decoder's memory carries the age of each frame.
        referred_head: How queries are scored: by the product of query and text ("product", ours),
            or by a linear layer on both ("linear", LMPM).
        hiding: How masked attention hides pixels: by a ramp ("ramp", ours), or below a probability
            of one half ("threshold", Mask2Former).
        slot_position: Learned position of a video query and of its slot's frame tokens: one for
            both, initially zero ("shared", ours), or one each, initially random ("separate", VITA
            and LMPM).
        input_size: Height and width of the box for frames in validation and in a bundle, multiples
            of 32. [pixels]
        threshold: Score above which a query belongs to the answer. [0..1]
    """

    name: str
    clip: str
    clip_pretrained: str | None = None
    dim: int = 256
    num_queries: int = 20
    num_heads: int = 8
    encoder_layers: int = 6
    encoder_ffn: int = 1024
    num_points: int = 4
    fusion_heads: int = 4
    fusion_dim: int = 256
    fusion_layer_scale: float = 1e-4
    frame_decoder_layers: int = 9
    video_decoder_layers: int = 6
    decoder_ffn: int = 2048
    norm_groups: int = 32
    position_cycles: float = 1.0
    initializer: Initializer = "aligned"
    text_fusion: bool = True
    text_words: bool = False
    mask_position: bool = True
    mask_content: bool = True
    frame_masks: bool = True
    trajectory_encoding: bool = True
    competition: bool = True
    alignment: Alignment = "mask_cues"
    own_slot: bool = True
    temporal_position: bool = True
    referred_head: ReferredHeadKind = "product"
    hiding: Hiding = "ramp"
    slot_position: SlotPosition = "shared"
    input_size: tuple[int, int] = (448, 800)
    threshold: float = 0.5

    def __post_init__(self) -> None:
        self._check_numbers()
        for divisor in ("num_heads", "norm_groups"):
            if self.dim % getattr(self, divisor):
                raise InputError(
                    f"dim {self.dim} is not a multiple of {divisor} {getattr(self, divisor)}; "
                    f"change one of them in the model configuration"
                )
        if self.dim % 4:
            raise InputError(f"dim must be a multiple of 4 for sine positions, found {self.dim}")
        if self.fusion_dim % self.fusion_heads:
            raise InputError(
                f"fusion_dim {self.fusion_dim} is not a multiple of "
                f"fusion_heads {self.fusion_heads}"
            )
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choices):
                raise InputError(f"unknown {name} '{value}'; known: {', '.join(get_args(choices))}")
        check_size(*self.input_size)

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
                raise InputError(f"{name} must be a whole number, 1 to {LARGEST}, found {value!r}")
        for name in ("fusion_layer_scale", "position_cycles"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} must be a finite number, found {getattr(self, name)!r}")
        if not isinstance(self.threshold, (int, float)) or not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must lie in 0..1, found {self.threshold!r}")
        if not all(isinstance(side, int) and side <= LARGEST for side in self.input_size):
            raise InputError(
                f"input_size must be two whole numbers of at most {LARGEST}, "
                f"found {self.input_size!r}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "input_size": list(self.input_size)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelConfig:
        """Invert :meth:`as_dict`, also for records with older keys (:func:`current_keys`).

        Raises:
            InputError: a key is unknown or missing, or a value has another type or exceeds its
                bounds.
        """
        values = current_keys(values)
        known = {field.name for field in fields(ModelConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"unknown model configuration keys: {', '.join(unknown)}")
        import msgspec

        if "input_size" not in values:
            raise InputError("model configuration: input_size is missing")
        try:
            return msgspec.convert({**values}, ModelConfig)
        except msgspec.ValidationError as error:
            reason = str(error).replace("`", "").removesuffix(" - at $")
            raise InputError(f"model configuration: {reason}") from None


def current_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration under the present names of its keys and values."""
    named = {RENAMED_KEYS.get(key, key): value for key, value in values.items()}
    if isinstance(alignment := named.get("alignment"), str):
        named["alignment"] = RENAMED_ALIGNMENTS.get(alignment, alignment)
    return named


_PRESETS = (
    ModelConfig(
        name="large",
        clip="convnext_large_d_320",
        clip_pretrained="laion2b_s29b_b131k_ft_soup",
    ),
    # The paper and its stated ancestors, without any of our additions.
    ModelConfig(
        name="large-paper",
        clip="convnext_large_d_320",
        clip_pretrained="laion2b_s29b_b131k_ft_soup",
        fusion_dim=1024,
        mask_position=False,
        mask_content=False,
        frame_masks=False,
        trajectory_encoding=False,
        competition=False,
        alignment="cosine",
        own_slot=False,
        temporal_position=False,
        referred_head="linear",
        hiding="threshold",
        slot_position="separate",
    ),
    ModelConfig(
        name="base",
        clip="convnext_base_w_320",
        clip_pretrained="laion_aesthetic_s13b_b82k_augreg",
    ),
    ModelConfig(
        name="tiny",
        clip="rvos_tiny",
        dim=128,
        encoder_layers=3,
        encoder_ffn=512,
        fusion_dim=128,
        fusion_layer_scale=0.1,
        frame_decoder_layers=3,
        video_decoder_layers=2,
        text_words=True,
        decoder_ffn=512,
        position_cycles=4.0,
        input_size=(128, 224),
    ),
)
PRESETS: Mapping[str, ModelConfig] = {config.name: config for config in _PRESETS}


def preset(name: str) -> ModelConfig:
    """Return the preset of that name.

    Raises:
        InputError: no preset has that name; the message lists the known ones.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'; known: {', '.join(PRESETS)}")
    return PRESETS[name]
