"""Whether a service can be started on its database, and what to do where it cannot: which backup to restore."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from storage.backup import restore_command
from storage.database import PATIENCE_SECONDS, is_cut_off
from storage.database_copy import backups_of, damage_lines, newest_backup
from storage.errors import DatabaseError

# Most of a large database, and a damaged curve stops no job. Of 100,000 jobs with 20 points each, 586 MB, all else is
# checked in 0.5 s and the points in 1.9 s more; a service that keeps 200 a job has ten times as many. The daily backup
# checks everything.
_NOT_CHECKED: Final = "loss_points"


def require_sound(database: Path) -> None:
    """Raise DatabaseError unless a service can work on the database.

    The sentence names the file and the newest backup with the command to restore it. A database that is not there yet
    is sound, unless there are backups of it.
    """
    if database.exists() and not os.access(database, os.R_OK | os.W_OK):
        raise DatabaseError(f"The database {database} is read-only; make the file and its disk readable and writable.")
    sign = _damage(database)
    if sign is None:
        return
    backup = newest_backup(database)
    if backup is None:
        raise DatabaseError(
            f"The database {database} {sign}, and there is no backup of it in {backups_of(database)}: move it and its "
            "-wal and -shm to another folder to begin a new one, which takes up again what lies in work/."
        )
    command = restore_command(database, backup)
    raise DatabaseError(
        f"The database {database} {sign}; its newest backup is {backup}: restore that with `{command}`, which keeps "
        "the old file beside it."
    )


def _damage(database: Path) -> str | None:
    if is_cut_off(database):
        return "is damaged (it is empty, and what was to be written into it is not)"
    if not database.is_file() or not database.stat().st_size:
        # The first start leaves an empty file where it is killed.
        return "is gone" if newest_backup(database) else None
    try:
        sign = _wrong_page(database)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return None
        return f"cannot be read ({error})"
    except sqlite3.DatabaseError as error:
        sign = str(error)
    sign = sign or _missing_end(database)
    return f"is damaged ({sign})" if sign else None


def _wrong_page(database: Path) -> str | None:
    uri = f"{database.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE_SECONDS, isolation_level=None)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            if table != _NOT_CHECKED:
                said = connection.execute(f'PRAGMA quick_check("{table}")')
                if damage := next(damage_lines(answer for (answer,) in said), None):
                    return damage
    return None


def _missing_end(database: Path) -> str | None:
    """Whether the file is shorter than it says: a table that was not looked at may have been there."""
    log = database.with_name(f"{database.name}-wal")
    if log.is_file() and log.stat().st_size:
        # What it says may be about pages that are still in there.
        return None
    with database.open("rb") as file:
        header = file.read(32)
    page_size = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    missing = pages * (65536 if page_size == 1 else page_size) - database.stat().st_size
    return f"its last {missing} bytes are missing" if missing > 0 else None
