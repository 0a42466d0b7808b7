"""What the web servers of a service have in common: how they take their address, and how they end."""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType

from flows.errors import ServiceError


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """A socket bound to this address; ServiceError, which names the setting of the port, where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only of a socket that is said to be TCP does asyncio send what is written at once; else an answer waits for 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ServiceError(
            f"{host}:{port}: cannot be listened on ({error.strerror}); choose another {setting}."
        ) from error
    return bound


def leave_on_signals() -> None:
    """End with code 0 on SIGTERM and Ctrl-C, as uvicorn lets a process end that has closed everything."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    # Uvicorn sends itself a signal it was ended by once more when it has closed everything: that is a clean end too.
    sys.exit(0)
