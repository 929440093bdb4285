"""Follow each expression by one query from frame to frame (OnlineRefer's stream)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tensors import HostArray, Tensor
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.online_refer.best_queries import BestQueries
from rvos_deploy.networks.online_refer.config import PADDING_ID, OnlineReferConfig
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
from rvos_deploy.networks.text import stack_tokens
from rvos_deploy.stream_settings import StreamSettings

_NEXT = {
    "track_content": "next_content",
    "track_position": "next_position",
    "track_box": "next_box",
}
"""Inputs of the frame decoder, with the outputs from which the next frame gets them."""


@dataclass(frozen=True)
class EncodedTokens:
    """Hold a sentence after the text encoder: tokens [L,C] without padding."""

    text: str
    tokens: NDArray[np.float32]


def encode_text(calls: GraphCalls, tokenizer: Tokenizer, text: str) -> EncodedTokens:
    """Encode a sentence.

    Raises:
        InputError: the text is missing or empty.
        BackendError: the back end failed, or the text encoder returned NaN or infinity.
    """
    ids, occasion = tokenizer(text), f"expression '{text[:40]}'"
    missing = calls.padded_size("text_encoder", "L", len(ids)) - len(ids)
    padded = np.pad(ids, (0, missing), constant_values=PADDING_ID)[None]
    padding = (np.arange(padded.shape[1]) >= len(ids))[None]
    outputs = calls.run("text_encoder", {"token_ids": padded, "text_padding": padding}, occasion)
    tokens = calls.to_host("text_encoder", outputs, occasion).get()["text_tokens"]
    return EncodedTokens(text, tokens[0][: len(ids)])


@dataclass(frozen=True)
class _Tracks:
    """Hold the tracks after a frame, in the back end's tensors.

    Args:
        numbers: numbers of the expressions, in the order of the rows.
        tensors: content, position and box, by the name of the next frame's input.
    """

    numbers: tuple[int, ...]
    tensors: Mapping[str, Tensor]


_NO_TRACKS = _Tracks((), {})


class OnlineReferSteps(Steps):
    """Run the steps of one stream.

    The tracks stay on the device from frame to frame. The host reads only scores, so the next frame
    is queued before the scores of this one arrive.
    """

    def __init__(
        self, calls: GraphCalls, config: OnlineReferConfig, settings: StreamSettings
    ) -> None:
        self.calls = calls
        self._config, self._settings = config, settings
        self._threshold = config.threshold if settings.threshold is None else settings.threshold
        self._sentences: dict[int, EncodedTokens] = {}
        self._text: dict[str, Tensor] | None = None
        self._tracks = _NO_TRACKS
        self._choices: BestQueries | None = None

    def add(self, number: int, text: EncodedText) -> None:
        """Follow another expression from the next frame on."""
        assert isinstance(text, EncodedTokens)
        self._sentences[number] = text
        self._text = None

    def remove(self, number: int) -> None:
        """Stop following an expression."""
        del self._sentences[number]
        self._text = None
        if not self._sentences:
            self._tracks = _NO_TRACKS

    def start(self, image: Tensor, occasion: str) -> StartedFrame:
        """Run the backbone once, and the frame decoder for all expressions."""
        features = self.calls.run("backbone", {"frame": image}, occasion)
        inputs = {**features, **self._stacked_text(), **self._track_inputs()}
        decoded = self.calls.run("frame_decoder", inputs, occasion)
        tensors = {name: decoded[output] for name, output in _NEXT.items()}
        self._tracks = _Tracks(tuple(self._sentences), tensors)
        cues = {name: decoded[name] for name in ("scores", "best")}
        pending = self.calls.to_host("frame_decoder", cues, occasion)
        return _StartedFrame(self, decoded["mask_logits"], pending)

    def _stacked_text(self) -> dict[str, Tensor]:
        if self._text is None:
            sentences = [sentence.tokens for sentence in self._sentences.values()]
            longest = max(map(len, sentences))
            length = self.calls.padded_size("frame_decoder", "L", longest)
            tokens, padding = stack_tokens(sentences, length)
            self._text = {"text_tokens": tokens, "text_padding": padding}
        return self._text

    def _track_inputs(self) -> dict[str, Tensor]:
        """Return the tracks of the present expressions; a new one is zero, and has ``joined``."""
        before = {number: row for row, number in enumerate(self._tracks.numbers)}
        rows = np.array([before.get(number, -1) for number in self._sentences])
        spec = self.calls.spec("frame_decoder")
        tracks: dict[str, Tensor] = {}
        for tensor in spec.inputs:
            if tensor.name not in _NEXT:
                continue
            width = int(tensor.shape[1])
            value = self._tracks.tensors.get(tensor.name)
            if value is None:
                tracks[tensor.name] = self.calls.ops.zeros((len(rows), width), tensor.dtype)
            elif tuple(before) == tuple(self._sentences):
                tracks[tensor.name] = value
            else:
                tracks[tensor.name] = self.calls.ops.resized(value, rows, width)
        return {**tracks, "joined": rows < 0, "preference": self._preference(len(rows))}

    def _preference(self, expressions: int) -> NDArray[np.float32]:
        if self._choices is not None:
            return self._choices.preference()
        return np.zeros((expressions, self._config.num_queries), np.float32)

    def advance(self, mask_logits: Tensor, cues: Mapping[str, HostArray]) -> tuple[Tensor, ...]:
        """Return the frame's mask logits [E,h,w] and scores [E,Q]."""
        scores = cues["scores"].astype(np.float32, copy=False)
        if self._choices is not None:
            self._choices.advance(cues["best"].astype(np.int64, copy=False), scores)
        return mask_logits, scores

    def decide(self, occasion: str) -> Decision | None:
        """Return the decision, which every frame contains."""
        return _Decision(self)

    def thresholds(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the thresholds float32 [E] for scores [E,N]."""
        return thresholds(scores, self._threshold, self._settings.fallback)

    def record_choices(self, replayed: NDArray[np.int64] | None = None) -> BestQueries:
        """Record the best query of every frame, or replay recorded ones."""
        self._choices = BestQueries(len(self._sentences), self._config.num_queries, replayed)
        return self._choices


@dataclass(frozen=True)
class _StartedFrame:
    """Hold a frame whose frame decoder is queued."""

    steps: OnlineReferSteps
    mask_logits: Tensor
    cues: PendingArrays

    def advance(self) -> tuple[Tensor, ...]:
        """Wait for the scores."""
        return self.steps.advance(self.mask_logits, self.cues.get())


@dataclass(frozen=True)
class _Decision:
    """Make masks of frames that were decided when they were seen."""

    steps: OnlineReferSteps

    def mask_maker(
        self, kept: Sequence[Tensor], then: Sequence[int], now: Sequence[int], occasion: str
    ) -> MaskMaker:
        """Return the masks of the best queries."""
        mask_logits, scores = kept
        assert isinstance(scores, np.ndarray)  # from the host
        rows = np.array([then.index(number) for number in now])
        return _MaskMaker(self.steps, mask_logits, rows, scores[rows].max(axis=1, keepdims=True))


@dataclass(frozen=True)
class _MaskMaker:
    """Hold one frame's mask logits [R,h,w], the row of each expression, and scores [E,1]."""

    steps: OnlineReferSteps
    logits: Tensor
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """Return the thresholds by the stream's threshold and fallback."""
        return self.steps.thresholds(self.scores)

    def mask_logits(self, thresholds: NDArray[np.float32]) -> Tensor:
        """Return the mask logits [E,h,w]; an expression that does not pass has an empty mask."""
        ops, logits, rows = self.steps.calls.ops, self.logits, self.rows
        hidden = self.scores[:, 0] <= thresholds
        if hidden.any():
            # A logit of 0 is not foreground.
            empty = ops.zeros((1, *logits.shape[1:]), np.float32)
            rows = np.where(hidden, logits.shape[0], rows)
            logits = ops.concatenate([logits, empty])
        return (
            logits if np.array_equal(rows, np.arange(logits.shape[0])) else ops.gather(logits, rows)
        )
