"""A whole copy of the database while the service writes to it."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from storage.database import Database
from storage.disk import move_file, part_of, sync
from storage.errors import DatabaseError, WorkspaceError

_PAGES_A_STEP: Final = 1024
_BUSY_SECONDS: Final = 30.0


def back_up(database: Database, file: Path) -> int:
    """Copy the database as it is at this moment to the new file `file`; returns the copy's size in bytes.

    The file appears whole or not at all. Raises WorkspaceError where the file is already there or cannot be
    written, DatabaseError where the database is damaged or is not SQLite's.
    """
    url = database.engine.url
    if url.get_backend_name() != "sqlite":
        raise DatabaseError(f"The database {url.render_as_string()} is a server's; back it up with pg_dump.")
    file = file.absolute()
    if file.exists() or file.is_symlink():
        raise WorkspaceError(f"{file} is already there; name a new file for the backup.")
    if not file.parent.is_dir():
        raise WorkspaceError(f"There is no folder {file.parent}; make it or name another file for the backup.")
    part = part_of(file)
    try:
        try:
            # What a backup that was killed has left.
            _remove(part)
            _copy(Path(url.database or ""), part)
            sync(part)
            size = part.stat().st_size
            move_file(part, file)
            sync(file.parent)
        finally:
            _remove(part)
    except sqlite3.Error as error:
        if type(error) is sqlite3.DatabaseError:
            raise _damaged(url.database, error) from error
        raise DatabaseError(
            f"The database {url.database} cannot be copied to {file} ({error}); run `nst doctor` and free some space."
        ) from error
    except FileExistsError as error:
        raise WorkspaceError(f"{file} has just been made by another; name a new file for the backup.") from error
    except OSError as error:
        raise WorkspaceError(f"{file} cannot be written ({error.strerror or error}); name another file.") from error
    return size


def _copy(database: Path, part: Path) -> None:
    with (
        closing(sqlite3.connect(database, timeout=_BUSY_SECONDS, isolation_level=None)) as source,
        closing(sqlite3.connect(part, isolation_level=None)) as copy,
    ):
        # Without a transaction of its own the copy would begin anew whenever somebody writes.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        source.backup(copy, pages=_PAGES_A_STEP)
        source.execute("ROLLBACK")
        # One file that needs no others beside it; whoever opens it next switches back.
        copy.execute("PRAGMA journal_mode=DELETE")
        damage = [line for (line,) in copy.execute("PRAGMA integrity_check")]
    if damage != ["ok"]:
        raise _damaged(database, damage[0])


def _damaged(database: object, sign: object) -> DatabaseError:
    return DatabaseError(
        f"The database {database} is damaged ({sign}), so no backup was made; stop nst and restore an older one."
    )


def _remove(part: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        part.with_name(f"{part.name}{suffix}").unlink(missing_ok=True)
