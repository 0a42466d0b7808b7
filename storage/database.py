"""Opens the database, brings its schema up to date and gives out transactions whose errors say what to do."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Dialect, make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from storage.database_copy import backup_file, copy_whole, damage_lines
from storage.errors import DatabaseError, SchemaTooNewError, StorageError

# The newest migration. Asking Alembic for it would mean importing Alembic, 0.15 s in every command.
SCHEMA_REVISION: Final = "0006"

PATIENCE_SECONDS: Final = 30.0
"""How long to wait for the lock of another process where nothing else is said."""
_WAL_TRIES: Final = 10
_UPGRADE_LOCK: Final = 0x6E7374  # "nst", the key of a PostgreSQL advisory lock
_WRITES: Final = "nst_writes"

_ADVICE: Final = {
    "file is not a database": "is not an SQLite database; move it away or name another file",
    "database is locked": "stayed locked by another process for {patience:g} s; end that process or try again later",
    "malformed": "is damaged; stop nst and start it again with `nst up`, which says how to restore a backup",
    "readonly": "is read-only; make the file and its folder writable or name another file",
    "unable to open": "cannot be opened; check that its folder exists and can be written to",
    "disk is full": "cannot grow because the disk is full; free some space",
    "lock timeout": "stayed locked by another process for {patience:g} s; end that process or try again later",
    "connection to server": "cannot be reached ({reason}); start its server, or correct the URL",
    "connection timeout": "cannot be reached ({reason}); start its server, or correct the URL",
}


class Database:
    """An open SQLite or PostgreSQL database; threads may share it, processes may not.

    Every error of the connection or the file is raised as DatabaseError with the place and what to do; that another
    process holds SQLite's lock, after `patience_seconds`.
    """

    def __init__(self, url: URL, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience = patience_seconds
        self._place = url.database if url.get_backend_name() == "sqlite" else url.render_as_string()
        is_server = url.get_backend_name() == "postgresql"
        try:
            # A server may have been started anew since a connection was last used.
            self.engine: Final = sa.create_engine(url, pool_pre_ping=is_server)
        except ModuleNotFoundError as error:
            raise DatabaseError(
                f"The database {self._place} needs the Python package {error.name}; install it."
            ) from error
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", self._prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._writer: Final = self.engine.execution_options(**{_WRITES: True})
        if is_server:
            event.listen(self.engine, "do_connect", self._prepare_postgresql)
        options = {"isolation_level": "REPEATABLE READ"} if is_server else {}
        self._reader: Final = self.engine.execution_options(**options)

    @property
    def place(self) -> str:
        """Its file, or its URL without the password, for those who read."""
        return str(self._place)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Read in one transaction, which sees one state of the database and is rolled back at the end."""
        with self._clear_errors(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """Write in one transaction: committed at the end of the block, rolled back when it raises.

        On SQLite the transaction holds the write lock from its start, so what it reads stays true. On PostgreSQL each
        statement sees what was committed before it: what must stay true is locked or asked for in the statement.
        """
        with (
            self._clear_errors(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def upgrade(self) -> None:
        """Bring the schema to SCHEMA_REVISION; processes that do so at once wait for each other.

        Raises SchemaTooNewError for a revision this nst does not know, DatabaseError for tables of another
        program.
        """
        with self._clear_errors():
            with self.engine.connect() as connection:
                if _schema_revision(connection) == SCHEMA_REVISION:
                    return
            with self._writer.connect() as connection:
                if connection.dialect.name == "sqlite":
                    # Replacing a table drops the old one, which would delete the rows that refer to it. The
                    # pragma does nothing inside a transaction; detached, the connection is not used again.
                    connection.detach()
                    connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
                with connection.begin():
                    self._upgrade_locked(connection)

    def integrity(self) -> list[str]:
        """Check the whole file; returns one sentence for each problem, none for a sound database."""
        if self.engine.dialect.name != "sqlite":
            return []
        try:
            with self.session() as session:
                damage = list(session.scalars(sa.text("PRAGMA quick_check")))
                orphans = session.execute(sa.text("PRAGMA foreign_key_check")).all()
        except DatabaseError as error:
            return [str(error)]
        problems = [f"The database {self._place} is damaged: {line}." for line in damage_lines(damage)]
        problems += [
            f"Row {row.rowid} of table {row.table} in {self._place} belongs to no row of table {row.parent}."
            for row in orphans
        ]
        return problems

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare_sqlite(self, connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
        # sqlite3 would begin transactions late and commit before DDL; _begin_sqlite begins them instead.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={round(self._patience * 1000)}")
        _use_wal(connection)
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")

    def _prepare_postgresql(
        self, _dialect: Dialect, _record: ConnectionPoolEntry, _arguments: object, options: dict[str, Any]
    ) -> None:
        options.setdefault("connect_timeout", math.ceil(self._patience))
        given = f"{options['options']} " if "options" in options else ""
        options["options"] = f"{given}-c lock_timeout={round(self._patience * 1000)}"

    def _upgrade_locked(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        revision = _schema_revision(connection)
        if revision == SCHEMA_REVISION:
            return
        if revision is None and sa.inspect(connection).get_table_names():
            raise DatabaseError(
                f"The database {self._place} holds tables that are not nst's; name an empty or a new one."
            )
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", "storage:migrations")
        config.attributes["connection"] = connection
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if revision is not None and revision not in known:
            raise SchemaTooNewError(
                f"The database {self._place} has the schema {revision!r}, made by a newer nst (or by another "
                "program); update nst or name another database."
            )
        if revision is not None and connection.dialect.name == "sqlite":
            self._keep_copy(revision)
        command.upgrade(config, "head")

    def _keep_copy(self, revision: str) -> None:
        """Copy the database as it is before an upgrade; one more try on the same day replaces the copy."""
        database = Path(str(self._place))
        file = backup_file(database, datetime.now().astimezone().date(), schema=revision)
        try:
            file.parent.mkdir(exist_ok=True)
            copy_whole(database, file, replace=True)
        except (OSError, StorageError) as error:
            raise DatabaseError(
                f"The database {database} was not upgraded: it cannot be copied before. {error}"
            ) from error

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except exc.DatabaseError as error:
            # Subclasses other than these are mistakes in a statement, not troubles of the database.
            if type(error) not in (exc.DatabaseError, exc.OperationalError):
                raise
            reason = _in_a_line(str(error.orig))
            advice = next((advice for sign, advice in _ADVICE.items() if sign in reason), "does not work: {reason}")
            if "readonly" in reason:
                # A connection made while the file could not be written to never will; later ones may.
                self.engine.dispose()
            what = advice.format(patience=self._patience, reason=reason)
            raise DatabaseError(f"The database {self._place} {what}.") from error


def open_database(where: str | Path, *, patience_seconds: float = PATIENCE_SECONDS) -> Database:
    """Open the database at a path or URL (sqlite or postgresql), making and upgrading it where needed.

    Raises DatabaseError when it cannot be opened and SchemaTooNewError when a newer nst made it.
    """
    url = _url_of(where)
    if url.get_backend_name() == "sqlite":
        _prepare_place(Path(url.database or ""))
    database = Database(url, patience_seconds=patience_seconds)
    try:
        database.upgrade()
    except BaseException:
        database.close()
        raise
    return database


def _in_a_line(reason: str) -> str:
    """The words of a driver, which may write several lines with a full stop, for use within a sentence."""
    return "; ".join(line.strip() for line in reason.splitlines() if line.strip()).rstrip(".?")


def _url_of(where: str | Path) -> URL:
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(Path(where).absolute()))
    try:
        url = make_url(where)
        backend = url.get_backend_name()
    except exc.ArgumentError as error:
        raise DatabaseError(
            "The database URL cannot be understood; write sqlite:////path/nst.db or postgresql://user@host/name."
        ) from error
    if backend == "postgresql":
        # SQLAlchemy's own choice is an older driver.
        return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url
    if backend != "sqlite":
        raise DatabaseError(f"nst keeps no database in {backend}; give a path, an sqlite or a postgresql URL.")
    if url.database in (None, "", ":memory:"):
        raise DatabaseError("A database in memory is lost at the end of each command; name a file.")
    return url.set(database=str(Path(url.database or "").absolute()))


def _prepare_place(path: Path) -> None:
    if path.is_dir():
        raise DatabaseError(f"The database {path} is a folder; name a file in it.")
    if is_cut_off(path):
        # SQLite would remove the log and begin an empty database.
        raise DatabaseError(
            f"The database {path} is damaged: it is empty and {path.name}-wal beside it is not; start nst with "
            "`nst up`, which says how to restore a backup."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(
            f"The folder {path.parent} of the database cannot be made ({error.strerror}); name another place."
        ) from error


def is_cut_off(path: Path) -> bool:
    """Whether the file is away or empty, but not what SQLite had still to write into it, its -wal beside it."""
    log = path.with_name(f"{path.name}-wal")
    return log.is_file() and log.stat().st_size > 0 and not (path.is_file() and path.stat().st_size > 0)


def _schema_revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL, also while other processes do the same.

    Of two that switch at once SQLite refuses one immediately, whatever the busy timeout. An exclusive
    transaction does wait for the other; after it there is nothing left to switch.
    """
    for tries_left in reversed(range(_WAL_TRIES)):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if not tries_left or "locked" not in str(error):
                raise
        else:
            return
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
