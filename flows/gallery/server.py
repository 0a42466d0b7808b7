"""The gallery as a process: listens on one address until SIGTERM or Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import uvicorn

from flows.access import exposed_secrets, require_access
from flows.gallery.app import make_app
from flows.gallery.links import gallery_url
from flows.lifeline import end_with_parent
from flows.listening import leave_on_signals, listen
from flows.settings import Settings

# Open connections, such as a browser's, are cut after this when the gallery is told to end.
_DRAIN_SECONDS: Final = 2


def serve(settings: Settings, *, port: int, say: Callable[[str], object]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises SettingsError where others could reach it without a password, ServiceError where the port is taken.
    """
    require_access(settings, gallery=True)
    for sentence in exposed_secrets(settings):
        say(sentence)
    leave_on_signals()
    end_with_parent()
    with listen(settings.host, port, setting="gallery_port or --port") as bound:
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
