"""One video, many expressions: frames are pushed, masks come out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.closeable import Closing
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry, fit_frame
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.expression import (
    EncodedText,
    ExpressionState,
    stack_memory,
    stack_text,
)
from rvos_deploy.networks.pan2024.selection import thresholds
from rvos_deploy.networks.pan2024.slots import SlotCues, Tracker, make_tracker
from rvos_deploy.networks.pan2024.token_memory import TokenMemory
from rvos_deploy.runtime.backends.base import Fetched, Fetching, Runner, Value
from rvos_deploy.runtime.finite import MapCheck, require_finite
from rvos_deploy.runtime.fixed_shapes import fixed_box, infer_rows, least
from rvos_deploy.runtime.pending_masks import Coming
from rvos_deploy.runtime.stream_use import ExclusiveUse, FrameTime
from rvos_deploy.spill_store import SpillStore
from rvos_deploy.stream_settings import StreamSettings, described
from rvos_deploy.video.frames import Frame, check_image

StageCallback = Callable[[str, float], None]
"""Called with a stage's name and its seconds, for benchmarks."""

_FRAME_FEATURES = ("res2", "res3", "res4", "res5")
_CUES = ("slot_values", "slot_logits", "slot_position", "slot_content", "slot_score")
"""What slots are aligned by, on the host: a few KiB an expression."""


@dataclass(frozen=True, eq=False)
class FrameMasks:
    """What a stream says of one frame.

    Two results are equal when they are one and the same object, and they can be keys of a dict:
    masks may still be on their way, so that comparing them would wait. Compare what you mean, for
    example ``(a.masks == b.masks).all()``.

    Args:
        index: the frame's number, from 0.
        pts: its presentation time in seconds.
        size: (height, width) of the masks: the displayed size.
        scores: float32 [E]: the best query's probability of being referred to.
        expressions: [E] numbers of the expressions, as ``Stream.add_expression`` gave them.
        texts: [E] their sentences, which stay here when an expression is removed.
        coming: the masks, which a GPU may still be computing or sending.
    """

    index: int
    pts: float
    size: tuple[int, int]
    scores: NDArray[np.float32]
    expressions: tuple[int, ...]
    texts: tuple[str, ...]
    coming: Coming

    @property
    def masks(self) -> Value:
        """Masks bool [E,H,W]: a NumPy array.

        Waits where they are still on their way from a GPU: what is done before they are read, as
        pushing the next frame, happens meanwhile. They come down at the stream's next step at the
        latest, and outlive it.

        With ``StreamSettings(masks="device")`` a tensor on the GPU, for whoever reads DLPack or the
        CUDA array interface (``torch.from_dlpack``, ``cupy.asarray``). Nothing is waited for here:
        the reader's stream does. Keep the result until what reads it is done, since its room is
        used again when nobody refers to it, and no longer than its segmenter, with which it ends.

        Raises BackendError: the device failed, or gave what is no number.
        """
        return self.coming.get()

    def __repr__(self) -> str:
        return (
            f"FrameMasks(index={self.index}, pts={self.pts:.3f}, "
            f"masks=bool{[len(self.expressions), *self.size]}, "
            f"expressions={list(self.expressions)})"
        )


@dataclass(frozen=True)
class _StartedFrame:
    """A frame that was given to the graphs; its slots are advanced when the next one was, too, or
    when somebody asks: so the device computes one while the host looks at the other.
    """

    index: int
    pts: float
    geometry: FrameGeometry
    expressions: tuple[int, ...]
    features: Value = None
    queries: Value = None
    embeddings: Value = None
    cues: Fetching | None = None


@dataclass(frozen=True)
class _PendingFrame:
    """A frame whose masks are not decided yet; ``features`` and ``embeddings`` (mask features, and
    mask embeddings of the aligned frame queries) are numbers in the store.
    """

    index: int
    pts: float
    geometry: FrameGeometry
    expressions: tuple[int, ...]
    features: int | None = None
    embeddings: int | None = None


@dataclass(frozen=True)
class _Decision:
    """The video decoder's answer for the expressions present now."""

    rows: Mapping[int, int]
    scores: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    mask_embeddings: Value


class Stream(Closing):
    """The network as a stream (see ``StreamSettings`` for what can be chosen).

    Made by :meth:`rvos_deploy.runtime.segmenter.Segmenter.stream`. Belongs to one thread: a call
    while another one runs is refused. Once it or its segmenter is closed, or a call has failed in
    the middle of a frame, every method but ``close`` raises InputError.

    Memory depends on the settings and the number of expressions. Online, the length of the video
    makes no difference. Offline, what waits for the end beyond ``mask_budget`` goes to disk, but
    the tokens of every frame stay in memory: see
    :func:`rvos_deploy.networks.pan2024.token_memory.token_bytes`.
    """

    def __init__(
        self,
        config: ModelConfig,
        runners: Mapping[str, Runner],
        encode_text: Callable[[str], EncodedText],
        settings: StreamSettings,
        on_stage: StageCallback | None = None,
    ) -> None:
        """Raises InputError: settings that the back end does not have."""
        if settings.masks == "device":
            runners["mask_head"].require_device_masks()
        self.settings = settings
        self._config = config
        self._runners = runners
        self._encode_text = encode_text
        self._on_stage = on_stage
        self.box = settings.size or config.input_size
        self._fixed = fixed_box({name: runner.spec for name, runner in runners.items()}) is not None
        self.threshold = config.threshold if settings.threshold is None else settings.threshold
        self._expressions: dict[int, ExpressionState] = {}
        self._next_number = 0
        self._frame_count = 0
        self._last: FrameTime | None = None
        self._started: _StartedFrame | None = None
        self._pending: deque[_PendingFrame] = deque()
        self._store = SpillStore(settings.mask_budget)
        self._coming: Coming | None = None
        self._check: MapCheck | None = None
        self._flushed: _Decision | None = None
        self._flushing = False
        self._use = ExclusiveUse()
        self._closed = False
        self._failure: Exception | None = None

    @property
    def expressions(self) -> dict[int, str]:
        """Texts of the expressions present, by number."""
        self._require_open()
        return {number: state.text.text for number, state in self._expressions.items()}

    def add_expression(self, text: str) -> int:
        """Follow one more expression, from the next frame on; returns its number.

        Raises InputError when it is no text, or empty; warns when it is cut to 77 tokens.
        """
        with self._using():
            encoded = self._encode_text(text)
            with self._all_or_failed():
                self._settle()
            number, self._next_number = self._next_number, self._next_number + 1
            frames = self._runners["video_decoder"].spec.axis("M")
            memory = TokenMemory(
                self.settings.window, self.settings.anchors, frames.maximum if frames else None
            )
            tracker = make_tracker(self._config.alignment)
            self._expressions[number] = ExpressionState(
                number, encoded, self._config.initializer, memory, tracker
            )
            return number

    def track_by(self, trackers: Sequence[Tracker]) -> None:
        """Align the slots of the expressions present by these, one each, before the first frame:
        for proofs, which record slots or replay them.
        """
        with self._using():
            for state, tracker in zip(self._expressions.values(), trackers, strict=True):
                state.tracker = tracker

    def remove_expression(self, number: int) -> None:
        """Stop following an expression; frames not yet given leave it out too.

        ``number``: as :meth:`add_expression` gave it. Raises InputError when there is none.
        """
        with self._using():
            known = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
            if not known or number not in self._expressions:
                raise InputError(
                    f"no expression {described(number)} in this stream; "
                    f"there are {', '.join(map(str, self._expressions)) or 'none'}"
                )
            with self._all_or_failed():
                self._settle()
            del self._expressions[number]

    def push(self, frame: Frame | NDArray[np.uint8] | Any) -> list[FrameMasks]:
        """Take the next frame; returns the frames that are decided now, oldest first.

        Args:
            frame: a Frame, or RGB uint8 [H,W,3] (its time is then its number): of NumPy, or of any
                library that has ``__dlpack__`` or ``__cuda_array_interface__``. One on the GPU is
                read where it is, by a back end that runs there, and resized there by
                ``backend="tensorrt"``; ONNX Runtime's goes by the host unless it has the network's
                own size (``fit_frame``).

        Index and time must be greater than those of the frame before.

        Raises:
            InputError: not such a frame, on another device, not later than the one before, or
                pushed while frames of :meth:`flush` are left.
            BackendError: the back end failed, or a graph gave what is no number.
        """
        with self._using():
            if self._flushing and self._pending:
                raise InputError(
                    f"{len(self._pending)} frames of flush() were not read, and a frame cannot be "
                    "pushed before they are; loop over stream.flush() to its end"
                )
            at = FrameTime.of(frame, self._frame_count)
            image = self._take_image(frame.image if isinstance(frame, Frame) else frame)
            at.require_after(self._last)
            with self._all_or_failed(spared=InputError):
                started = self._start(at.index, at.pts, image)
            with self._all_or_failed():
                self._last, self._flushing = at, False
                self._frame_count += 1
                return self._advance(started)

    def _advance(self, started: _StartedFrame) -> list[FrameMasks]:
        # Beside the arithmetic of this frame, which is queued.
        self._receive()
        self._settle()
        self._started = started
        if self.settings.mode == "offline" or len(self._pending) < self.settings.lookahead:
            return []
        self._settle()
        return [self._emit(self._pending.popleft(), self._decode_video())]

    def flush(self) -> Iterator[FrameMasks]:
        """Decide now for all frames still held, and give them one at a time, oldest first.

        The call itself decides; the masks of a frame are made when it is read, so that those of a
        whole clip never are in memory together. Frames that were not read stay: another call goes
        on where reading stopped, and :meth:`push` is refused until the last was read. Then the
        stream can go on. Call it after the last push: what is pushed later is not in it, and it
        cannot be read then.

        Raises:
            InputError, BackendError: as :meth:`push`; reading raises them too.
        """
        with self._using():
            if not (self._flushing and self._pending):
                with self._all_or_failed():
                    self._settle()
                    self._flushed = self._decode_video() if self._pending else None
                self._flushing = True
        return _Flush(self, self._frame_count)

    def _next_flushed(self, frames: int) -> FrameMasks | None:
        """The next frame of the flush that was called after so many frames; None when there is none
        left.
        """
        with self._using():
            if self._frame_count != frames:
                raise InputError(
                    f"{self._frame_count - frames} frames were pushed after this flush() was "
                    "called, before it was read; call flush() after the last push"
                )
            if not (self._flushing and self._pending):
                return None
            with self._all_or_failed():
                return self._emit(self._pending.popleft(), self._flushed)

    def close(self) -> None:
        """Free what the stream holds; frames not yet given are dropped, given ones stay.

        While a call runs in another thread, that call frees it at its end.
        """
        self._closed = True
        self._free_when_unused()

    def _free_when_unused(self) -> None:
        # Who holds the stream comes here after releasing it: nobody misses the other.
        while self._closed and self._use.try_hold():
            try:
                self._free()
            finally:
                self._use.release()
            return

    def _free(self) -> None:
        self._started = None
        self._flushed = None
        self._pending.clear()
        # Their memories may lie on a GPU, whose room others need.
        self._expressions.clear()
        self._store.close()
        self._receive()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Alone, and open: every method but ``close``."""
        try:
            with self._use.hold():
                self._require_open()
                yield
        finally:
            self._free_when_unused()

    def _require_open(self) -> None:
        if self._closed:
            raise InputError("this stream is closed; open another with segmenter.stream(...)")
        if not self._runners["backbone"].active:
            raise InputError(
                "the segmenter of this stream is closed; load the bundle again with "
                "rvos_deploy.load(...), and keep the segmenter open as long as its streams"
            )
        if self._failure is not None:
            raise InputError(
                f"this stream failed before ({self._failure}); open another with "
                "segmenter.stream(...)"
            )

    @contextmanager
    def _all_or_failed(self, spared: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """What fails in the middle of a frame leaves slots and memories that do not belong
        together: nothing may follow. ``spared``: raised before anything has changed.
        """
        try:
            yield
        except Exception as error:
            if not isinstance(error, spared):
                self._failure = error
            raise

    def _start(self, index: int, pts: float, frame: Value) -> _StartedFrame:
        """Backbone once, frame decoder for all expressions."""
        height, width = frame.shape[:2]
        geometry = fit_frame((height, width), self.box, fixed=self._fixed)
        numbers = tuple(self._expressions)
        if not numbers:
            return _StartedFrame(index, pts, geometry, ())
        with self._stage("resize"):
            image = self._fit(frame, geometry)
        occasion = f"frame {index}"
        pyramid = self._run("backbone", {"frame": image}, occasion)
        features = {name: pyramid[name] for name in _FRAME_FEATURES}
        text = self._stack_text("frame_decoder", self._expressions.values())
        decoded = self._run("frame_decoder", {**features, **text}, occasion)
        cues = self._runners["frame_decoder"].fetch([decoded[name] for name in _CUES])
        return _StartedFrame(
            index,
            pts,
            geometry,
            numbers,
            features=decoded["mask_features"],
            queries=decoded["frame_queries"],
            embeddings=decoded["frame_mask_embeddings"],
            cues=cues,
        )

    def _settle(self) -> None:
        """Advance every expression's slots by the frame that was started last."""
        frame, self._started = self._started, None
        if frame is None:
            return
        kept: tuple[int, ...] = ()
        if frame.cues is not None:
            with self._stage("alignment"):
                cues = dict(zip(_CUES, frame.cues.arrays(), strict=True))
                require_finite("frame_decoder", cues, f"frame {frame.index}")
                embeddings = self._advance_slots(frame, list(cues.values()))
            kept = tuple(self._store.put(array) for array in (frame.features, embeddings))
        self._pending.append(
            _PendingFrame(frame.index, frame.pts, frame.geometry, frame.expressions, *kept)
        )

    def _take_image(self, image: Any) -> Value:
        """A frame as the back end takes it: of NumPy, or on the device."""
        if not isinstance(image, np.ndarray) and _is_foreign(image):
            image = self._runners["backbone"].take(image)
        if isinstance(image, np.ndarray) or not _is_foreign(image):
            check_image(image)
        elif str(image.dtype) != "uint8" or len(image.shape) != 3 or image.shape[2] != 3:
            raise InputError(
                f"a frame must be uint8 [H, W, 3] (RGB), found {image.dtype} {list(image.shape)}"
            )
        return image

    def _fit(self, frame: Value, geometry: FrameGeometry) -> Value:
        """Network input [1,H,W,3] of a frame; one on the device stays there where it can."""
        fits = geometry.content == geometry.padded == tuple(frame.shape[:2])
        if fits and not isinstance(frame, np.ndarray):
            return frame.reshape(1, *frame.shape)
        return self._runners["backbone"].fit(frame, geometry)

    def _advance_slots(self, frame: _StartedFrame, fetched: Sequence[NDArray[Any]]) -> Value:
        """Advance every expression by a frame; the aligned mask embeddings [E,N,C] of it.

        Orders are made on the host; queries and embeddings are put into them where they are.
        """
        values, logits, *cues = (x.astype(np.float32, copy=False) for x in fetched)
        states = list(self._expressions.values())
        orders = np.stack(
            [
                state.advance(values[row], logits[row], SlotCues(*(x[row] for x in cues)))
                for row, state in enumerate(states)
            ]
        )
        gather = self._runners["frame_decoder"].gather
        queries = gather(frame.queries, orders)
        for row, state in enumerate(states):
            state.memory.append(queries[row])
        return gather(frame.embeddings, orders)

    def _decode_video(self) -> _Decision | None:
        """Decide for every expression that has seen a frame."""
        states = [state for state in self._expressions.values() if len(state.memory)]
        if not states:
            return None
        runner = self._runners["video_decoder"]
        with self._stage("memory"):
            # The host works in float32, the graphs in what they were exported in.
            types = {tensor.name: tensor.dtype for tensor in runner.spec.inputs}
            queries = np.stack([state.initial_video_queries() for state in states])
            inputs = {
                **stack_memory(states, runner.stack, least(runner.spec, "M")),
                "video_queries": queries.astype(types["video_queries"], copy=False),
                **self._stack_text("video_decoder", states),
            }
        occasion = f"frame {self._last.index}" if self._last is not None else "no frame"
        outputs = self._run("video_decoder", inputs, occasion)
        (scores,) = runner.fetch([outputs["scores"]]).arrays()
        require_finite("video_decoder", {"scores": scores}, occasion)
        return _Decision(
            rows={state.number: row for row, state in enumerate(states)},
            scores=scores,
            thresholds=thresholds(scores, self.threshold, self.settings.fallback),
            mask_embeddings=outputs["mask_embeddings"],
        )

    def _emit(self, frame: _PendingFrame, decision: _Decision | None) -> FrameMasks:
        """Masks of one frame for the expressions that it knows and that are still present."""
        features, embeddings = (
            None if number is None else self._store.take(number)
            for number in (frame.features, frame.embeddings)
        )
        rows_then = {number: row for row, number in enumerate(frame.expressions)}
        numbers = tuple(n for n in frame.expressions if n in self._expressions)
        if features is None or embeddings is None or decision is None or not numbers:
            nothing = np.zeros((0, 1, 1), dtype=np.float32)
            return self._give(frame, nothing, np.zeros(0, np.float32), ())
        gather = self._runners["mask_head"].gather
        kept = np.array([rows_then[number] for number in numbers])
        rows = np.array([decision.rows[number] for number in numbers])
        outputs = self._run(
            "mask_head",
            {
                "scores": decision.scores[rows],
                "threshold": decision.thresholds[rows],
                "mask_embeddings": gather(decision.mask_embeddings, rows),
                "frame_mask_embeddings": gather(embeddings, kept),
                "mask_features": gather(features, kept),
            },
            f"frame {frame.index}",
        )
        best = decision.scores[rows].max(axis=1)
        return self._give(frame, outputs["mask_logits"], best, numbers)

    def _give(
        self,
        frame: _PendingFrame,
        logits: Value,
        scores: NDArray[np.float32],
        numbers: tuple[int, ...],
    ) -> FrameMasks:
        """The result of a frame, its masks on their way."""
        runner, geometry = self._runners["mask_head"], frame.geometry
        with self._stage("post-processing"):
            check = None
            if not isinstance(logits, np.ndarray):
                check = MapCheck(runner.finite_maps(logits), f"frame {frame.index}")
            if self.settings.masks == "device":
                # Whoever reads these waits for nothing; the stream's next step asks the check.
                coming = Coming(Fetched([runner.show_on_device(logits, geometry)]))
            else:
                coming = Coming(runner.show(logits, geometry), check)
        self._receive()
        self._coming, self._check = coming, check
        texts = tuple(self._expressions[number].text.text for number in numbers)
        return FrameMasks(frame.index, frame.pts, geometry.display, scores, numbers, texts, coming)

    def _receive(self) -> None:
        """Wait for the masks given last, so that never more than one frame's are on their way: what
        they lie in meanwhile is bounded, and whoever keeps results may close the stream.
        """
        last, self._coming = self._coming, None
        check, self._check = self._check, None
        if check is not None:
            check.require()
        if last is not None:
            last.get()

    def _stack_text(
        self, graph: str, states: Iterable[ExpressionState]
    ) -> dict[str, NDArray[np.generic]]:
        shortest = least(self._runners[graph].spec, "L")
        return stack_text([state.text for state in states], shortest)

    def _run(self, graph: str, inputs: Mapping[str, Value], occasion: str) -> dict[str, Value]:
        with self._stage(graph):
            outputs = infer_rows(self._runners[graph], inputs)
            require_finite(graph, outputs, occasion)
            return outputs

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self._on_stage is not None:
            self._on_stage(name, time.perf_counter() - started)


def _is_foreign(frame: object) -> bool:
    return hasattr(frame, "__dlpack__") or hasattr(frame, "__cuda_array_interface__")


class _Flush(Iterator[FrameMasks]):
    """The frames that a stream's flush gives."""

    def __init__(self, stream: Stream, frames: int) -> None:
        self._stream: Stream | None = stream
        self._frames = frames

    def __next__(self) -> FrameMasks:
        # Once at its end it stays there, whatever is pushed afterwards.
        result = None if self._stream is None else self._stream._next_flushed(self._frames)
        if result is None:
            self._stream = None
            raise StopIteration
        return result


def add_expressions(stream: Stream, expressions: Sequence[str]) -> None:
    """Add several expressions.

    Raises InputError when one cannot be added, or when it is no list: a single string would be read
    by letters.
    """
    if isinstance(expressions, (str, bytes)):
        raise InputError(f"expressions must be a list of sentences; write [{expressions!r}]")
    if not isinstance(expressions, Sequence):
        raise InputError(
            f"expressions must be a list of sentences, found {type(expressions).__name__}; "
            "write ['the brown dog']"
        )
    for text in expressions:
        stream.add_expression(text)
