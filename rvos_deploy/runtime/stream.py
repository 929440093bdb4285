"""Segment one video for many expressions: frames are pushed, masks are returned.

A stream does what all networks share: order, expressions, lookahead, results. The network's steps
(``networks/steps.py``) process a frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.closeable import Closeable
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.tensors import FinishedCopy, Tensor
from rvos_deploy.networks.steps import ChoiceRecorder, Decision, EncodedText, Steps
from rvos_deploy.runtime.decided_frame import DecidedFrame, Render
from rvos_deploy.runtime.finite import MapCheck
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.frame_states import PendingFrame, PushedFrame, StartedFrame
from rvos_deploy.runtime.graph_calls import SessionCalls
from rvos_deploy.runtime.pending_masks import PendingMasks
from rvos_deploy.runtime.stream_use import ExclusiveUse, FrameTime
from rvos_deploy.spill_store import SpillStore
from rvos_deploy.stream_settings import StreamSettings, described
from rvos_deploy.video.frames import AnyImage, Frame, check_image, is_foreign


@dataclass(frozen=True)
class StreamNetwork:
    """Hold a network's part in one stream.

    Args:
        steps: the family's steps.
        encode_text: encodes an expression.
        geometry: returns how a frame of this (height, width) fits the network.
    """

    steps: Steps
    encode_text: Callable[[str], EncodedText]
    geometry: Callable[[tuple[int, int]], FrameGeometry]


_QueuedMasks: TypeAlias = tuple[PendingMasks | Tensor, MapCheck | None]
"""Masks of a frame, and the check of their logits where the logits are on a device."""


class Stream(Closeable):
    """Run a network over one video (``StreamSettings`` lists the settings).

    :meth:`rvos_deploy.runtime.segmenter.Segmenter.stream` makes a stream. A stream belongs to one
    thread: a call is refused while another one runs. After the stream or its segmenter is closed,
    or after a call has failed in the middle of a frame, every method but ``close`` raises
    InputError.

    Memory depends on the settings and the number of expressions. Online, it does not depend on the
    length of the video. Offline, waiting frames that exceed ``mask_budget`` go to disk, but the
    tokens of every frame stay in memory (``token_bytes`` in
    ``networks/pan2024/query_memory.py``).
    """

    def __init__(
        self,
        network: StreamNetwork,
        calls: SessionCalls,
        settings: StreamSettings,
        *,
        render: Render | None = None,
        keep_images: bool = False,
    ) -> None:
        """Start a stream.

        Args:
            network: the network's part in this stream.
            calls: runs the graphs.
            settings: settings of the stream.
            render: makes the masks of a decided frame; None: a mask is where the logits of the
                candidates that pass the threshold exceed 0.
            keep_images: keep each frame's image for its result.

        Raises:
            InputError: the back end does not support the settings.
        """
        if settings.masks == "device":
            calls.ops.require_device_masks()
        self.settings = settings
        self._keep_images = keep_images
        self._steps = network.steps
        self._calls = calls
        self._encode_text = network.encode_text
        self._geometry = network.geometry
        self._render = render
        self._expressions: dict[int, str] = {}
        self._next_number = 0
        self._frame_count = 0
        self._last: FrameTime | None = None
        self._started: StartedFrame | None = None
        self._pending: deque[PendingFrame] = deque()
        self._store = SpillStore(settings.mask_budget)
        self._last_masks: PendingMasks | None = None
        self._last_check: MapCheck | None = None
        self._flushed: Decision | None = None
        self._flushing = False
        self._use = ExclusiveUse()
        self._closed = False
        self._failure: Exception | None = None

    @property
    def expressions(self) -> dict[int, str]:
        """Return the texts of the present expressions by number."""
        self._require_open()
        return dict(self._expressions)

    def add_expression(self, text: str) -> int:
        """Follow another expression from the next frame on, and return its number.

        Warns when the text is cut. Raises InputError: the text is not a string, or is empty.
        """
        with self._using():
            encoded = self._encode_text(text)
            with self._all_or_failed():
                self._advance_steps()
            number, self._next_number = self._next_number, self._next_number + 1
            self._steps.add(number, encoded)
            self._expressions[number] = encoded.text
            return number

    def record_choices(self, replayed: NDArray[np.int64] | None = None) -> ChoiceRecorder:
        """Record the discrete choices of the present expressions. Call this before the first frame.

        Parity checks use it. See ``Steps.record_choices``.
        """
        with self._using():
            return self._steps.record_choices(replayed)

    def remove_expression(self, number: int) -> None:
        """Stop following an expression, in waiting frames too.

        ``number``: from :meth:`add_expression`. Raises InputError: there is no such expression.
        """
        with self._using():
            known = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
            if not known or number not in self._expressions:
                raise InputError(
                    f"no expression {described(number)} in this stream; "
                    f"there are {', '.join(map(str, self._expressions)) or 'none'}"
                )
            with self._all_or_failed():
                self._advance_steps()
                self._steps.remove(number)
            del self._expressions[number]

    def push(self, frame: Frame | NDArray[np.uint8] | object) -> list[FrameMasks]:
        """Push the next frame, and return the results that are decided now, oldest first.

        Args:
            frame: a Frame, or only its image, whose time is then its number: RGB uint8 [H,W,3] of
                NumPy, or of any library that has ``__dlpack__`` or ``__cuda_array_interface__``. A
                back end on the GPU reads an image on the GPU without a copy. ``backend="tensorrt"``
                also resizes it there; ONNX Runtime copies it to the host unless it has the
                network's own size. Index and time must exceed those of the previous frame.

        Raises:
            InputError: the frame has another form, lies on another device, or is not later than the
                previous frame; or results of :meth:`flush` are unread.
            BackendError: the back end failed, or an output of a graph holds NaN or infinity.
        """
        with self._using():
            if self._flushing and self._pending:
                raise InputError(
                    f"{len(self._pending)} frames of flush() were not read, and a frame cannot be "
                    "pushed before they are; loop over stream.flush() to its end"
                )
            at = FrameTime.of(frame, self._frame_count)
            pushed = frame if isinstance(frame, Frame) else _frame_of(frame, at)
            image = self._import_image(pushed.image)
            at.require_after(self._last)
            with self._all_or_failed(spared=InputError):
                started = self._start(pushed.without_image(), image)
            with self._all_or_failed():
                self._last, self._flushing = at, False
                self._frame_count += 1
                return self._advance(started)

    def _advance(self, started: StartedFrame) -> list[FrameMasks]:
        # The device computes this frame meanwhile.
        self._finish_last()
        self._advance_steps()
        self._started = started
        if self.settings.mode == "offline" or len(self._pending) < self.settings.lookahead:
            return []
        self._advance_steps()
        return [self._emit(self._pending.popleft(), self._decide())]

    def flush(self) -> Iterator[FrameMasks]:
        """Decide all waiting frames now, and return an iterator over their results, oldest first.

        The call decides; reading a result makes its masks, so the masks of a whole clip are never
        in memory together. Unread results stay: another call continues with them, and :meth:`push`
        is refused until the last one is read. Then the stream can go on. Call this after the last
        push: the iterator cannot be read after a later push.

        Raises:
            InputError, BackendError: as in :meth:`push`. Reading raises them too.
        """
        with self._using():
            if not (self._flushing and self._pending):
                with self._all_or_failed():
                    self._advance_steps()
                    self._flushed = self._decide() if self._pending else None
                self._flushing = True
        return _Flush(self, self._frame_count)

    def _next_flushed(self, frames: int) -> FrameMasks | None:
        """Return the next result of the flush that was called after ``frames`` frames, or None."""
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
        """Free the stream. Waiting frames are dropped; results stay valid.

        If a call runs in another thread, the stream is freed at the end of that call.
        """
        self._closed = True
        self._free_when_unused()

    def _free_when_unused(self) -> None:
        # A caller that holds the stream comes here after releasing it, so one of the two frees it.
        while self._closed and self._use.try_acquire():
            try:
                self._free()
            finally:
                self._use.release()
            return

    def _free(self) -> None:
        self._started = None
        self._flushed = None
        self._pending.clear()
        # Memories of expressions may occupy a GPU.
        for number in list(self._expressions):
            self._steps.remove(number)
        self._expressions.clear()
        self._store.close()
        self._finish_last()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Hold the open stream for one call of any method but ``close``."""
        try:
            with self._use.acquired():
                self._require_open()
                yield
        finally:
            self._free_when_unused()

    def _require_open(self) -> None:
        if self._closed:
            raise InputError("this stream is closed; open another with segmenter.stream(...)")
        if self._calls.session.closed:
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
        """Mark the stream as failed on an error: its slots and memories no longer match.

        ``spared``: errors that are raised before anything has changed.
        """
        try:
            yield
        except Exception as error:
            if not isinstance(error, spared):
                self._failure = error
            raise

    def _start(self, timed: Frame, image: Tensor) -> StartedFrame:
        """Queue the graphs of a frame for all expressions."""
        geometry = self._geometry((image.shape[0], image.shape[1]))
        kept = image if self._keep_images else None
        frame = PushedFrame(timed, kept, geometry, tuple(self._expressions))
        if not frame.expressions:
            return StartedFrame(frame, None)
        ready = self._calls.preprocess(image, geometry)
        return StartedFrame(frame, self._steps.start(ready, frame.occasion))

    def _advance_steps(self) -> None:
        """Advance the network's steps by the frame that was queued last, and store its tensors."""
        started, self._started = self._started, None
        if started is not None:
            kept = () if started.started is None else started.started.advance()
            numbers = tuple(self._store.put(tensor) for tensor in kept)
            frame = started.frame
            image = None if frame.image is None else self._store.put(frame.image)
            self._pending.append(PendingFrame(replace(frame, image=None), numbers, image))

    def _import_image(self, image: AnyImage) -> Tensor:
        """Return a frame as a tensor of the back end: a NumPy array, or a tensor on the device."""
        if not is_foreign(image):
            return check_image(image)
        tensor = self._calls.ops.from_dlpack(image)
        if isinstance(tensor, np.ndarray):
            return check_image(tensor)
        if str(tensor.dtype) != "uint8" or len(tensor.shape) != 3 or tensor.shape[2] != 3:
            raise InputError(
                f"a frame must be uint8 [H, W, 3] (RGB), found {tensor.dtype} {list(tensor.shape)}"
            )
        return tensor

    def _decide(self) -> Decision | None:
        occasion = f"frame {self._last.index}" if self._last is not None else "no frame"
        return self._steps.decide(occasion)

    def _emit(self, pending: PendingFrame, decision: Decision | None) -> FrameMasks:
        """Make the masks of one frame, for its expressions that are still present."""
        frame = pending.frame
        kept = [self._store.pop(number) for number in pending.kept]
        if pending.image is not None:
            frame = replace(frame, image=self._store.pop(pending.image))
        numbers = tuple(n for n in frame.expressions if n in self._expressions)
        if not kept or decision is None or not numbers:
            nothing = self._masks_of(frame, np.zeros((0, 1, 1), dtype=np.float32))
            return self._result(frame, nothing, np.zeros(0, np.float32), ())
        maker = decision.mask_maker(kept, frame.expressions, numbers, frame.occasion)
        if self._render is None:
            made = self._masks_of(frame, maker.mask_logits(maker.thresholds))
        else:
            index = frame.frame.index
            calls = self._calls
            decided = DecidedFrame(
                index, frame.geometry, numbers, maker, calls.ops, calls.mask_graph
            )
            made = PendingMasks(FinishedCopy([self._render(decided)])), None
        return self._result(frame, made, maker.scores.max(axis=1), numbers)

    def _masks_of(self, frame: PushedFrame, logits: Tensor) -> _QueuedMasks:
        """Queue the masks of logits, and the check that the logits are finite."""
        ops, geometry = self._calls.ops, frame.geometry
        with self._calls.stage("post-processing"):
            check = None
            if not isinstance(logits, np.ndarray):
                check = MapCheck(ops.finite_maps(logits), self._calls.mask_graph, frame.occasion)
            if self.settings.masks == "device":
                # The reader does not wait; the stream's next step requires the check.
                return ops.upsample_masks_on_device(logits, geometry), check
            return PendingMasks(ops.upsample_masks(logits, geometry), check), check

    def _result(
        self,
        frame: PushedFrame,
        made: _QueuedMasks,
        scores: NDArray[np.float32],
        numbers: tuple[int, ...],
    ) -> FrameMasks:
        """Return the result of a frame, whose masks may still be pending."""
        self._finish_last()
        masks, self._last_check = made
        self._last_masks = masks if isinstance(masks, PendingMasks) else None
        texts = tuple(self._expressions[number] for number in numbers)
        size = frame.geometry.display
        return FrameMasks(frame.result_frame(), size, scores, numbers, texts, masks)

    def _finish_last(self) -> None:
        """Wait for the masks of the last result.

        So the masks of at most one frame are pending: their memory is bounded, and a stream can be
        closed while results are kept.
        """
        masks, self._last_masks = self._last_masks, None
        check, self._last_check = self._last_check, None
        if check is not None:
            check.require()
        if masks is not None:
            masks.get()


def _frame_of(image: object, at: FrameTime) -> Frame:
    """Make a Frame of a bare image. Raises InputError: it is not an image."""
    return Frame(at.index, at.pts, image if is_foreign(image) else check_image(image))


class _Flush(Iterator[FrameMasks]):
    """Iterate over the results of a flush."""

    def __init__(self, stream: Stream, frames: int) -> None:
        self._stream: Stream | None = stream
        self._frames = frames

    def __next__(self) -> FrameMasks:
        # An iterator that has ended stays at its end, whatever is pushed later.
        result = None if self._stream is None else self._stream._next_flushed(self._frames)
        if result is None:
            self._stream = None
            raise StopIteration
        return result


def add_expressions(stream: Stream, expressions: Sequence[str]) -> None:
    """Add several expressions.

    Raises InputError: an expression cannot be added, or ``expressions`` is not a list. A single
    string would be read letter by letter.
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
