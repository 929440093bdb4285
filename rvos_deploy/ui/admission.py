"""Refuse requests that pages of other sites send to the page from a visitor's browser."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rvos_deploy.listening import foreign

_TEXTS = {
    "other_site": "refused: the request comes from a page of another site",
    "other_name": "refused: without --auth-file this page answers under names of this machine "
    "only; use 127.0.0.1",
}


class Admission:
    """Answer foreign requests with 403. Gradio itself allows every site under most names."""

    def __init__(self, app: ASGIApp, any_name: bool) -> None:
        """``any_name``: whether the page asks for a password, and so answers under every name."""
        self._app, self._any_name = app, any_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        reason = None
        if scope["type"] in ("http", "websocket"):
            reason = foreign(scope["headers"], any_name=self._any_name)
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse(_TEXTS[reason], 403)(scope, receive, send)
