"""Keep the state of every video in a file, so that a killed batch goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from rvos_deploy.environment import versions
from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, discard_stale, read_regular_file, replacing

STATUS = "batch.json"
SCHEMA: Literal["rvos-deploy/batch/1"] = "rvos-deploy/batch/1"
_MAX_BYTES = 2**30

State = Literal["waiting", "running", "done", "damaged", "failed"]
FINISHED = ("done", "damaged")
"""States that the same batch does not repeat: all that can be decoded is written."""


class VideoStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold the state of one video.

    Args:
        video: the video as it was given.
        state: "damaged": the frames before the damage are complete.
        fingerprint: from ``jobs.fingerprint``.
        expressions: number of expressions.
        attempts: how often the video was begun.
        frames: frames written.
        seconds: time of the last attempt.
        error: why the video is damaged or failed, in one line.
    """

    video: str
    state: State
    fingerprint: str
    expressions: int
    attempts: int = 0
    frames: int = 0
    seconds: float = 0.0
    error: str | None = None


class _Content(msgspec.Struct, frozen=True, kw_only=True):
    schema: Literal["rvos-deploy/batch/1"]
    command: str = ""
    versions: dict[str, str] = {}
    videos: dict[str, VideoStatus] = {}


class StatusFile:
    """Hold the state of every video, and write all of it at each change."""

    def __init__(self, folder: Path, command: str) -> None:
        """Read the file of an earlier batch in ``folder``, which must be locked.

        Raises:
            InputError: another program wrote the file, or it cannot be read.
        """
        self.path = folder / STATUS
        self._command = command
        self._versions = versions("ray")
        discard_stale(folder, STATUS)
        self._videos = dict(read_status(self.path))

    def get(self, name: str) -> VideoStatus | None:
        """Return the state of a video, by the name of its output folder."""
        return self._videos.get(name)

    def update(self, changes: Mapping[str, VideoStatus]) -> None:
        """Change the state of videos, and replace the file.

        Raises:
            InputError: the file cannot be written.
        """
        self._videos.update(changes)
        content = _Content(
            schema=SCHEMA, command=self._command, versions=self._versions, videos=self._videos
        )
        text = msgspec.json.format(msgspec.json.encode(content), indent=1)
        try:
            with replacing(self.path) as temporary:
                temporary.write_bytes(text + b"\n")
        except OSError as error:
            raise InputError(cannot_write(self.path, error)) from error


def read_status(path: Path) -> dict[str, VideoStatus]:
    """Read a status file; return no video where there is none.

    Raises:
        InputError: another program wrote the file, or it cannot be read.
    """
    try:
        return msgspec.json.decode(read_regular_file(path, _MAX_BYTES), type=_Content).videos
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"{path} was not written by this version of batch ({error}); move it, or choose "
            "another --out"
        ) from error
