"""Read the fields of a request: of a form, of JSON, or of a live stream's first message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from rvos_deploy.console.options import read_sides
from rvos_deploy.serving.limits import RequestError
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video.sources.options import SourceOptions


class StreamFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Hold the fields that both kinds of requests share; see ``StreamSettings``."""

    expressions: list[str] = []
    lookahead: int = 0
    memory: int | None = None
    anchors: int = 0
    threshold: float | None = None
    fallback: Literal["none", "top1"] = "none"
    size: str | None = None
    short_side: int | None = None

    def settings(
        self, defaults: StreamSettings, mode: Literal["online", "offline"] = "online"
    ) -> StreamSettings:
        """Return the settings.

        Args:
            defaults: the server's, for the size and the memory of waiting frames.
            mode: of the stream.

        Raises InputError: a value is out of range.
        """
        named = self.size is not None or self.short_side is not None
        size = None if self.size is None else read_sides(self.size, "256x448")
        return StreamSettings(
            mode=mode,
            lookahead=self.lookahead,
            memory=self.memory,
            anchors=self.anchors,
            threshold=self.threshold,
            fallback=self.fallback,
            size=size if named else defaults.size,
            short_side=self.short_side if named else defaults.short_side,
            mask_budget=defaults.mask_budget,
        )


class VideoFields(StreamFields, forbid_unknown_fields=True, kw_only=True):
    """Hold the fields of a request for a whole video; see ``SourceOptions``."""

    url: str | None = None
    mode: Literal["online", "offline"] = "online"
    start: str | None = None
    end: str | None = None
    stride: str | None = None
    video_stream: int | None = None
    max_frames: int | None = None

    def reading(self) -> SourceOptions:
        """Return how the video is read. Raises InputError: a value has another form."""
        return SourceOptions(
            start=self.start, end=self.end, stride=self.stride, video_stream=self.video_stream
        )


class LiveFields(StreamFields, forbid_unknown_fields=True, kw_only=True):
    """Hold the first message of a live stream.

    Args:
        type: names the message.
        rgb: (width, height) of frames that come as plain RGB; None: as JPEG, PNG or WebP.
        fps: frames a second, which gives frames their times; None: the time of arrival.
    """

    type: Literal["start"]
    rgb: tuple[int, int] | None = None
    fps: float | None = None


def video_fields(values: Mapping[str, Any]) -> VideoFields:
    """Return the fields of a form (texts) or of JSON. Raises RequestError."""
    try:
        return msgspec.convert(values, VideoFields, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _wrong(error) from error


def live_fields(message: str) -> LiveFields:
    """Return the fields of the first message of a live stream. Raises RequestError."""
    try:
        return msgspec.json.decode(message, type=LiveFields)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _wrong(error) from error


def _wrong(error: Exception) -> RequestError:
    return RequestError(422, "wrong_field", f"a field is wrong: {error}; see docs/serving.md")
