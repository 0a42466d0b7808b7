"""The command `nst copy-database`: a home that has outgrown its own file goes on with a PostgreSQL server."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flows.options import Home, settings_of


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(copy_database)


def copy_database(
    source: Annotated[Path, typer.Argument(metavar="SQLITE", help="The file to copy, such as nst.db of a home.")],
    target: Annotated[
        str | None,
        typer.Argument(metavar="POSTGRESQL", help="The URL of a new database; the setting database_url if not given."),
    ] = None,
    home: Home = None,
) -> None:
    """Copy all jobs, losses and nights of a database file to a PostgreSQL server; the file stays as it is."""
    from flows.errors import SettingsError
    from flows.locks import only_one
    from flows.service import SENSOR_LOCK, SERVICE_LOCK
    from storage.copy_rows import copy_rows
    from storage.database import open_database
    from storage.errors import DatabaseError
    from storage.workspace import Workspace

    settings = settings_of(home)
    if target is None and settings.database_url is None:
        raise SettingsError("There is nowhere to copy to; give the URL of a PostgreSQL database, or set database_url.")
    if not source.is_file():
        raise DatabaseError(f"There is no database {source}; name the file of a home's database.")
    with ExitStack() as stack:
        if source.absolute() == Workspace(settings.home).database_path:
            # What a service writes after the copy would be missing from it.
            stack.enter_context(only_one(settings.home / SERVICE_LOCK, what="nst up"))
            stack.enter_context(only_one(settings.home / SENSOR_LOCK, what="A sensor"))
        old = stack.enter_context(open_database(source))
        new = stack.enter_context(open_database(target or settings.database))
        copied = copy_rows(old, new)
    rows = ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in copied.items())
    sys.stdout.write(
        f"{new.place} has all of {source}: {rows}. Set database_url to it and start the service; {source.name} stays.\n"
    )
