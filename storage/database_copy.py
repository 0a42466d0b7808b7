"""A whole copy of an SQLite database while others write to it, checked before it counts, and where copies of a home's
database are kept."""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Final

from storage.disk import move_file, part_of, sync
from storage.errors import DatabaseError, WorkspaceError
from storage.refusal import refusal_sentence

_PAGES_A_STEP: Final = 1024
_BUSY_SECONDS: Final = 30.0
_BACKUP: Final = re.compile(r".+-(\d{4}-\d{2}-\d{2})(?:-schema-\w+)?\.db")


def copy_whole(database: Path, file: Path, *, replace: bool = False) -> int:
    """Copy the database as it is at this moment to `file`; returns the copy's size in bytes.

    The file appears whole or not at all. Raises WorkspaceError where the file is already there, unless it is to be
    replaced, or cannot be written, DatabaseError where the database is damaged or cannot be read.
    """
    part = part_of(file)
    try:
        try:
            # What a backup that was killed has left.
            remove_database(part)
            damage = copy_pages(database, part)
            if damage is not None:
                raise _damaged(database, damage)
            sync(part)
            size = part.stat().st_size
            if replace:
                part.replace(file)
            else:
                move_file(part, file)
            sync(file.parent)
        finally:
            remove_database(part)
    except sqlite3.Error as error:
        if type(error) is sqlite3.DatabaseError:
            raise _damaged(database, error) from error
        raise DatabaseError(
            f"The database {database} cannot be copied to {file} ({error}); run `nst doctor` and free some space."
        ) from error
    except FileExistsError as error:
        raise WorkspaceError(f"{file} has just been made by another; name a new file for the backup.") from error
    except OSError as error:
        raise WorkspaceError(refusal_sentence(f"{file} cannot be written", error, "name another file")) from error
    return size


def copy_pages(database: Path, part: Path) -> str | None:
    """Copy the database to a file that nobody looks at yet, and check the copy; returns what is wrong with it.

    Raises sqlite3.Error: sqlite3.DatabaseError itself where the database is damaged or none.
    """
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
        return next(damage_lines(said for (said,) in copy.execute("PRAGMA integrity_check")), None)


def damage_lines(said: Iterable[str]) -> Iterator[str]:
    """What SQLite's checks of a database have found wrong, a line each; some of its answers are of many."""
    for line in (line for answer in said for line in answer.splitlines()):
        if line != "ok" and not line.startswith("***"):
            yield line


def remove_database(file: Path) -> None:
    """Remove a database file and what SQLite keeps beside it, as far as they are there."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        file.with_name(f"{file.name}{suffix}").unlink(missing_ok=True)


def backups_of(database: Path) -> Path:
    """The folder in which the copies of a database are kept that are made by themselves."""
    return database.parent / "backups"


def backup_file(database: Path, day: date, *, schema: str | None = None) -> Path:
    """Where the copy of a day is, or the one made before the database of that schema was upgraded."""
    before = f"-schema-{schema}" if schema else ""
    return backups_of(database) / f"{database.stem}-{day.isoformat()}{before}.db"


def newest_backup(database: Path) -> Path | None:
    """The newest of those copies, by the day in its name."""
    return next(iter(backups(database)), None)


def backups(database: Path) -> list[Path]:
    """Those copies, the newest first, by the day in their names; none where there is no such folder."""
    folder = backups_of(database)
    if not folder.is_dir():
        return []
    found = [(match[1], path) for path in folder.iterdir() if (match := _BACKUP.fullmatch(path.name))]
    return [path for *_, path in sorted(((day, path.stat().st_mtime_ns, path) for day, path in found), reverse=True)]


def _damaged(database: Path, sign: object) -> DatabaseError:
    return DatabaseError(
        f"The database {database} is damaged ({sign}), so no backup was made; stop nst and restore an older one."
    )
