"""The database: opening, upgrading, pragmas, and what it says when something is wrong."""

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL

from storage.database import SCHEMA_REVISION, Database, open_database
from storage.errors import DatabaseError, SchemaTooNewError
from storage.models import Base, Job, JobState, LossPoint

TABLES = {"alembic_version", "attempts", "jobs", "loss_points", "nights", "sources"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "nst.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    with open_database(path) as database:
        yield database


def a_job(job_id: str = "0123456789", **fields: object) -> Job:
    values: dict[str, object] = {
        "id": job_id,
        "name": "cat",
        "state": JobState.CLAIMED,
        "preset": "fast",
        "config": {"content_layer": "block5_conv2"},
        "created_at": datetime(2026, 11, 22, tzinfo=UTC),
    }
    return Job(**values | fields)


def job_names(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    names = [name for (name,) in connection.execute("SELECT name FROM jobs ORDER BY id")]
    connection.close()
    return names


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    return config


def head_revision() -> str | None:
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def make_database(path: Path, revision: str, *statements: str) -> None:
    """A database as the nst of that revision left it, with these rows."""
    path.parent.mkdir()
    upgrade_to(revision, f"sqlite:///{path}", *statements)


def upgrade_to(revision: str, url: str | URL, *statements: str) -> None:
    """Bring an empty database to that revision, with these rows."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def rows(path: Path, query: str) -> list[dict[str, object]]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    found = [dict(row) for row in connection.execute(query)]
    connection.close()
    return found


def test_opening_makes_folder_schema_and_revision(path: Path) -> None:
    open_database(path).close()
    connection = sqlite3.connect(path)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    revision = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    connection.close()
    assert (tables, revision) == (TABLES, [(SCHEMA_REVISION,)])


def test_revision_constant_is_the_newest_migration() -> None:
    assert head_revision() == SCHEMA_REVISION


def test_migrations_make_what_the_models_say(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_name_constraints_as_the_models_do(database: Database) -> None:
    inspector = sa.inspect(database.engine)
    for table in Base.metadata.sorted_tables:
        named = {constraint.name for constraint in table.constraints}
        assert {
            inspector.get_pk_constraint(table.name)["name"],
            *(key["name"] for key in inspector.get_foreign_keys(table.name)),
        } == named


def test_a_database_of_the_first_schema_keeps_its_rows(path: Path) -> None:
    make_database(
        path,
        "0001",
        "INSERT INTO jobs (id, name, state, preset, config, created_at) VALUES "
        "('a', 'cat', 'running', 'fast', '{\"tv\": 0.5}', '2026-11-22 12:00:00.000000')",
        "INSERT INTO attempts (job_id, number, started_at, host, pid) VALUES "
        "('a', 1, '2026-11-22 12:00:01.000000', 'atelier', 7)",
        "INSERT INTO loss_points VALUES ('a', 3, 1, 10.0, 4.0, 5.0, 1.0, '{}', NULL, 1.5)",
        "INSERT INTO sources VALUES ('a', 'style', 1, '/home/ann/night.png', 'style2.png', 'abc', 5000000000, 20, 30)",
    )
    tables = ("jobs", "attempts", "loss_points", "sources")
    before = [rows(path, f"SELECT * FROM {table}") for table in tables]
    open_database(path).close()
    jobs, attempts, points, sources = (
        [before_row | new for before_row in found]
        for found, new in zip(
            before,
            (
                {
                    "fingerprint": None,
                    "priority": 0,
                    "manifest": None,
                    "lease_until": None,
                    "submission": 1,
                    "flow_run_id": None,
                    "reused_from": None,
                    "attempts_before_retry": 0,
                    "collection": None,
                    "night_id": None,
                    "snapshot_every": None,
                    "burst_size": 1,
                },
                {"phase": None, "first_iteration": None},
                {"scale": 1},
                {},
            ),
            strict=True,
        )
    )
    assert [rows(path, f"SELECT * FROM {table}") for table in tables] == [jobs, attempts, points, sources]
    assert [len(found) for found in before] == [1, 1, 1, 1]
    assert rows(path, "SELECT version_num FROM alembic_version") == [{"version_num": SCHEMA_REVISION}]


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("busy_timeout", 30_000), ("foreign_keys", 1), ("synchronous", 2)],
)
def test_every_connection_has_its_pragmas(database: Database, pragma: str, value: object) -> None:
    with database.session() as first, database.session() as second:
        assert [session.scalar(sa.text(f"PRAGMA {pragma}")) for session in (first, second)] == [value, value]


@pytest.mark.parametrize("form", ["path", "text", "url"])
def test_same_file_by_path_text_and_url(path: Path, form: str) -> None:
    where: str | Path = {"path": path, "text": str(path), "url": f"sqlite:///{path}"}[form]
    with open_database(where) as database, database.begin() as session:
        session.add(a_job())
    assert job_names(path) == ["cat"]


def test_opening_again_keeps_the_jobs(path: Path) -> None:
    for job_id in ("a", "b"):
        with open_database(path) as database, database.begin() as session:
            session.add(a_job(job_id, name=job_id))
    assert job_names(path) == ["a", "b"]


def test_opening_a_current_database_does_without_alembic(path: Path) -> None:
    open_database(path).close()
    script = (
        "import sys; from storage.database import open_database; "
        f"open_database({str(path)!r}).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def open_and_write(path: Path, number: int, start: threading.Barrier) -> None:
    start.wait(30)
    with open_database(path) as database, database.begin() as session:
        session.add(a_job(f"job{number}", name=str(number)))


def test_processes_open_one_fresh_database_at_once(path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(4)
    processes = [spawn.Process(target=open_and_write, args=(path, n, start)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert ([process.exitcode for process in processes], job_names(path)) == ([0] * 4, ["0", "1", "2", "3"])


def test_threads_open_fresh_databases_at_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(path: Path, start: threading.Barrier) -> None:
        start.wait(30)
        try:
            raw = Database(sa.engine.URL.create("sqlite", database=str(path)))
            with raw, raw.engine.connect():
                pass
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            errors.append(error)

    for round_number in range(10):
        start = threading.Barrier(8)
        path = tmp_path / f"{round_number}.db"
        threads = [threading.Thread(target=work, args=(path, start)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_upgrade_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_index", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_database(path)
    connection = sqlite3.connect(path)
    left = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    connection.close()
    open_database(path).close()
    assert left == []


def write_and_raise(database: Database) -> None:
    with database.begin() as session:
        session.add(a_job())
        session.flush()
        raise RuntimeError


def test_a_block_that_raises_writes_nothing(database: Database, path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_and_raise(database)
    assert job_names(path) == []


def test_a_reading_session_writes_nothing(database: Database, path: Path) -> None:
    with database.session() as session:
        session.add(a_job())
        session.flush()
    assert job_names(path) == []


def test_writers_wait_for_each_other(database: Database) -> None:
    with database.begin() as session:
        session.add(a_job(config={"count": 0}))

    def count_up() -> None:
        for _ in range(20):
            with database.begin() as session:
                job = session.get_one(Job, "0123456789")
                job.config = {"count": job.config["count"] + 1}

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.session() as session:
        assert session.get_one(Job, "0123456789").config == {"count": 80}


def test_deleting_a_job_deletes_its_rows(database: Database) -> None:
    with database.begin() as session:
        session.add(a_job())
        session.flush()
        session.add(
            LossPoint(
                job_id="0123456789", iteration=1, attempt=1, total=1, content=1, style=0, tv=0, layers={}, seconds=0
            )
        )
    with database.begin() as session:
        session.execute(sa.text("DELETE FROM jobs"))
    with database.session() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM loss_points")) == 0


def test_times_come_back_in_utc(database: Database) -> None:
    east = timezone(timedelta(hours=5))
    with database.begin() as session:
        session.add(a_job(created_at=datetime(2026, 11, 22, 3, tzinfo=east)))
    with database.session() as session:
        created = session.get_one(Job, "0123456789").created_at
    assert (created, created.tzinfo) == (datetime(2026, 11, 21, 22, tzinfo=UTC), UTC)


def test_times_without_a_zone_are_refused(database: Database) -> None:
    with pytest.raises(sa.exc.StatementError, match="has no zone"), database.begin() as session:
        session.add(a_job(created_at=datetime(2026, 11, 22)))


def test_a_file_name_that_is_no_utf8_is_kept_readable(database: Database, path: Path) -> None:
    with database.begin() as session:
        session.add(a_job(name="caf\udce9.png"))
    assert job_names(path) == ["caf?.png"]


def put_text(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("This is no database, whatever its name may say.\n" * 100)


def put_file_as_parent(path: Path) -> None:
    path.parent.write_text("in the way")


def put_folder(path: Path) -> None:
    path.mkdir(parents=True)


def put_foreign_tables(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("put", "message"),
    [
        pytest.param(put_text, "is not an SQLite database; move it away", id="text"),
        pytest.param(put_file_as_parent, "cannot be made .*; name another place", id="parent is a file"),
        pytest.param(put_folder, "is a folder; name a file in it", id="folder"),
        pytest.param(put_foreign_tables, "holds tables that are not nst's", id="foreign tables"),
    ],
)
def test_what_is_in_the_way_is_named(path: Path, put: Callable[[Path], None], message: str) -> None:
    put(path)
    with pytest.raises(DatabaseError, match=message) as caught:
        open_database(path)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("sqlite://", "in memory", id="memory"),
        pytest.param("sqlite:///:memory:", "in memory", id="named memory"),
        pytest.param("mysql://localhost/nst", "no database in mysql", id="mysql"),
        pytest.param("://nst.db", "cannot be understood", id="no scheme"),
    ],
)
def test_urls_that_cannot_work_are_refused(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message):
        open_database(url)


def test_a_missing_driver_is_named_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(DatabaseError, match="needs the Python package") as caught:
        open_database("postgresql://nst:secret@localhost/nst")
    assert "secret" not in str(caught.value)


def test_a_database_of_a_newer_nst_is_left_alone(path: Path) -> None:
    open_database(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaTooNewError, match="'9999', made by a newer nst"):
        open_database(path)
    assert path.read_bytes() == before


def test_a_lock_held_too_long_is_reported(database: Database, path: Path) -> None:
    with database.session() as session:
        session.execute(sa.text("PRAGMA busy_timeout=20"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="stayed locked by another process"), database.begin() as session:
        session.add(a_job())
    other.close()
    with database.begin() as session:
        session.add(a_job())
    assert job_names(path) == ["cat"]


def test_a_read_only_database_is_reported(database: Database) -> None:
    with database.session() as session:
        session.execute(sa.text("PRAGMA query_only=ON"))
    with pytest.raises(DatabaseError, match="is read-only"), database.begin() as session:
        session.add(a_job())


def test_other_troubles_are_reported_with_their_reason(database: Database) -> None:
    with pytest.raises(DatabaseError, match="does not work: no such table: songs"), database.session() as session:
        session.execute(sa.text("SELECT * FROM songs"))


def test_a_sound_database_has_no_problems(database: Database) -> None:
    assert database.integrity() == []


def test_damage_is_found(path: Path) -> None:
    with open_database(path) as database, database.begin() as session:
        session.add_all(a_job(f"{n:010}", config={"filler": "x" * 500}) for n in range(100))
    content = bytearray(path.read_bytes())
    content[-4096 * 3 :] = b"\xff" * (4096 * 3)
    path.write_bytes(content)
    with open_database(path) as database:
        problems = database.integrity()
    assert problems
    assert all(str(path) in problem and "damaged" in problem for problem in problems)


def test_rows_without_a_job_are_found(database: Database, path: Path) -> None:
    raw = sqlite3.connect(path)
    raw.execute("INSERT INTO attempts (job_id, number, started_at, host, pid) VALUES ('gone', 1, '', '', 1)")
    raw.commit()
    raw.close()
    assert database.integrity() == [f"Row 1 of table attempts in {path} belongs to no row of table jobs."]
