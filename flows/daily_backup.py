"""One backup of the database a day, made beside the service's other work: of a large database it takes a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from storage.backup import back_up_daily
from storage.errors import StorageError
from storage.jobs import utc_now

_AGAIN_SECONDS: Final = 600.0
"""After one that did not succeed."""

logger = logging.getLogger("nst")


class DailyBackup:
    """Keeps the last `keep` days of one database file; with 0 it makes no backups, nor of the database of a server."""

    def __init__(self, database: Path | None, *, keep: int, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._keep = keep
        self._clock = clock
        self._begun: tuple[object, float] | None = None
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin today's backup, in a thread, unless it is made or being made; what hinders it is logged."""
        day, now = self._clock().astimezone().date(), time.monotonic()
        database = self._database
        if database is None or not self._keep or (self._thread is not None and self._thread.is_alive()):
            return
        if self._begun is not None and self._begun[0] == day and now - self._begun[1] < _AGAIN_SECONDS:
            return
        self._begun = (day, now)

        def make() -> None:
            try:
                if file := back_up_daily(database, day=day, keep=self._keep):
                    logger.info("the database is backed up in %s", file)
            except StorageError as error:
                logger.warning("%s", error)

        # Whoever ends the service does not wait for it: the next one begins anew.
        self._thread = threading.Thread(target=make, name="backup", daemon=True)
        self._thread.start()
