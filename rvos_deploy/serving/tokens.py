"""Admit only requests that carry the server's token."""

from __future__ import annotations

import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rvos_deploy.serving.lines import ERROR_SCHEMA

OPEN_PATHS = ("/healthz",)
"""Paths that need no token, for load balancers."""
UNAUTHORIZED = 401
# Close codes of WebSockets from 4000 on are the application's.
UNAUTHORIZED_CLOSE = 4401


class RequireToken:
    """Refuse requests without ``Authorization: Bearer TOKEN``."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        """Wrap an application."""
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] in ("http", "websocket") and not self._is_admitted(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": UNAUTHORIZED_CLOSE})
                return
            answer = JSONResponse(
                {
                    "schema": ERROR_SCHEMA,
                    "code": "unauthorized",
                    "message": "this server needs its token; send 'Authorization: Bearer TOKEN'",
                },
                UNAUTHORIZED,
                {"www-authenticate": "Bearer"},
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_admitted(self, scope: Scope) -> bool:
        if scope["path"] in OPEN_PATHS:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)
