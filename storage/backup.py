"""Backups of the database: made by hand or once a day while the service writes to it, and put back in its place."""

import os
import shlex
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Final

from storage.database import Database
from storage.database_copy import backup_file, backups, backups_of, copy_pages, copy_whole, remove_database
from storage.disk import copy_file, numbered, part_of, sync
from storage.errors import DatabaseError, WorkspaceError
from storage.refusal import refusal

_TABLES: Final = {"alembic_version", "jobs", "sources"}


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
    return copy_whole(Path(url.database or ""), file)


def back_up_daily(database: Path, *, day: date, keep: int) -> Path | None:
    """Make the copy of that day, unless it is there, and leave only the `keep` newest; returns the file it has made.

    Older ones are removed only once the new one is whole. Raises what copy_whole raises.
    """
    folder, file = backups_of(database), backup_file(database, day)
    if file.exists():
        return None
    with refusal(f"The backups in {folder} cannot be looked after", "check its permissions"):
        folder.mkdir(exist_ok=True)
        copy_whole(database, file)
        for old in backups(database)[keep:]:
            old.unlink()
    return file


def restore_command(database: Path, backup: Path) -> str:
    """What to type to have a copy put in place of the database of a home."""
    return shlex.join(["nst", "backup", "--restore", str(backup), "--home", str(database.parent)])


def restore(database: Path, backup: Path) -> Path | None:
    """Put a copy of `backup` in place of the database, which nobody may have open; returns where that is now.

    The old file and its -wal are kept beside it, NAME.replaced; None where there was none. At every moment there is the
    old file or the new one. Raises DatabaseError where the backup is damaged or none of nst's, and WorkspaceError where
    the disk refuses; then nothing has changed.
    """
    backup = backup.absolute()
    if not backup.is_file() or (database.exists() and backup.samefile(database)):
        raise WorkspaceError(f"{backup} is no backup to restore; name a file in {backups_of(database)} or another.")
    part = part_of(database)
    with refusal(f"{backup} cannot be put in place of {database}", "check the permissions and try again"):
        try:
            remove_database(part)
            _copy_of_backup(database, backup, part)
            sync(part)
            aside = _keep_aside(database)
            # Before the new file: SQLite would apply what is left of the old one's to it.
            for suffix in ("-wal", "-shm"):
                database.with_name(f"{database.name}{suffix}").unlink(missing_ok=True)
            sync(database.parent)
            part.replace(database)
            sync(database.parent)
        finally:
            remove_database(part)
    return aside


def _copy_of_backup(database: Path, backup: Path, part: Path) -> None:
    """A checked copy of the backup; DatabaseError, which names the next one, where there is nothing to restore."""
    try:
        damage = copy_pages(backup, part)
        with closing(sqlite3.connect(part)) as copy:
            tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        damage, tables = str(error), _TABLES
    if damage is None and not tables >= _TABLES:
        damage = "it holds no jobs of nst's"
    if damage is not None:
        others = [path for path in backups(database) if path != backup]
        hint = f"such as {others[0]}" if others else "if there is one"
        raise DatabaseError(f"{backup} is damaged ({damage}), so nothing was restored; name another backup, {hint}.")


def _keep_aside(database: Path) -> Path | None:
    """Give the database and its -wal a second name, under which they stay."""
    if not database.exists():
        return None
    aside = next(path for path in numbered(database.with_name(f"{database.name}.replaced")) if not path.exists())
    for suffix in ("-wal", ""):
        file = database.with_name(f"{database.name}{suffix}")
        if file.exists():
            kept = aside.with_name(f"{aside.name}{suffix}")
            try:
                os.link(file, kept)
            except OSError:
                # A file system without hard links.
                copy_file(file, kept)
    sync(database.parent)
    return aside
