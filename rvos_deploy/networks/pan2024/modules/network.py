"""Assemble the network: stages that are exported separately, and the forward pass of a clip."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.clip import (
    FrozenClip,
    ImageFeatures,
    TextFeatures,
    build_clip,
)
from rvos_deploy.networks.pan2024.modules.cross_modal_encoder import CrossModalEncoder
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import (
    FramePrediction,
    FrameQueryDecoder,
    QueryDescriptors,
)
from rvos_deploy.networks.pan2024.modules.mask_head import MaskHead
from rvos_deploy.networks.pan2024.modules.slot_alignment import align_slots, gather_slots
from rvos_deploy.networks.pan2024.modules.text_resizer import TextResizer
from rvos_deploy.networks.pan2024.modules.video_query_decoder import (
    FrameMemory,
    VideoPrediction,
    VideoQueryDecoder,
)
from rvos_deploy.networks.pan2024.modules.video_query_initializer import VideoQueryInitializer


class FrameOutput(NamedTuple):
    """Hold the output of the frame part.

    mask_features: [B,C,H/4,W/4].
    queries: [B,N,C], the frame tokens.
    predictions: predictions of every layer, for the losses.
    mask_embeddings: [B,N,C], added to those of the video queries in this frame.
    descriptors: the source of the frame tokens.
    """

    mask_features: Tensor
    queries: Tensor
    predictions: list[FramePrediction]
    mask_embeddings: Tensor
    descriptors: QueryDescriptors


class VideoOutput(NamedTuple):
    """Hold the output of the video part.

    aligned_queries: frame queries [B,T,N,C], ordered by slot.
    order: int64 [B,T,N], the query in each slot.
    predictions: predictions of every layer.
    frame_mask_embeddings: [B,T,N,C], ordered by slot.
    """

    aligned_queries: Tensor
    order: Tensor
    predictions: list[VideoPrediction]
    frame_mask_embeddings: Tensor | None = None


class NetworkOutput(NamedTuple):
    """Hold the output of the frame part (batch and time flattened: B*T) and of the video part."""

    frames: FrameOutput
    video: VideoOutput


class RvosNetwork(nn.Module):
    """Segment referred objects in videos, after Pan, Fang and Lu (2024, arXiv 2406.04842)."""

    def __init__(self, config: ModelConfig, clip: FrozenClip) -> None:
        super().__init__()
        self.config = config
        self.clip = clip
        self.text_resizer = TextResizer(
            clip.text_width, clip.embed_dim, config.dim, config.text_words
        )
        self.encoder = CrossModalEncoder(config, clip.image_channels)
        self.frame_decoder = FrameQueryDecoder(config, clip.image_channels)
        self.initializer = VideoQueryInitializer(config)
        self.video_decoder = VideoQueryDecoder(config)
        self.mask_head = MaskHead(config.dim)

    def encode_frames(self, frames: Tensor) -> ImageFeatures:
        """Return image features of uint8 frames [B,H,W,3], H and W multiples of 32."""
        return self.clip.image_features(frames)

    def encode_text(self, token_ids: Tensor) -> TextFeatures:
        """Return resized text features of int64 token ids [E,L]."""
        words = self.clip.word_embeddings(token_ids) if self.config.text_words else None
        return self.text_resizer(self.clip.text_features(token_ids), words)

    def decode_frames(self, features: ImageFeatures, text: TextFeatures) -> FrameOutput:
        """Decode B texts, on B frames or on one frame that they share."""
        encoded = self.encoder(features, text.tokens, text.padding)
        decoded = self.frame_decoder(encoded, text.sentence, text.padding)
        embeddings = decoded.predictions[-1].mask_embeddings
        if not self.config.frame_masks:
            embeddings = torch.zeros_like(embeddings)
        return FrameOutput(
            encoded.mask_features,
            decoded.queries,
            decoded.predictions,
            embeddings,
            decoded.descriptors,
        )

    def decode_video(
        self,
        frame_queries: Tensor,
        order: Tensor,
        text: TextFeatures,
        ages: Tensor | None = None,
        mask_embeddings: Tensor | None = None,
    ) -> VideoOutput:
        """Order the frame queries of whole clips by slot, and decode video queries from them.

        Args:
            frame_queries: [B,T,N,C].
            order: int64 [B,T,N], from :meth:`slot_order`.
            text: text of B*S sentences, grouped by clip.
            ages: [B,T], age of each frame in frames (0: the newest); None: consecutive frames.
            mask_embeddings: [B,T,N,C] of the frame queries, to be ordered with them.

        Returns:
            Predictions for B*S sentences; other fields for B clips.
        """
        batch, length = frame_queries.shape[:2]
        sentences = text.sentence.shape[0] // batch
        values, logits = self.initializer.per_frame(frame_queries)
        aligned = gather_slots(frame_queries, order)
        values, logits = gather_slots(values, order), gather_slots(logits, order)
        if sentences > 1:
            values = values.repeat_interleave(sentences, 0)
            logits = logits.repeat_interleave(sentences, 0)
        queries = self.initializer(values, logits, text.sentence)
        if ages is None:
            ages = torch.arange(length - 1, -1, -1, device=frame_queries.device).expand(batch, -1)
        empty = torch.zeros((batch, length), dtype=torch.bool, device=frame_queries.device)
        predictions = self.video_decoder(FrameMemory(aligned, ages, empty), queries, text)
        if mask_embeddings is not None:
            mask_embeddings = gather_slots(mask_embeddings, order)
        return VideoOutput(aligned, order, predictions, mask_embeddings)

    def slot_cues(self, descriptors: QueryDescriptors) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cues for slot alignment: position, content and score.

        The content is CLIP's at stride 8; for cosine alignment it is the queries.
        """
        if self.config.alignment == "cosine":
            return descriptors.position, descriptors.queries, descriptors.score
        return (
            descriptors.position,
            descriptors.content[..., : self.content_width],
            descriptors.score,
        )

    @property
    def content_width(self) -> int:
        """Return the width of the content that aligns slots."""
        cosine = self.config.alignment == "cosine"
        return self.config.dim if cosine else self.clip.image_channels[1]

    def slot_order(self, descriptors: QueryDescriptors) -> Tensor:
        """Return the query in each slot, int64 [B,T,N], from the descriptors of whole clips."""
        if self.config.initializer == "aligned":
            return align_slots(self.config.alignment, *self.slot_cues(descriptors))
        batch, length, slots = descriptors.score.shape
        return torch.arange(slots, device=descriptors.score.device).repeat(batch, length, 1)

    def forward(
        self, frames: Tensor, token_ids: Tensor, ages: Tensor | None = None
    ) -> NetworkOutput:
        """Run B whole clips, each with S sentences.

        Inference has one sentence per clip. In training, the frame part reads the first sentence of
        each clip and the video part reads all, because sentences are cheap and frames are not.

        Args:
            frames: uint8 [B,T,H,W,3] RGB; H and W multiples of 32.
            token_ids: int64 [B*S,L], grouped by clip.
            ages: [B,T], see :meth:`decode_video`.
        """
        batch, length = frames.shape[:2]
        sentences = token_ids.shape[0] // batch
        text = self.encode_text(token_ids)
        per_frame = TextFeatures(*(x[::sentences].repeat_interleave(length, 0) for x in text))
        frame_output = self.decode_frames(self.encode_frames(frames.flatten(0, 1)), per_frame)
        queries, embeddings = (
            x.unflatten(0, (batch, length))
            for x in (frame_output.queries, frame_output.mask_embeddings)
        )
        descriptors = QueryDescriptors(
            *(x.unflatten(0, (batch, length)) for x in frame_output.descriptors)
        )
        video = self.decode_video(queries, self.slot_order(descriptors), text, ages, embeddings)
        return NetworkOutput(frame_output, video)


def referred_scores(logits: Tensor) -> Tensor:
    """Return the probability float32 [B,N] that a query is referred to, from logits [B,N,2]."""
    return torch.softmax(logits.float(), dim=-1)[..., 0]


def build_network(config: ModelConfig, clip_weights: str | None = None) -> RvosNetwork:
    """Build the network; ``clip_weights`` goes to :func:`build_clip`."""
    return RvosNetwork(config, build_clip(config, clip_weights))
