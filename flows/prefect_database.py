"""Ends the Prefect server when its database file has been removed or replaced: it would go on with one that nobody else
sees, and fail at every new connection. Whoever supervises it starts it again, with a new database."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Final

_LOOK_SECONDS: Final = 2.0

logger = logging.getLogger(__name__)


def end_without(database: Path) -> None:
    """Send this process SIGTERM once the file is another one than it was, or gone; looks from a thread of its own."""
    threading.Thread(target=_follow, args=(database,), name="database", daemon=True).start()


def _follow(database: Path) -> None:
    never, first = threading.Event(), _identity(database)
    while not never.wait(_LOOK_SECONDS):
        now = _identity(database)
        # At the first start there is none yet.
        first = first or now
        if now != first:
            logger.warning("%s was removed or replaced; the server starts again with what is there", database)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
