"""Copies every row of one database into another that has none, as from SQLite to a server that several machines use."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from storage.database import Database
from storage.errors import DatabaseError
from storage.models import Base

_BATCH: Final = 2000


def copy_rows(source: Database, target: Database) -> dict[str, int]:
    """Copy all rows in one transaction; returns their number by table.

    Raises DatabaseError where the target has rows of its own, or where it does not take one; it is as it was then.
    """
    with source.session() as reading, target.begin() as writing:
        for table in Base.metadata.sorted_tables:
            if writing.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None:
                raise DatabaseError(f"The database {target.place} has {table.name} already; name a new one.")
        copied = {table.name: _copy_table(reading, writing, table) for table in Base.metadata.sorted_tables}
        for table in Base.metadata.sorted_tables:
            arrived = writing.scalar(sa.select(sa.func.count()).select_from(table))
            if arrived != copied[table.name]:
                raise DatabaseError(
                    f"The database {target.place} has {arrived} of {copied[table.name]} {table.name}; nothing was "
                    "copied: end what else writes to it and try again."
                )
    return copied


def _copy_table(reading: Session, writing: Session, table: sa.Table) -> int:
    copied = 0
    # A year of loss points does not fit into memory.
    rows = reading.execute(sa.select(table).execution_options(yield_per=_BATCH))
    for batch in rows.mappings().partitions():
        try:
            writing.execute(sa.insert(table), [dict(row) for row in batch])
        except sa.exc.DataError as error:
            raise DatabaseError(f"A row of {table.name} cannot be copied ({error.orig}); nothing was.") from error
        copied += len(batch)
    return copied
