"""Admit only requests that may use the server: with its token, and of no other site."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rvos_deploy.listening import foreign
from rvos_deploy.serving.lines import ERROR_SCHEMA

OPEN_PATHS = ("/healthz",)
"""Paths that need no token, for load balancers."""
REFUSED_CLOSE = 4403
"""Close code of a WebSocket; those from 4000 on are the application's."""


@dataclass(frozen=True)
class _Reason:
    status: int
    code: str
    message: str


_NO_TOKEN = _Reason(
    401,
    "unauthorized",
    "this server needs its token; send 'Authorization: Bearer TOKEN'",
)
_FOREIGN = {
    "other_site": _Reason(
        403, "other_site", "the request comes from a page of another site; send it from a program"
    ),
    "other_name": _Reason(
        403,
        "other_name",
        "without a token this server answers under names of this machine only; use 127.0.0.1",
    ),
}


class Admission:
    """Refuse requests that are not admitted."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        """Wrap an application; ``token``: that requests must carry, None: none."""
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        reason = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": REFUSED_CLOSE})
        else:
            content = {"schema": ERROR_SCHEMA, "code": reason.code, "message": reason.message}
            headers = {"www-authenticate": "Bearer"} if reason.status == 401 else None
            await JSONResponse(content, reason.status, headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> _Reason | None:
        headers = dict(scope["headers"])
        if scope["path"] in OPEN_PATHS:
            return None
        if self._expected is not None:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                return _NO_TOKEN
        reason = foreign(scope["headers"], any_name=self._expected is not None)
        return None if reason is None else _FOREIGN[reason]
