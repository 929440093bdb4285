"""Stand before an application of Starlette, and answer the requests that it must not see."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

REFUSED_CLOSE = 4403
"""Close code of a WebSocket; those from 4000 on are the application's."""


class Admission:
    """Pass requests on that are not refused."""

    def __init__(self, app: ASGIApp, refusal: Callable[[Scope], Response | None]) -> None:
        """Wrap an application; ``refusal``: the answer to a request, None: it is admitted."""
        self._app, self._refusal = app, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": REFUSED_CLOSE})
        else:
            await refusal(scope, receive, send)
