"""The database on a PostgreSQL server: opening and upgrading it, what transactions see, and what it says when something
is wrong. What the stores do there is tested where it is for SQLite."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import URL

from storage.database import SCHEMA_REVISION, Database, open_database
from storage.errors import DatabaseError
from storage.models import Base, Job
from tests.postgresql_server import PostgresqlServer
from tests.test_database import TABLES, a_job, upgrade_to


@pytest.fixture
def url(postgresql: PostgresqlServer) -> URL:
    """Of an empty database without our tables."""
    return postgresql.new_database()


@pytest.fixture
def database(url: URL) -> Iterator[Database]:
    with open_database(str(url)) as database:
        yield database


def test_opening_makes_what_the_models_say(database: Database) -> None:
    inspector = sa.inspect(database.engine)
    assert set(inspector.get_table_names()) == TABLES
    with database.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == SCHEMA_REVISION
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    for table in Base.metadata.sorted_tables:
        assert {
            inspector.get_pk_constraint(table.name)["name"],
            *(key["name"] for key in inspector.get_foreign_keys(table.name)),
        } == {constraint.name for constraint in table.constraints}


def test_a_url_without_a_driver_is_ours(url: URL) -> None:
    with open_database(str(url.set(drivername="postgresql"))) as database:
        assert database.engine.dialect.driver == "psycopg"


def test_a_database_of_the_first_schema_keeps_its_rows(url: URL) -> None:
    upgrade_to(
        "0001",
        url,
        "INSERT INTO jobs (id, name, state, preset, config, created_at) VALUES "
        "('a', 'cat', 'running', 'fast', '{\"tv\": 0.5}', '2026-11-22 12:00:00+00')",
        "INSERT INTO attempts (job_id, number, started_at, host, pid) VALUES "
        "('a', 1, '2026-11-22 12:00:01+00', 'atelier', 7)",
        "INSERT INTO loss_points VALUES ('a', 3, 1, 10.0, 4.0, 5.0, 1.0, '{}', NULL, 1.5)",
        "INSERT INTO sources VALUES ('a', 'style', 1, '/home/ann/night.png', 'style2.png', 'abc', 5000000000, 20, 30)",
    )
    with open_database(str(url)) as database, database.session() as session:
        job = session.scalars(sa.select(Job)).one()
        assert (job.name, job.config, job.burst_size) == ("cat", {"tv": 0.5}, 1)
        assert job.created_at == datetime(2026, 11, 22, 12, tzinfo=UTC)
        assert [(source.role, source.bytes) for source in job.sources] == [("style", 5_000_000_000)]
        assert [attempt.host for attempt in job.attempts] == ["atelier"]
        assert session.execute(sa.text("SELECT iteration, scale FROM loss_points")).all() == [(3, 1)]


def test_those_who_open_a_fresh_database_at_once_wait_for_each_other(url: URL) -> None:
    start, problems = threading.Barrier(8), []

    def open_it() -> None:
        start.wait(30)
        try:
            open_database(str(url)).close()
        except DatabaseError as error:
            problems.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    with open_database(str(url)) as database, database.session() as session:
        assert session.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [SCHEMA_REVISION]


def test_a_reading_session_sees_one_state_of_the_database(database: Database) -> None:
    count = sa.select(sa.func.count()).select_from(Job)
    with database.session() as reading:
        assert reading.scalar(count) == 0
        with database.begin() as session:
            session.add(a_job())
        assert reading.scalar(count) == 0
    with database.session() as reading:
        assert reading.scalar(count) == 1


def test_a_lock_held_too_long_is_reported(database: Database, url: URL) -> None:
    with database.begin() as session:
        session.add(a_job())

    def rename(name: str) -> None:
        with open_database(str(url), patience_seconds=0.2) as other, other.begin() as session:
            session.execute(sa.update(Job).values(name=name))

    with database.begin() as holding:
        holding.execute(sa.update(Job).values(name="dog"))
        with pytest.raises(DatabaseError) as raised:
            rename("cow")
    assert str(raised.value) == (
        f"The database {url} stayed locked by another process for 0.2 s; end that process or try again later."
    )
    rename("hen")
    with database.session() as session:
        assert session.scalars(sa.select(Job.name)).all() == ["hen"]


def test_connections_that_the_server_has_ended_are_replaced(database: Database, url: URL) -> None:
    with database.begin() as session:
        session.add(a_job())
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(), autocommit=True) as other:
        ended = other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert ended
    with database.session() as session:
        assert session.scalars(sa.select(Job.name)).all() == ["cat"]


def test_a_server_that_does_not_answer_is_named_without_the_password() -> None:
    with pytest.raises(DatabaseError) as raised:
        open_database("postgresql://ann:secret@127.0.0.1:9/nst")
    sentence = str(raised.value)
    assert sentence.startswith("The database postgresql+psycopg://ann:***@127.0.0.1:9/nst cannot be reached (")
    assert sentence.endswith("; start its server, or correct the URL.")
    assert "secret" not in sentence
    assert "\n" not in sentence


def test_a_database_that_is_not_there_is_said_in_one_line(postgresql: PostgresqlServer, url: URL) -> None:
    with pytest.raises(DatabaseError, match=r'cannot be reached .*database "atlantis" does not exist') as raised:
        open_database(str(url.set(database="atlantis")))
    assert "\n" not in str(raised.value)


def test_tables_of_another_program_are_left_alone(url: URL) -> None:
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(), autocommit=True) as connection:
        connection.execute("CREATE TABLE cats (name text)")
    with pytest.raises(DatabaseError, match="holds tables that are not nst's; name an empty or a new one"):
        open_database(str(url))
