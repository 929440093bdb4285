"""Keep the state of every video in files, so that a killed batch goes on where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from rvos_deploy.environment import versions
from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, discard_stale, read_regular_file, replacing, sync

STATUS = "batch.json"
JOURNAL = "batch.journal"
"""The videos that ended since ``STATUS`` was written, one line each."""
SCHEMA: Literal["rvos-deploy/batch/1"] = "rvos-deploy/batch/1"
_BEGIN = b'{"schema":"' + SCHEMA.encode() + b'"'
_MAX_BYTES = 2**30
# Seconds between two writes of the whole file, and bytes a second that these writes take at most.
_PAUSE = 1.0
_RATE = 2**20

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


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    schema: Literal["rvos-deploy/batch/1"]
    name: str
    status: VideoStatus


class StatusFile:
    """Hold the state of every video, and write it so that a power cut loses no finished one.

    The whole file grows with the number of videos, so it is written now and then. Until then, a
    journal holds a line for each video that ended.
    """

    def __init__(self, folder: Path, command: str) -> None:
        """Read the files of an earlier batch in ``folder``, which must be locked.

        Raises:
            InputError: another program wrote a file, or it cannot be read.
        """
        self.path = folder / STATUS
        self._journal = folder / JOURNAL
        self._command = command
        self._versions = versions("ray")
        discard_stale(folder, STATUS)
        self._videos = read_status(folder)
        self._changed = True  # the first update takes what the journal holds into the whole file
        self._next = 0.0
        """When the whole file may be written again."""

    def get(self, name: str) -> VideoStatus | None:
        """Return the state of a video, by the name of its output folder."""
        return self._videos.get(name)

    def update(self, changes: Mapping[str, VideoStatus]) -> None:
        """Change the state of videos; when this returns, the disk has those that ended.

        Raises:
            InputError: a file cannot be written.
        """
        self._videos.update(changes)
        self._changed |= bool(changes)
        if self.write_if_due():
            return
        ended = {name: one for name, one in changes.items() if one.state in (*FINISHED, "failed")}
        if ended:
            self._append(ended)

    def write_if_due(self) -> bool:
        """Write the whole file if something changed, and the last time is long enough ago.

        Raises:
            InputError: the file cannot be written.
        """
        if not self._changed or time.monotonic() < self._next:
            return False
        self.write()
        return True

    def write(self) -> None:
        """Write the whole file, unless it has all changes.

        Raises:
            InputError: the file cannot be written.
        """
        if not self._changed:
            return
        content = _Content(
            schema=SCHEMA, command=self._command, versions=self._versions, videos=self._videos
        )
        text = msgspec.json.format(msgspec.json.encode(content), indent=1)
        try:
            with replacing(self.path, durable=True) as temporary:
                temporary.write_bytes(text + b"\n")
            # Only now: the file has what the journal says.
            self._journal.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(cannot_write(self.path, error)) from error
        self._changed = False
        self._next = time.monotonic() + max(_PAUSE, len(text) / _RATE)

    def _append(self, ended: Mapping[str, VideoStatus]) -> None:
        # The first line break ends a line that a full disk cut off.
        lines = [
            b"\n" + msgspec.json.encode(_Line(schema=SCHEMA, name=name, status=one)) + b"\n"
            for name, one in ended.items()
        ]
        # The first update removed what stood there, so the lines follow lines of this batch.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            new = not self._journal.exists()
            with os.fdopen(os.open(self._journal, flags, 0o666), "ab") as file:
                file.writelines(lines)
            sync(self._journal)
            if new:
                sync(self._journal.parent)
        except OSError as error:
            raise InputError(cannot_write(self._journal, error)) from error


def read_status(folder: Path) -> dict[str, VideoStatus]:
    """Read the status of a batch in ``folder``; return no video where there is none.

    Raises:
        InputError: another program wrote a file, or it cannot be read.
    """
    found = dict(_read_whole(folder / STATUS))
    found.update(_read_journal(folder / JOURNAL))
    return found


def _read_whole(path: Path) -> dict[str, VideoStatus]:
    content = _read(path)
    if content is None:
        return {}
    try:
        return msgspec.json.decode(content, type=_Content).videos
    except msgspec.DecodeError as error:
        raise _strange(path, error) from error


def _read_journal(path: Path) -> dict[str, VideoStatus]:
    """Read the lines of a journal; a kill, a power cut or a full disk may have cut some off."""
    found: dict[str, VideoStatus] = {}
    for text in (_read(path) or b"").split(b"\n"):
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.DecodeError as error:
            if _is_cut(text):
                continue
            raise _strange(path, error) from error
        found[line.name] = line.status
    return found


def _is_cut(text: bytes) -> bool:
    """Tell whether a text may be the beginning of a line, rather than another program's."""
    begin, found = _BEGIN, text.strip(b"\0")  # zeros: the disk got the length, not the content
    return found[: len(begin)] == begin[: len(found)]


def _read(path: Path) -> bytes | None:
    try:
        return read_regular_file(path, _MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _strange(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} was not written by this version of batch ({error}); move it, or choose "
        "another --out"
    )
