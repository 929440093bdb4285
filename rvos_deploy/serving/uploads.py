"""Receive a request: its fields, and its video as a file on disk, in bounded pieces."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from rvos_deploy.serving.fields import VideoFields, video_fields
from rvos_deploy.serving.limits import ClientGoneError, Deadline, Limits, RequestError

VIDEO = "video"
"""Name of the form's field that holds the video."""
_MAX_JSON = 2**20
# A form's texts are held in memory until its end.
_MAX_FIELDS, _MAX_FIELD = 300, 2**14
_TEXT_FIELDS = ("expression", "expressions")


async def receive(
    request: Request, folder: Path, limits: Limits, deadline: Deadline
) -> tuple[VideoFields, Path | None]:
    """Return a request's fields, and the file with its video; None: the fields name a URL.

    A form (multipart/form-data) has the video in the field ``video`` and each expression in a field
    ``expression``. JSON names a URL.

    Args:
        request: its body is read to the end.
        folder: for the video; it belongs to this request.
        limits: of the server.
        deadline: of the request.

    Raises:
        RequestError: the body has another form, is too large, or stops coming.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return await _receive_json(_bounded(request, _MAX_JSON, limits, deadline)), None
        if kind == "multipart/form-data":
            body = _bounded(request, limits.upload_bytes, limits, deadline)
            return await _receive_form(request, body, folder)
    except ClientDisconnect as error:
        raise ClientGoneError from error
    raise RequestError(
        415,
        "wrong_type",
        f"the body is {kind or 'of no type'}; send a form with a video (curl -F video=@FILE -F "
        'expression="...") or JSON with a url',
    )


async def _receive_json(parts: AsyncGenerator[bytes, None]) -> VideoFields:
    body = b"".join([part async for part in parts])
    try:
        values = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(422, "wrong_field", f"the body is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(422, "wrong_field", "the body must be a JSON object")
    return video_fields(values)


async def _receive_form(
    request: Request, body: AsyncGenerator[bytes, None], folder: Path
) -> tuple[VideoFields, Path | None]:
    parser = MultiPartParser(
        request.headers, body, max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(
            422, "wrong_form", f"the form cannot be read: {error.message}"
        ) from error
    try:
        values: dict[str, Any] = {}
        file: UploadFile | None = None
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != VIDEO:
                    raise RequestError(
                        422, "wrong_field", f"the file stands in '{name}', not '{VIDEO}'"
                    )
                file = value
            elif name in _TEXT_FIELDS:
                values.setdefault("expressions", []).append(value)
            else:
                values[name] = value
        fields = video_fields(values)
        if file is None:
            return fields, None
        path = folder / f"video{_suffix(file.filename)}"
        await asyncio.to_thread(_copy, file, path)
        return fields, path
    finally:
        await form.close()


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("xb") as copy:
        shutil.copyfileobj(file.file, copy)


def _suffix(name: str | None) -> str:
    """Return a file's suffix, which tells demuxers of old formats apart, if it is harmless."""
    suffix = Path(name or "").suffix.lower()
    return suffix if suffix[1:].isalnum() and len(suffix) <= 6 and suffix.isascii() else ""


async def _bounded(
    request: Request, most: int, limits: Limits, deadline: Deadline
) -> AsyncGenerator[bytes, None]:
    """Yield a body's parts. Raises RequestError: it is too large, too slow, or stops coming."""
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > most:
        raise _too_large(most)
    seen = 0
    parts = request.stream().__aiter__()
    while True:
        try:
            part = await asyncio.wait_for(anext(parts), min(limits.idle_seconds, deadline.left))
        except StopAsyncIteration:
            return
        except TimeoutError:
            deadline.check()
            raise RequestError(
                408, "slow_client", f"nothing came for {limits.idle_seconds:g} s; send it again"
            ) from None
        seen += len(part)
        if seen > most:
            raise _too_large(most)
        yield part


def _too_large(most: int) -> RequestError:
    return RequestError(
        413,
        "body_too_large",
        f"the body is larger than {most / 2**20:g} MiB; send a shorter or smaller video, or start "
        "the server with a greater --max-upload",
    )
