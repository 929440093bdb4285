"""Admit only requests that may use the server: with its token, and of no other site."""

from __future__ import annotations

import hmac

from starlette.responses import JSONResponse
from starlette.types import Scope

from rvos_deploy.listening import foreign
from rvos_deploy.serving.lines import ERROR_SCHEMA

OPEN_PATHS = ("/healthz",)
"""Paths that need no token, for load balancers."""
_FOREIGN = {
    "other_site": "the request comes from a page of another site; send it from a program",
    "other_name": "without a token this server answers under names of this machine only; use "
    "127.0.0.1",
}


def refusal(scope: Scope, token: str | None) -> JSONResponse | None:
    """Return the answer to a request that is not admitted; None: it is.

    ``token``: that requests must carry; None: none.
    """
    if scope["path"] in OPEN_PATHS:
        return None
    if token is not None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            text = "this server needs its token; send 'Authorization: Bearer TOKEN'"
            return _answer(401, "unauthorized", text, {"www-authenticate": "Bearer"})
    reason = foreign(scope["headers"], any_name=token is not None)
    return None if reason is None else _answer(403, reason, _FOREIGN[reason])


def _answer(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    content = {"schema": ERROR_SCHEMA, "code": code, "message": message}
    return JSONResponse(content, status, headers)
