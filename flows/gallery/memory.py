"""The database behind the gallery: opened when it is first there, and again when another file has taken its place.
Looking makes none. One of a server is opened once."""

from __future__ import annotations

import threading
from pathlib import Path

from flows.settings import Settings
from storage.database import Database, open_database
from storage.errors import DatabaseError


class NoDatabaseError(DatabaseError):
    """There is no database yet."""


class Memory:
    """One database for all threads of this process."""

    def __init__(self, settings: Settings) -> None:
        self._place = settings.database
        self._file = settings.database_file
        self._lock = threading.Lock()
        self._opened: tuple[tuple[int, int] | None, Database] | None = None

    def database(self) -> Database:
        """The database as it is now; raises NoDatabaseError where there is none, DatabaseError if it does not open."""
        file = None if self._file is None else _identity(self._file)
        with self._lock:
            if self._opened is None or self._opened[0] != file:
                if self._opened is not None:
                    self._opened[1].close()
                    self._opened = None
                self._opened = (file, open_database(self._place))
            return self._opened[1]


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise NoDatabaseError(f"There is no database {path} ({error.strerror}); `nst up` makes it.") from error
    if not status.st_size:
        # Somebody makes it or copies it here: opened now, it would be written to.
        raise NoDatabaseError(f"The database {path} is still empty; `nst up` makes it.")
    return (status.st_dev, status.st_ino)
