"""Define the configuration of OnlineRefer and its named presets, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import short_side_box, stretch_to_stride
from rvos_deploy.graph_io.input_size import STRIDE, check_size

Backbone = Literal["resnet"]
"""Kinds of image trunk. The keys of each kind begin with its name."""

LARGEST = 1 << 16
"""Upper bound of a width, a count or a side. It keeps damaged records from allocating memory."""

PADDING_ID = 1
"""Token id of RoBERTa's padding. Positions of the text count from the id after it."""

_COUNTS = (
    "resnet_width",
    "text_layers",
    "text_width",
    "text_heads",
    "text_ffn",
    "text_vocabulary",
    "max_tokens",
    "dim",
    "num_heads",
    "num_queries",
    "encoder_layers",
    "decoder_layers",
    "ffn",
    "num_points",
    "norm_groups",
    "pixel_norm_groups",
    "mask_channels",
    "short_side",
)
_MULTIPLES = (
    ("text_width", "text_heads"),
    ("dim", "num_heads"),
    ("dim", "norm_groups"),
    ("dim", "pixel_norm_groups"),
)


@dataclass(frozen=True)
class OnlineReferConfig:
    """Configure the network's shape. The defaults are those of the published ResNet-50 network.

    Attributes:
        name: Name of the configuration, in messages and bundles.
        backbone: Kind of the image trunk.
        resnet_blocks: Bottleneck blocks of the four stages. [blocks]
        resnet_width: Channels of the stem; the stages have 4, 8, 16 and 32 times as many.
            [channels]
        text_layers: Layers of RoBERTa. [layers]
        text_width: Width of RoBERTa; a multiple of ``text_heads``. [channels]
        text_heads: Attention heads of RoBERTa. [heads]
        text_ffn: Hidden width of RoBERTa's feed-forward networks. [channels]
        text_vocabulary: Number of token ids of RoBERTa. [ids]
        max_tokens: Longest sentence, with its start and end. [tokens]
        dim: Width of queries, image tokens and text tokens; a multiple of 4, ``num_heads`` and
            both numbers of groups. [channels]
        num_queries: Queries of an expression's first frame. [queries]
        num_heads: Attention heads outside RoBERTa. [heads]
        encoder_layers: Layers of the deformable encoder. [layers]
        decoder_layers: Layers of the deformable decoder. [layers]
        ffn: Hidden width of the feed-forward networks outside RoBERTa. [channels]
        num_points: Sampling points of deformable attention, per head and feature level. [points]
        norm_groups: Groups of the group norms before the encoder. [groups]
        pixel_norm_groups: Groups of the pixel decoder's group norms. [groups]
        mask_channels: Channels between the dynamic convolutions. [channels]
        short_side: Default short side of scaled frames. [pixels]
        input_size: (height, width) of a 16:9 frame at that short side, in multiples of 32. Checks
            and engines start from this size. [pixels]
        threshold: Score above which the tracked object counts as present. [0..1]
    """

    name: str
    backbone: Backbone = "resnet"
    resnet_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    resnet_width: int = 64
    text_layers: int = 12
    text_width: int = 768
    text_heads: int = 12
    text_ffn: int = 3072
    text_vocabulary: int = 50265
    max_tokens: int = 512
    dim: int = 256
    num_heads: int = 8
    num_queries: int = 5
    encoder_layers: int = 4
    decoder_layers: int = 4
    ffn: int = 2048
    num_points: int = 4
    norm_groups: int = 32
    pixel_norm_groups: int = 8
    mask_channels: int = 8
    short_side: int = 360
    input_size: tuple[int, int] = (352, 640)
    threshold: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self._counts():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
                raise InputError(f"{name} must be a whole number, 1 to {LARGEST}, found {value!r}")
        for width, divisor in _MULTIPLES:
            if getattr(self, width) % getattr(self, divisor):
                raise InputError(
                    f"{width} {getattr(self, width)} is not a multiple of {divisor} "
                    f"{getattr(self, divisor)}; change one of them in the model configuration"
                )
        if self.dim % 4:
            raise InputError(f"dim must be a multiple of 4 for sine positions, found {self.dim}")
        check_size(*self.input_size)
        if self.backbone not in get_args(Backbone):
            raise InputError(
                f"unknown backbone '{self.backbone}'; known: {', '.join(get_args(Backbone))}"
            )
        if not isinstance(self.threshold, (int, float)) or not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must lie in 0..1, found {self.threshold!r}")

    def _counts(self) -> list[tuple[str, object]]:
        counts: list[tuple[str, object]] = [(name, getattr(self, name)) for name in _COUNTS]
        return counts + [("resnet_blocks", blocks) for blocks in self.resnet_blocks]

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Return the channels of res2 to res5."""
        width = self.resnet_width
        return (4 * width, 8 * width, 16 * width, 32 * width)

    def with_short_side(self, short_side: int) -> OnlineReferConfig:
        """Return a configuration whose frames have another short side.

        Raises InputError: the short side is below 32.
        """
        if short_side < STRIDE:
            raise InputError(f"the short side must be at least {STRIDE}, found {short_side}")
        size = stretch_to_stride(
            (9 * short_side, 16 * short_side), short_side_box(short_side)
        ).padded
        return replace(self, short_side=short_side, input_size=size)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        lists = {name: list(getattr(self, name)) for name in ("resnet_blocks", "input_size")}
        return {**asdict(self), **lists}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> OnlineReferConfig:
        """Invert :meth:`as_dict`.

        Raises:
            InputError: a key is unknown or missing, or a value has another type or exceeds its
                bounds.
        """
        known = {field.name for field in fields(OnlineReferConfig)}
        if unknown := sorted(set(values) - known):
            raise InputError(f"unknown model configuration keys: {', '.join(unknown)}")
        if missing := sorted(known - set(values)):
            raise InputError(f"model configuration: {', '.join(missing)} missing")
        import msgspec

        try:
            return msgspec.convert({**values}, OnlineReferConfig)
        except msgspec.ValidationError as error:
            reason = str(error).replace("`", "").removesuffix(" - at $")
            raise InputError(f"model configuration: {reason}") from None


_PRESETS = (
    OnlineReferConfig(name="onlinerefer-r50"),
    OnlineReferConfig(
        name="onlinerefer-tiny",
        resnet_blocks=(1, 1, 1, 1),
        resnet_width=16,
        text_layers=2,
        text_width=64,
        text_heads=4,
        text_ffn=128,
        text_vocabulary=1024,
        max_tokens=128,
        dim=64,
        encoder_layers=2,
        decoder_layers=2,
        ffn=128,
        short_side=96,
        input_size=(96, 160),
    ),
)
PRESETS: Mapping[str, OnlineReferConfig] = {config.name: config for config in _PRESETS}


def preset(name: str) -> OnlineReferConfig:
    """Return the preset of that name.

    Raises:
        InputError: no preset has that name; the message lists the known ones.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'; known: {', '.join(PRESETS)}")
    return PRESETS[name]
