"""The files of a run, written in a thread of its own: masks, overlay and ``result.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.files import cannot_write, made_folder
from rvos_deploy.redaction import redact_text
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.result_file import ResultFile
from rvos_deploy.runtime.run_folder import (
    MASKS,
    OVERLAY,
    RESULT,
    earlier_files,
    replacing_earlier_files,
)
from rvos_deploy.video import MaskWriter, OverlayWriter, VideoInfo, draw_overlay
from rvos_deploy.video.frames import Image
from rvos_deploy.video.pipeline import BackgroundSink
from rvos_deploy.video.writer import PreparedMask

FRAMES_BEHIND = 4
"""Results waiting to be written: bounds the memory."""

Describe = Callable[[str | None], dict[str, Any]]
"""Gives the keys of ``result.json`` beside the frames; takes why the run stopped, if it did."""


class RunWriter:
    """Writes results into a folder that ``run_folder`` holds, for use in a ``with`` block.

    An earlier run's files stay until the first frame of this one is on the disk, under temporary
    names. A frame is counted in ``frames`` when its masks are complete. When the block fails,
    the counted frames are still completed and reported in ``result.json``, with the error.
    """

    def __init__(
        self, out: Path, info: VideoInfo, expressions: Sequence[str], describe: Describe
    ) -> None:
        self._out = out
        self._expressions = expressions
        self._describe = describe
        self.frames = 0
        self._masks = MaskWriter(out / MASKS)
        self._overlay = OverlayWriter(out / OVERLAY, info)
        with ExitStack() as undo:
            try:
                for number in range(len(expressions)):
                    undo.enter_context(made_folder(out / MASKS / str(number)))
            except OSError as error:
                raise InputError(cannot_write(out / MASKS, error)) from error
            self._result = ResultFile(out / RESULT)
            undo.callback(self._result.abort)
            undo.callback(self._overlay.abort)
            self._sink = BackgroundSink(self._write, FRAMES_BEHIND)
            undo.callback(self._sink.abort)
            self._cleanup = undo.pop_all()

    def submit(self, result: FrameMasks, image: Image, duration: float | None) -> None:
        """Queue one frame; waits when the writer is behind."""
        self._sink.submit(result, image, duration)

    def finish(self) -> None:
        """Write what is queued and complete the overlay."""
        self._sink.close()
        self._overlay.close()

    def complete(self, stopped: str | None) -> None:
        """Put ``result.json`` in place; a run without a frame leaves that of an earlier run."""
        if self.frames or not earlier_files(self._out):
            self._result.close(self._describe(stopped))

    def _write(self, result: FrameMasks, image: Image, duration: float | None) -> None:
        with ExitStack() as undo:
            prepared = []
            for expression, mask in zip(result.expressions, result.masks, strict=True):
                prepared.append(self._masks.prepare(expression, result.index, mask))
                undo.callback(prepared[-1].discard)
            labels = [self._expressions[number] for number in result.expressions]
            drawn = draw_overlay(image, result.masks, labels, result.scores)
            self._overlay.write(drawn, result.pts, duration)
            with nullcontext() if self.frames else replacing_earlier_files(self._out):
                self._put_in_place(result, prepared)
        self.frames += 1

    def _put_in_place(self, result: FrameMasks, masks: list[PreparedMask]) -> None:
        """All masks of a frame and its entry, or nothing."""
        with ExitStack() as undo:
            for mask in masks:
                mask.put_in_place()
                undo.callback(mask.path.unlink, missing_ok=True)
            self._result.add(result)
            undo.pop_all()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._cleanup:  # every step of it, whatever the others raise
            if isinstance(error, RvosError):
                with suppress(RvosError):  # which may be this very error
                    self._sink.close()
                if self.frames:
                    self._report(error)

    def _report(self, error: RvosError) -> None:
        """Complete what can be for the frames so far, and say so in the error."""
        complete = f"the masks of {self.frames} frames"
        reason = redact_text(str(error))
        try:
            self._overlay.close()
            self._result.close(self._describe(f"error: {reason}"))
            complete = f"{self.frames} frames"
        except RvosError:
            pass
        error.args = (f"{error}; {complete} are complete in {self._out}",)
