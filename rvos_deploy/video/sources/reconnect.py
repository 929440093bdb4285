"""Connect again when a network source was lost: after a pause that doubles, for a limited time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from rvos_deploy.errors import VideoError
from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sources.base import OpenedSource, SourceRequest
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.timeline import Timeline

FIRST_PAUSE = 0.25
"""Seconds before the first attempt to connect again."""
LONGEST_PAUSE = 8.0
"""Seconds between later attempts at most."""

# A file that is cut short on the server looks like a lost connection.
_ATTEMPTS_WITHOUT_A_NEW_FRAME = 3


class Connect(Protocol):
    """Open a source whose frames continue a timeline."""

    def __call__(
        self, request: SourceRequest, errors: DecodeErrors, timeline: Timeline
    ) -> OpenedSource:
        """Return the source, whose first frame is decoded. Raises VideoError: it cannot be."""


def open_reconnecting(
    connect: Connect, request: SourceRequest, errors: DecodeErrors
) -> OpenedSource:
    """Open a source that is opened again when it is lost; see ``SourceType.open``.

    A file (its duration is known) goes on with the frame that was not read yet. A live stream goes
    on where it is: index and time continue, and the time says how long the gap was. A stream is
    lost when reading fails or no data comes in time, and at its end if it is of a kind that does
    not end.

    Raises:
        InputError, VideoError: the first connection fails, which is not tried again.
    """
    link = _Link(connect, request, errors, Timeline(request.selection.selector()))
    attempt = DecodeErrors(errors)
    source = connect(request, attempt, link.timeline)
    link.timeline.replayable = source.end == "known" and request.reconnect > 0
    return replace(source, iterator=link.frames(source, attempt))


@dataclass(frozen=True)
class _Link:
    connect: Connect
    request: SourceRequest
    errors: DecodeErrors
    timeline: Timeline

    def frames(self, source: OpenedSource, attempt: DecodeErrors) -> Iterator[Frame]:
        """Yield the frames of this connection and of the next ones."""
        while True:
            with closing(source):
                yield from source.frames()
            if self.timeline.selector.done:
                return
            lost = attempt.lost or (source.end == "never" and attempt.stopped is None)
            if not lost or not self.request.reconnect:
                if attempt.stopped is not None:
                    self.errors.stop(attempt.stopped)
                return
            cause = attempt.stopped or "the stream ended"
            again = self._again(source.end == "known", cause)
            if again is None:
                return
            source, attempt = again
            self.errors.reconnects += 1

    def _again(self, is_file: bool, cause: str) -> tuple[OpenedSource, DecodeErrors] | None:
        """Return the next connection; None: there is none, and the errors say why."""
        pause, frames = FIRST_PAUSE, self.timeline.frames
        limit, attempts = time.monotonic() + self.request.reconnect, 0
        most = _ATTEMPTS_WITHOUT_A_NEW_FRAME if is_file else None
        while (left := limit - time.monotonic()) > 0 and attempts != most:
            if self.request.closing.wait(min(pause, left)):
                return None
            pause, attempts = min(2 * pause, LONGEST_PAUSE), attempts + 1
            if is_file:
                self.timeline.replay()
            else:
                self.timeline.resume()
            attempt = DecodeErrors(self.errors)
            try:
                return self.connect(self.request, attempt, self.timeline), attempt
            except VideoError as error:
                last = str(error)
        told = f"; the last of {attempts} attempts to connect again: {last}" if attempts else ""
        self.errors.stop(f"the connection was lost after {frames} frames ({cause}){told}")
        return None
