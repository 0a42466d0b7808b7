"""Keeps other web pages off a server without a password. A page that somebody opens in a browser on this machine can
send requests to it as well, and Prefect, as shipped, takes them from everywhere and starts what they ask for."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from flows.addresses import may_ask

_REFUSED: Final = (
    "This server has no password, and so it answers only its own pages, as {host} and as localhost: open it under one "
    "of these names, or set prefect_auth.\n"
)
_POLICY_VIOLATION: Final = 1008


class OwnPagesOnly:
    """An application that answers only under names of this machine, and no page of another origin.

    Programs, which name no origin, are answered. `host` is the address that is listened on.
    """

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        app = self._app
        if scope["type"] != "lifespan" and not self._may_ask(Headers(scope=scope)):
            if scope["type"] == "websocket":
                app = WebSocketClose(_POLICY_VIOLATION)
            else:
                app = PlainTextResponse(_REFUSED.format(host=self._host), 403)
        await app(scope, receive, send)

    def _may_ask(self, headers: Headers) -> bool:
        asked, origin = headers.get("host", ""), headers.get("origin")
        return may_ask(asked, self._host) and (origin is None or urlsplit(origin).netloc == asked)
