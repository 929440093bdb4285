"""Run a stream with this network: backbone, frame decoder, slots, video decoder, mask head.

    frame -> backbone -> frame decoder -> slots of each expression (on the host) -> memory
    memory -> video decoder -> scores and mask embeddings -> mask head, for every pending frame

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tensors import HostArray, Tensor
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.expression import EncodedSentence, ExpressionState, stack_text
from rvos_deploy.networks.pan2024.query_memory import QueryMemory
from rvos_deploy.networks.pan2024.slot_choices import SlotChoices
from rvos_deploy.networks.pan2024.slots import SlotCues, make_tracker
from rvos_deploy.networks.selection import thresholds
from rvos_deploy.networks.steps import (
    Decision,
    EncodedText,
    GraphCalls,
    MaskMaker,
    PendingArrays,
    StartedFrame,
    Steps,
)
from rvos_deploy.stream_settings import StreamSettings

_FEATURES = ("res2", "res3", "res4", "res5")
_CUES = ("slot_values", "slot_logits", "slot_position", "slot_content", "slot_score")
"""Outputs that align slots on the host, a few KiB per expression."""


def encode_text(calls: GraphCalls, tokenizer: Tokenizer, text: str) -> EncodedSentence:
    """Encode a sentence.

    Raises:
        InputError: the text is missing or empty.
        BackendError: the back end failed, or the text encoder returned NaN or infinity.
    """
    ids, occasion = tokenizer(text), f"expression '{text[:40]}'"
    padding = calls.padded_size("text_encoder", "L", len(ids)) - len(ids)
    padded = np.pad(ids, (0, padding))[None]
    outputs = calls.run("text_encoder", {"token_ids": padded}, occasion)
    wanted = {name: outputs[name] for name in ("text_tokens", "sentence")}
    arrays = calls.to_host("text_encoder", wanted, occasion).get()
    return EncodedSentence(text, arrays["text_tokens"][0][: len(ids)], arrays["sentence"][0])


class Pan2024Steps(Steps):
    """Run the steps of one stream."""

    def __init__(self, calls: GraphCalls, config: ModelConfig, settings: StreamSettings) -> None:
        self.calls = calls
        self._config, self._settings = config, settings
        self._threshold = config.threshold if settings.threshold is None else settings.threshold
        self._expressions: dict[int, ExpressionState] = {}
        spec = calls.spec("video_decoder")
        self._queries_dtype = next(t.dtype for t in spec.inputs if t.name == "video_queries")
        frames = spec.axis("M")
        assert frames is not None  # checked when the bundle was opened
        self._memory = QueryMemory(calls.ops, frames, settings.window, settings.anchors)

    def add(self, number: int, text: EncodedText) -> None:
        """Follow another expression from the next frame on."""
        assert isinstance(text, EncodedSentence)
        tracker = make_tracker(self._config.alignment)
        self._expressions[number] = ExpressionState(text, self._config.initializer, tracker)

    def remove(self, number: int) -> None:
        """Stop following an expression."""
        del self._expressions[number]
        self._memory.remove(number)

    def start(self, image: Tensor, occasion: str) -> StartedFrame:
        """Run the backbone once, and the frame decoder for all expressions."""
        pyramid = self.calls.run("backbone", {"frame": image}, occasion)
        features = {name: pyramid[name] for name in _FEATURES}
        text = self._text("frame_decoder", self._expressions.values())
        decoded = self.calls.run("frame_decoder", {**features, **text}, occasion)
        cues = {name: decoded[name] for name in _CUES}
        return _StartedFrame(self, decoded, self.calls.to_host("frame_decoder", cues, occasion))

    def advance(
        self, decoded: Mapping[str, Tensor], cues: Mapping[str, HostArray]
    ) -> tuple[Tensor, ...]:
        """Update every expression with a frame.

        The host computes the orders. The back end gathers queries and embeddings in its own memory.

        Returns:
            Mask features [E,C,h,w] and the aligned mask embeddings [E,N,C] of the frame.
        """
        values, logits, *others = (cues[name].astype(np.float32, copy=False) for name in _CUES)
        orders = np.stack(
            [
                state.advance(values[row], logits[row], SlotCues(*(cue[row] for cue in others)))
                for row, state in enumerate(self._expressions.values())
            ]
        )
        gather = self.calls.ops.gather
        self._memory.append(tuple(self._expressions), gather(decoded["frame_queries"], orders))
        return decoded["mask_features"], gather(decoded["frame_mask_embeddings"], orders)

    def decide(self, occasion: str) -> Decision | None:
        """Run the video decoder for every expression that has seen a frame."""
        numbers = self._memory.numbers
        if not numbers:
            return None
        states = [self._expressions[number] for number in numbers]
        with self.calls.stage("memory"):
            # The host computes in float32, the graphs in their exported type.
            queries = np.stack([state.initial_video_queries() for state in states])
            inputs = {
                **self._memory.read(),
                "video_queries": queries.astype(self._queries_dtype, copy=False),
                **self._text("video_decoder", states),
            }
        outputs = self.calls.run("video_decoder", inputs, occasion)
        found = self.calls.to_host("video_decoder", {"scores": outputs["scores"]}, occasion).get()
        scores = found["scores"].astype(np.float32, copy=False)
        return _Decision(
            self,
            rows={number: row for row, number in enumerate(numbers)},
            scores=scores,
            mask_embeddings=outputs["mask_embeddings"],
        )

    def _text(self, graph: str, states: Iterable[ExpressionState]) -> dict[str, Tensor]:
        texts = [state.text for state in states]
        longest = max(len(text.tokens) for text in texts)
        return stack_text(texts, self.calls.padded_size(graph, "L", longest))

    def thresholds(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the thresholds float32 [E] for scores [E,N]."""
        return thresholds(scores, self._threshold, self._settings.fallback)

    def record_choices(self, replayed: NDArray[np.int64] | None = None) -> SlotChoices:
        """Record the query in each slot, or replay recorded orders."""
        choices = SlotChoices(self._config.alignment, len(self._expressions), replayed)
        for state, tracker in zip(self._expressions.values(), choices.trackers, strict=True):
            state.tracker = tracker
        return choices


@dataclass(frozen=True)
class _StartedFrame:
    """Hold a frame whose frame decoder is queued."""

    steps: Pan2024Steps
    decoded: Mapping[str, Tensor]
    cues: PendingArrays

    def advance(self) -> tuple[Tensor, ...]:
        """Wait for the cues, and update the slots."""
        with self.steps.calls.stage("alignment"):
            return self.steps.advance(self.decoded, self.cues.get())


@dataclass(frozen=True)
class _Decision:
    """Hold the video decoder's answer for the expressions that have seen a frame."""

    steps: Pan2024Steps
    rows: Mapping[int, int]
    scores: NDArray[np.float32]
    mask_embeddings: Tensor

    def mask_maker(
        self, kept: Sequence[Tensor], then: Sequence[int], now: Sequence[int], occasion: str
    ) -> MaskMaker:
        """Gather the inputs of the mask head."""
        features, embeddings = kept
        row_then = {number: row for row, number in enumerate(then)}
        of_frame = np.array([row_then[number] for number in now])
        rows = np.array([self.rows[number] for number in now])
        gather = self.steps.calls.ops.gather
        inputs = {
            "scores": self.scores[rows],
            "mask_embeddings": gather(self.mask_embeddings, rows),
            "frame_mask_embeddings": gather(embeddings, of_frame),
            "mask_features": gather(features, of_frame),
        }
        return _MaskMaker(self.steps, self.scores[rows], inputs, occasion)


@dataclass(frozen=True)
class _MaskMaker:
    """Hold one frame's inputs of the mask head."""

    steps: Pan2024Steps
    scores: NDArray[np.float32]
    inputs: Mapping[str, Tensor]
    occasion: str

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """Return the thresholds by the stream's threshold and fallback."""
        return self.steps.thresholds(self.scores)

    def mask_logits(self, thresholds: NDArray[np.float32]) -> Tensor:
        """Return the united mask logits of the queries that pass."""
        inputs = {**self.inputs, "threshold": thresholds}
        return self.steps.calls.run("mask_head", inputs, self.occasion)["mask_logits"]
