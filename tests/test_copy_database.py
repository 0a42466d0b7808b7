"""`nst copy-database`: everything that a home has remembered, in a PostgreSQL database; or nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from flows.cli import app
from flows.errors import FlowError
from flows.locks import only_one
from flows.service import SERVICE_LOCK
from storage.copy_rows import copy_rows
from storage.database import Database, open_database
from storage.errors import DatabaseError, StorageError
from storage.jobs import JobStore
from storage.models import Base, Job, JobState, NightState
from tests.gallery_home import GalleryHome
from tests.postgresql_server import PostgresqlServer

TABLES = Base.metadata.sorted_tables


@pytest.fixture
def url(postgresql: PostgresqlServer) -> URL:
    return postgresql.new_database()


@pytest.fixture
def grown(tmp_path: Path) -> GalleryHome:
    """A home with jobs in every state, a long curve, nights, and a file name that is no UTF-8."""
    home = GalleryHome(tmp_path / "home")
    for number in range(30):
        home.done(f"lake {number}", collection="harbour")
    home.failed("boat")
    home.make("waits")
    home.make("caf\udce9")
    home.start("curve", iteration=5000)
    home.night("harbour", pairs=30)
    home.night("harbour", NightState.FAILED, pairs=31)
    return home


def rows(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """Everything in it, by table, in the order of the primary keys."""
    with database.session() as session:
        return {
            table.name: [tuple(row) for row in session.execute(sa.select(table).order_by(*table.primary_key))]
            for table in TABLES
        }


def test_every_row_arrives_and_the_service_goes_on_with_them(grown: GalleryHome, url: URL) -> None:
    file = grown.workspace.database_path
    before = rows(grown.database)
    done = CliRunner().invoke(app, ["copy-database", str(file), str(url), "--home", str(grown.workspace.home)])
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        f"{url} has all of {file}: 34 jobs, 2 nights, {len(before['attempts'])} attempts, "
        f"{len(before['loss_points']):,} loss points, 68 sources. Set database_url to it and start the service; nst.db "
        "stays.\n"
    )
    assert len(before["loss_points"]) > 5000
    assert rows(grown.database) == before
    with open_database(str(url)) as copied:
        assert rows(copied) == before
        store = JobStore(copied)
        job = store.find("waits")
        store.cancel(job.id, attempt=None)
        assert store.get(job.id).state is JobState.CANCELLED


def test_a_database_with_rows_is_left_as_it_is(grown: GalleryHome, url: URL) -> None:
    with open_database(str(url)) as target:
        copy_rows(grown.database, target)
        before = rows(target)
        with pytest.raises(DatabaseError) as raised:
            copy_rows(grown.database, target)
        assert str(raised.value) == f"The database {url} has jobs already; name a new one."
        assert rows(target) == before


def test_what_is_cut_off_in_the_middle_leaves_nothing(grown: GalleryHome, url: URL) -> None:
    with open_database(str(url)) as target:
        left = 4

        def die(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            nonlocal left
            left -= statement.startswith("INSERT")
            if not left:
                raise ConnectionError("cut off")

        sa.event.listen(target.engine, "before_cursor_execute", die)
        with pytest.raises(ConnectionError):
            copy_rows(grown.database, target)
        sa.event.remove(target.engine, "before_cursor_execute", die)
        assert not any(rows(target).values())
        assert copy_rows(grown.database, target)["jobs"] == 34
        assert rows(target) == rows(grown.database)


def test_the_target_may_be_that_of_the_settings(grown: GalleryHome, url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_DATABASE_URL", str(url))
    command = ["copy-database", str(grown.workspace.database_path), "--home", str(grown.workspace.home)]
    assert CliRunner().invoke(app, command).exit_code == 0
    with open_database(str(url)) as copied, copied.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Job)) == 34


def test_what_cannot_be_copied_is_said(grown: GalleryHome, url: URL, tmp_path: Path) -> None:
    file, home = str(grown.workspace.database_path), grown.workspace.home

    def refusal(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["copy-database", *arguments, "--home", str(home)])
        assert isinstance(done.exception, FlowError | StorageError)
        return str(done.exception)

    assert refusal(file) == "There is nowhere to copy to; give the URL of a PostgreSQL database, or set database_url."
    assert refusal(str(tmp_path / "gone.db"), str(url)) == (
        f"There is no database {tmp_path / 'gone.db'}; name the file of a home's database."
    )
    with only_one(home / SERVICE_LOCK, what="nst up"):
        assert refusal(file, str(url)).startswith(f"nst up already runs for {home}")
