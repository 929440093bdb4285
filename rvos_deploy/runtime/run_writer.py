"""Write the results of a run into its sinks in a background thread, each frame wholly or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

from rvos_deploy.errors import RvosError
from rvos_deploy.redaction import redact_text
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.run_folder import earlier_files, replacing_earlier_files
from rvos_deploy.video import VideoInfo
from rvos_deploy.video.pipeline import BackgroundSink
from rvos_deploy.video.sinks.base import Sink

FRAMES_BEHIND = 4
"""Number of results that may wait to be written. It bounds the memory."""


class RunWriter:
    """Write results into sinks. Use it in a ``with`` block while ``run_folder`` locks the folder.

    The files of an earlier run stay until every sink has written the first frame of this run under
    temporary names. ``frames`` counts a frame once every sink has committed it. When the block
    fails, the sinks are still finished with the counted frames, and the error says so.

    Attributes:
        frames: number of complete frames.
        stopped: why the run ended early, or None.
    """

    def __init__(
        self, out: Path | None, sinks: Sequence[Sink], info: VideoInfo, expressions: Sequence[str]
    ) -> None:
        """Open the sinks. ``out``: the run's folder; None: no sink writes there."""
        self._out = out
        self._sinks = sinks
        self.frames = 0
        self.stopped: str | None = None
        with ExitStack() as undo:
            for sink in sinks:
                undo.callback(sink.abort)
                sink.open(info, expressions)
            self._background = BackgroundSink(self._write, FRAMES_BEHIND)
            undo.callback(self._background.abort)
            self._cleanup = undo.pop_all()

    @property
    def place(self) -> str:
        """Return `` in FOLDER`` for people; "" if no sink writes there."""
        return "" if self._out is None else f" in {self._out}"

    def submit(self, result: FrameMasks) -> None:
        """Queue one frame; wait while the queue is full."""
        self._background.submit(result)

    def finish(self) -> None:
        """Write the queued frames, and complete every output.

        A run without a frame leaves the files of an earlier run unchanged.
        """
        self._background.close()
        if self.frames or self._out is None or not earlier_files(self._out):
            self._finish_sinks()

    def describe_outputs(self) -> dict[str, object]:
        """Return what each sink says of its output, by name."""
        return {name: said for sink in self._sinks for name, said in sink.describe().items()}

    def _finish_sinks(self) -> None:
        """Finish every sink, also behind one that fails. Raises the first error."""
        failed: RvosError | None = None
        for sink in self._sinks:
            try:
                sink.finish()
            except RvosError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _write(self, result: FrameMasks) -> None:
        written: list[Sink] = []  # a sink that has not begun the frame must not withdraw another
        with self._all_or_rolled_back(written):
            for sink in self._sinks:
                written.append(sink)
                sink.write(result)
        if self._out is None or self.frames:
            earlier: AbstractContextManager[None] = nullcontext()
        else:
            earlier = replacing_earlier_files(self._out)
        # The inner block removes this frame's files before the outer block restores earlier files.
        with earlier, self._all_or_rolled_back(self._sinks):
            for sink in self._sinks:
                sink.commit()
        self.frames += 1

    @contextmanager
    def _all_or_rolled_back(self, sinks: Sequence[Sink]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for sink in sinks:
                sink.rollback()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._cleanup:  # runs every step, even if another one raises
            if isinstance(error, RvosError):
                with suppress(RvosError):  # possibly this same error
                    self._background.close()
                if self.frames:
                    self._report(error)

    def _report(self, error: RvosError) -> None:
        """Complete the outputs for the frames so far, and say so in the error."""
        self.stopped = f"error: {redact_text(str(error))}"
        complete = (
            f"the masks of {self.frames} frames" if "masks" in self.describe_outputs() else ""
        )
        with suppress(RvosError):
            self._finish_sinks()
            complete = f"{self.frames} frames"
        if self._out is None:
            error.args = (f"{error}; {self.frames} frames were sent",)
        elif complete:
            error.args = (f"{error}; {complete} are complete{self.place}",)
