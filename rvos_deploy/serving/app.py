"""Define the routes of a replica."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from rvos_deploy.admission import Admission
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.files import sha256_file
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.segmenter_options import SegmenterOptions
from rvos_deploy.serving.admission import refusal
from rvos_deploy.serving.limits import (
    ClientGoneError,
    Deadline,
    Limits,
    RequestError,
    Slots,
    check_settings,
    check_texts,
)
from rvos_deploy.serving.lines import Lines, describe_error, json_line, status_of
from rvos_deploy.serving.live import LiveSession
from rvos_deploy.serving.measurements import CONTENT_TYPE, Measurements, joined
from rvos_deploy.serving.segmentation import Served, VideoRequest, known_error, segment_file
from rvos_deploy.serving.uploads import VIDEO, receive

POLICY_VIOLATION = 1008
"""Close code of a WebSocket whose client sent something wrong."""
TRY_AGAIN_LATER = 1013
_PUSH_SECONDS = 2.0

Exchange = Callable[[str, str], Awaitable[list[str]]]
"""Gives a replica's measurements to the others, and returns those of all."""
Report = Callable[[str], None]
"""Gives a text to the server's operator."""


@dataclass(frozen=True)
class ServerOptions:
    """Hold the options of a server that its replicas need.

    Args:
        segmenter: how a replica loads the bundle.
        limits: of a replica.
        allow_private_urls: fetch videos from addresses that are not public, too.
        token: that requests must carry; None: every request is admitted.
        folder: for videos while they are segmented; None: the system's temporary folder.
    """

    segmenter: SegmenterOptions
    limits: Limits = field(default_factory=Limits)
    allow_private_urls: bool = False
    token: str | None = None
    folder: str | None = None


def make_app(
    options: ServerOptions, replica: str, exchange: Exchange, report: Report, *, again: bool = False
) -> ASGIApp:
    """Load the segmenter, run it once, and return the application of a replica.

    Args:
        options: of the server.
        replica: name of the replica, for its measurements.
        exchange: gives its measurements to the others.
        report: takes tracebacks of errors that nobody expected.
        again: whether the server was ready before.

    Raises:
        RvosError: the bundle cannot be loaded, ``again``: Ray Serve then tries another replica.
            At first the replica says why instead, for the command to print.
    """
    made = Replica(options, replica, exchange, report)
    if again and made.failure is not None:
        raise made.failure
    app: ASGIApp = Starlette(
        routes=[
            Route("/healthz", made.alive),
            Route("/readyz", made.ready),
            Route("/metrics", made.metrics),
            Route("/v1/segment", made.segment, methods=["POST"]),
            WebSocketRoute("/v1/live", made.live),
        ],
        lifespan=made.running,
    )
    return Admission(app, partial(refusal, token=options.token))


class Replica:
    """Answer requests with one loaded segmenter; its methods run in the event loop."""

    def __init__(
        self, options: ServerOptions, replica: str, exchange: Exchange, report: Report
    ) -> None:
        """Load the segmenter. A bundle that cannot be loaded makes the replica unready."""
        self._options, self._name, self._exchange = options, replica, exchange
        self._report_text = report
        self._measurements = Measurements(replica)
        self._slots = Slots(options.limits.streams)
        # One thread for each stream, and one for a stream that ends.
        self._threads = ThreadPoolExecutor(options.limits.streams + 1, "stream")
        self._served: Served | None = None
        self.failure: RvosError | None = None
        try:
            segmenter = options.segmenter.load()
            _warm_up(segmenter)
        except RvosError as error:
            self.failure = error
            return
        budget = options.segmenter.stream.mask_budget // options.limits.streams
        self._served = Served(
            segmenter,
            options.limits,
            self._measurements,
            replace(options.segmenter.stream, mask_budget=budget),
            options.allow_private_urls,
            self._report,
        )

    async def alive(self, request: Request) -> Response:
        """Answer that the process runs."""
        return JSONResponse({"alive": True})

    async def ready(self, request: Request) -> Response:
        """Answer whether streams can be opened, and of what."""
        if self._served is None:
            error = self.failure or InputError("the bundle is not loaded")
            return JSONResponse(describe_error(error), 503)
        bundle = self._served.segmenter.bundle
        return JSONResponse(
            {
                "ready": True,
                "replica": self._name,
                "model": bundle.config.name,
                "manifest_sha256": sha256_file(bundle.path / "manifest.json"),
                "backend": self._served.segmenter.describe_backend(),
                "streams": {"open": self._slots.taken, "most": self._slots.most},
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Answer with the measurements of all replicas in Prometheus' text format."""
        self._measurements.streams(self._slots.taken)
        texts = await self._exchange(self._name, self._measurements.text())
        return Response(joined(texts), media_type=CONTENT_TYPE)

    async def segment(self, request: Request) -> Response:
        """Segment a video that is uploaded or named by its address."""
        deadline = Deadline(self._options.limits.seconds)
        try:
            served = self._ready()
            self._slots.take()
        except RvosError as error:
            return self._refuse(error)
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="request-", dir=self._options.folder))
            asked = await self._receive(request, folder, served, deadline)
        except Exception as error:
            self._release(folder)
            return self._refuse(known_error(error, self._report))
        except BaseException:
            self._release(folder)
            self._measurements.request("segment", "client_gone")
            raise
        lines = Lines(self._options.limits.idle_seconds)
        work = self._threads.submit(segment_file, served, asked, lines)
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda done: loop.call_soon_threadsafe(self._ended, done, folder))
        try:
            first = await lines.next()
        except BaseException:
            lines.close()  # the thread ends, and frees the stream
            raise
        if first is None:
            return _answer(await asyncio.to_thread(work.exception))
        return StreamingResponse(_body(first, lines), media_type="application/x-ndjson")

    async def _receive(
        self, request: Request, folder: Path, served: Served, deadline: Deadline
    ) -> VideoRequest:
        """Receive and check a request. Raises RvosError."""
        limits = self._options.limits
        fields, video = await receive(request, folder, limits, deadline)
        if (video is None) == (fields.url is None):
            raise RequestError(
                422,
                "no_video",
                f"there must be exactly one video; send it in the field '{VIDEO}', or its 'url'",
            )
        check_texts(fields.expressions, limits)
        check_settings(fields.settings(served.defaults, fields.mode), limits)
        fields.reading()  # refuses wrong values before any work
        return VideoRequest(fields, folder, video, deadline)

    async def live(self, socket: WebSocket) -> None:
        """Segment live frames."""
        await socket.accept()
        limits = self._options.limits
        deadline = Deadline(limits.seconds)
        try:
            served = self._ready()
            self._slots.take()
        except RvosError as error:
            await self._end_live(socket, error)
            return
        try:
            lines = Lines(limits.idle_seconds)
            first = await asyncio.wait_for(socket.receive(), limits.idle_seconds)
            session = LiveSession(served, first, deadline, lines)
            await self._run_live(socket, session, deadline, lines)
        except TimeoutError:
            await self._end_live(socket, _idle(limits))
        except WebSocketDisconnect:
            self._measurements.request("live", "client_gone")
        except Exception as error:
            await self._end_live(socket, known_error(error, self._report))
        finally:
            self._slots.free()

    async def _run_live(
        self, socket: WebSocket, session: LiveSession, deadline: Deadline, lines: Lines
    ) -> None:
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, session.work)
        sending = asyncio.create_task(_send(socket, lines))
        try:
            error = await self._receive_live(socket, session, deadline, sending)
        finally:
            session.close()
            lines.close()
            sending.cancel()
            outcome = await asyncio.shield(work)
        if error is None:
            self._measurements.request("live", outcome)
            with suppress(RuntimeError, WebSocketDisconnect):
                await socket.close(1000 if outcome == "done" else POLICY_VIOLATION)
        else:
            await self._end_live(socket, error)

    async def _receive_live(
        self,
        socket: WebSocket,
        session: LiveSession,
        deadline: Deadline,
        sending: asyncio.Task[None],
    ) -> RvosError | None:
        """Take messages until the last line is sent; return an error of the client."""
        limits = self._options.limits
        while True:
            receiving = asyncio.create_task(socket.receive())
            # A client that has ended its stream sends nothing, and waits for the last lines.
            idle = deadline.left if session.ended else limits.idle_seconds
            await asyncio.wait(
                {receiving, sending}, timeout=idle, return_when=asyncio.FIRST_COMPLETED
            )
            if sending.done():
                receiving.cancel()
                return None
            if not receiving.done():
                receiving.cancel()
                return _over(deadline) if session.ended else _idle(limits)
            message = receiving.result()
            if message["type"] == "websocket.disconnect":
                return ClientGoneError()
            try:
                session.receive(message)
            except RvosError as error:
                return error

    async def _end_live(self, socket: WebSocket, error: RvosError) -> None:
        self._measurements.request("live", _code(error))
        if isinstance(error, ClientGoneError):
            return
        code = TRY_AGAIN_LATER if status_of(error) == 503 else POLICY_VIOLATION
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.send_text(json_line(describe_error(error)).decode())
            await socket.close(code)

    def _ready(self) -> Served:
        if self._served is None:
            raise RequestError(503, "not_ready", str(self.failure))
        return self._served

    def _ended(self, done: Future[str], folder: Path) -> None:
        """Free the stream of a thread that has ended."""
        error = done.exception()
        self._measurements.request("segment", done.result() if error is None else _code(error))
        self._release(folder)

    def _release(self, folder: Path | None) -> None:
        self._slots.free()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _refuse(self, error: RvosError) -> Response:
        self._measurements.request("segment", _code(error))
        return _answer(error)

    def _report(self, error: BaseException) -> None:
        self._report_text("".join(traceback.format_exception(error)))

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """Give the measurements to the other replicas now and then."""
        pushing = asyncio.create_task(self._push())
        try:
            yield
        finally:
            pushing.cancel()

    async def _push(self) -> None:
        while True:
            self._measurements.streams(self._slots.taken)
            with suppress(Exception):  # the board is being restarted; the next round finds it
                await self._exchange(self._name, self._measurements.text())
            await asyncio.sleep(_PUSH_SECONDS)


def _idle(limits: Limits) -> RequestError:
    return RequestError(
        408, "slow_client", f"no message came for {limits.idle_seconds:g} s; open another stream"
    )


def _over(deadline: Deadline) -> RvosError | None:
    try:
        deadline.check()
    except RequestError as error:
        return error
    return None


def _warm_up(segmenter: Segmenter) -> None:
    """Segment one frame, so that the first request does not wait for what a back end prepares."""
    height, width = segmenter.bundle.config.input_size
    with segmenter.stream(["anything"]) as stream:
        stream.push(np.zeros((height, width, 3), dtype=np.uint8))


async def _body(first: bytes, lines: Lines) -> AsyncIterator[bytes]:
    try:
        yield first
        async for line in lines.rest():
            yield line
    finally:
        lines.close()


async def _send(socket: WebSocket, lines: Lines) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):
        async for line in lines.rest():
            await socket.send_text(line.decode())


def _answer(error: BaseException | None) -> Response:
    if not isinstance(error, RvosError):
        error = RequestError(500, "internal", "the server failed; its operator sees why")
    headers = {}
    if isinstance(error, RequestError) and error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    return JSONResponse(describe_error(error), status_of(error), headers)


def _code(error: BaseException) -> str:
    return str(describe_error(error)["code"]) if isinstance(error, RvosError) else "internal"
