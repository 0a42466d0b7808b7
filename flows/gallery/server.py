"""The gallery as a process: listens on one address until SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from flows.errors import ServiceError
from flows.gallery.app import make_app
from flows.gallery.links import gallery_url
from flows.lifeline import end_with_parent
from flows.settings import Settings

# Open connections, such as a browser's, are cut after this when the gallery is told to end.
_DRAIN_SECONDS: Final = 2


def serve(settings: Settings, *, port: int, say: Callable[[str], object]) -> None:
    """Serve until SIGTERM or Ctrl-C; raises ServiceError where the port is taken."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    end_with_parent()
    with _bind(settings.host, port) as bound:
        config = uvicorn.Config(
            make_app(settings),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
        say(f"Gallery  {gallery_url(settings.host, port)}")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[bound])


def _leave(number: int, frame: FrameType | None) -> None:
    # Uvicorn sends itself a signal it was ended by once more when it has closed everything: that is a clean end too.
    sys.exit(0)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only of a socket that is said to be TCP does asyncio send what is written at once; else a page waits for 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ServiceError(
            f"{host}:{port}: cannot be listened on ({error.strerror}); choose another gallery_port or --port."
        ) from error
    return bound
