"""What `nst doctor` looks at in the database: whole, free to be written to, backed up, and of a time that has been."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfoNotFoundError, available_timezones

import tzlocal

from flows.doctor.finding import Finding, of_sentence
from flows.settings import Settings
from storage.backup import restore_command
from storage.damage import require_sound
from storage.database import Database, open_database
from storage.database_copy import newest_backup
from storage.errors import SchemaTooNewError, StorageError
from storage.figures import Figures
from storage.jobs import utc_now

_LOCK_SECONDS: Final = 3.0
_OLD_BACKUP: Final = timedelta(days=3)
_CLOCK_TOLERANCE: Final = timedelta(minutes=1)


def database(settings: Settings) -> list[Finding]:
    """The database: it can be written to at once, is this nst's, and is whole."""
    path = settings.database_file
    if path is None:
        return _server(settings)
    if not path.exists() and newest_backup(path) is None:
        return [Finding("database", f"none yet; the first job makes {path}")]
    if "locked" in (_refusal(path, "BEGIN IMMEDIATE") or ""):
        finding = f"{path} has been locked by another process for {_LOCK_SECONDS:g} s"
        return [Finding("database", finding, f"end the process that holds it; `fuser {path}` lists who has it open")]
    try:
        require_sound(path)
        with open_database(path, patience_seconds=_LOCK_SECONDS) as found:
            problems = found.integrity()
    except SchemaTooNewError as error:
        return [Finding("database", str(error), "update nst, or name another home with --home")]
    except StorageError as error:
        return [of_sentence("database", str(error))]
    if problems:
        return [Finding("database", problems[0].rstrip("."), _restore(path))]
    return [Finding("database", f"{path}, whole, {path.stat().st_size / 1e6:.1f} MB")]


def _server(settings: Settings) -> list[Finding]:
    try:
        with open_database(settings.database, patience_seconds=_LOCK_SECONDS) as found:
            return [Finding("database", f"{found.place}, which answers")]
    except SchemaTooNewError as error:
        return [Finding("database", str(error), "update nst, or name another database")]
    except StorageError as error:
        return [of_sentence("database", str(error))]


def backup(settings: Settings) -> list[Finding]:
    """The newest backup, and whether it is as new as it should be."""
    path = settings.database_file
    if path is None:
        return [Finding("backup", "by whoever looks after the PostgreSQL server, with pg_dump for one")]
    last = newest_backup(path)
    if last is None:
        return [Finding("backup", "none yet; `nst backup FILE` makes one, and `nst up` one a day")]
    made = last.stat().st_mtime
    is_behind = path.exists() and path.stat().st_mtime - made > _OLD_BACKUP.total_seconds()
    remedy = f"see logs/sensor.log in {settings.home}, and make one now: nst backup FILE"
    age = timedelta(seconds=max(0.0, time.time() - made))
    return [Finding("backup", f"{last}, {_shown_span(age)} old", remedy if is_behind and settings.keep_backups else "")]


def clock(settings: Settings) -> list[Finding]:
    """The clock, which was set back where jobs are of times to come, and its time zone."""
    now = utc_now()
    with opened(settings) as found:
        last = None if found is None else Figures(found).newest_time()
    if last is not None and last - now > _CLOCK_TOLERANCE:
        return [
            Finding(
                "clock",
                f"a job is of {_shown(last)}, {_shown_span(last - now)} after what this machine takes for now",
                "set the clock (timedatectl); what waits for a time goes on when that has come",
            )
        ]
    zone = settings.time_zone or _zone_here() or "UTC, as this machine's time zone has no name"
    return [Finding("clock", f"{_shown(now)}; nights begin by {zone}")]


@contextmanager
def opened(settings: Settings) -> Iterator[Database | None]:
    """The database, for another check; None where there is none, or where the check of it says what is wrong."""
    path = settings.database_file
    if path and (not path.exists() or _refusal(path, "SELECT count(*) FROM sqlite_master") is not None):
        yield None
        return
    try:
        found = open_database(settings.database, patience_seconds=_LOCK_SECONDS)
    except StorageError:
        yield None
        return
    with found:
        yield found


def _refusal(path: Path, statement: str) -> str | None:
    """Why the database does not take a statement, None where it does; waits for a lock _LOCK_SECONDS."""
    try:
        uri = f"{path.as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_LOCK_SECONDS, isolation_level=None)) as connection:
            connection.execute(statement)
    except sqlite3.Error as error:
        return str(error)
    return None


def _restore(path: Path) -> str:
    last = newest_backup(path)
    if last is None:
        return f"stop nst and move {path} to another folder to begin a new one, which takes up again what lies in work/"
    return f"stop nst and restore the newest backup: {restore_command(path, last)}"


def _zone_here() -> str | None:
    try:
        name = tzlocal.get_localzone_name()
    except ZoneInfoNotFoundError:
        return None
    return name if name in available_timezones() else None


def _shown(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _shown_span(time_span: timedelta) -> str:
    """A span of time as people say it."""
    seconds = time_span.total_seconds()
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} seconds"
