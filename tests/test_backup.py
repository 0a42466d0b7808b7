"""The backup: whole while others write, refused where it would replace something, never half there."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from storage.backup import back_up
from storage.database import Database, open_database
from storage.errors import DatabaseError, WorkspaceError
from storage.jobs import JobStore, NewJob, utc_now

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0
WRITER = """
import sys
from pathlib import Path
from storage.database import open_database
from storage.jobs import JobStore, NewLossPoint

with open_database(Path(sys.argv[1])) as database:
    store, iteration = JobStore(database), 0
    while True:
        points = [
            NewLossPoint(iteration=i, total=1, content=1, style=0, tv=0, layers={}, learning_rate=None, seconds=i)
            for i in range(iteration, iteration + 5)
        ]
        store.add_loss_points(sys.argv[2], attempt=1, points=points)
        iteration += 5
        print(iteration, flush=True)
"""
BACK_UP = """
import sys
from pathlib import Path
from storage.backup import back_up
from storage.database import open_database

with open_database(Path(sys.argv[1])) as database:
    print("begins", flush=True)
    back_up(database, Path(sys.argv[2]))
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path / "home" / "nst.db") as database:
        yield database


def running_job(database: Database) -> str:
    store = JobStore(database)
    job = store.create(NewJob(name="cat", preset="fast", config={}, sources=[]))
    store.make_pending(job.id)
    store.start_attempt(job.id, host="here", pid=1, lease_until=utc_now() + timedelta(hours=1))
    return job.id


def fill(database: Database, job_id: str, count: int) -> None:
    with database.begin() as session:
        session.execute(
            sa.text(
                "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count) "
                "INSERT INTO loss_points (job_id, iteration, attempt, total, content, style, tv, layers, seconds) "
                "SELECT :job, i, 1, 1, 1, 0, 0, json_object('layer', hex(randomblob(60))), i FROM n"
            ),
            {"job": job_id, "count": count},
        )


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def iterations(path: Path, job_id: str) -> list[int]:
    with open_database(path) as copy:
        assert copy.integrity() == []
        return [point.iteration for point in JobStore(copy).losses(job_id)]


def test_a_copy_while_another_process_writes_is_what_there_was_at_one_moment(
    database: Database, tmp_path: Path
) -> None:
    job_id = running_job(database)
    # Enough for several steps of the copy.
    filler = running_job(database)
    fill(database, filler, 30_000)
    writer = start(WRITER, tmp_path / "home" / "nst.db", job_id)
    assert writer.stdout is not None
    sizes = []
    try:
        for number in range(3):
            before = int(writer.stdout.readline())
            file = tmp_path / f"copy-{number}.db"
            size = back_up(database, file)
            assert size == file.stat().st_size
            with closing(sqlite3.connect(tmp_path / "home" / "nst.db")) as now:
                after = now.execute("SELECT count(*) FROM loss_points WHERE job_id = ?", [job_id]).fetchone()[0]
            found = iterations(file, job_id)
            assert found == list(range(len(found)))
            assert before <= len(found) <= after
            # Each write is one transaction.
            assert len(found) % 5 == 0
            with closing(sqlite3.connect(file)) as copy:
                assert copy.execute("SELECT count(*) FROM loss_points WHERE job_id = ?", [filler]).fetchone() == (
                    30_000,
                )
            sizes.append(len(found))
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert sizes == sorted(set(sizes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy-0.db", "copy-1.db", "copy-2.db", "home"]


def test_the_copy_is_one_file_that_a_reader_without_rights_can_open(database: Database, tmp_path: Path) -> None:
    job_id = running_job(database)
    file = tmp_path / "copy.db"
    back_up(database, file)
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as copy:
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert copy.execute("SELECT id, state FROM jobs").fetchall() == [(job_id, "running")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "home"]


def test_a_backup_that_is_killed_leaves_no_file_and_the_next_one_works(database: Database, tmp_path: Path) -> None:
    job_id = running_job(database)
    fill(database, job_id, 200_000)
    file, part = tmp_path / "copies" / "copy.db", tmp_path / "copies" / ".copy.db.nst.part"
    file.parent.mkdir()
    process = start(BACK_UP, tmp_path / "home" / "nst.db", file)
    deadline = time.monotonic() + PATIENCE
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert part.exists()
    assert not file.exists()
    back_up(database, file)
    with closing(sqlite3.connect(file)) as copy:
        assert copy.execute("SELECT count(*), max(iteration) FROM loss_points").fetchall() == [(200_000, 199_999)]
    assert [path.name for path in file.parent.iterdir()] == ["copy.db"]


def test_what_is_there_is_not_replaced(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("dear all")
    with pytest.raises(WorkspaceError) as raised:
        back_up(database, file)
    assert str(raised.value) == f"{file} is already there; name a new file for the backup."
    assert file.read_text() == "dear all"


def test_a_folder_that_is_not_there(database: Database, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError) as raised:
        back_up(database, tmp_path / "away" / "copy.db")
    assert str(raised.value) == (
        f"There is no folder {tmp_path / 'away'}; make it or name another file for the backup."
    )
    assert not (tmp_path / "away").exists()


def test_a_damaged_database_is_not_taken_for_a_backup(database: Database, tmp_path: Path) -> None:
    job_id = running_job(database)
    fill(database, job_id, 2_000)
    database.close()
    path = tmp_path / "home" / "nst.db"
    with path.open("r+b") as file:
        # Whole pages in the middle; the schema is at the beginning.
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(b"\x55" * 16_384)
    with pytest.raises(DatabaseError, match=f"^The database {path} is damaged "):
        back_up(database, tmp_path / "copy.db")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_server_is_backed_up_by_its_own_means(tmp_path: Path) -> None:
    # Nobody answers there, and nobody is asked; asyncpg is Prefect's.
    database = Database(make_url("postgresql+asyncpg://ann:secret@127.0.0.1:9/nst"))
    with pytest.raises(DatabaseError) as raised:
        back_up(database, tmp_path / "copy.db")
    assert str(raised.value) == (
        "The database postgresql+asyncpg://ann:***@127.0.0.1:9/nst is a server's; back it up with pg_dump."
    )
    assert list(tmp_path.iterdir()) == []


def nst(home: Path, *arguments: str) -> tuple[int, str, str]:
    command = [str(Path(sys.executable).parent / "nst"), *arguments, "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command_says_how_to_restore(database: Database, tmp_path: Path) -> None:
    job_id = running_job(database)
    home, file = tmp_path / "home", tmp_path / "copy.db"
    code, said, complaint = nst(home, "backup", str(file))
    assert (code, complaint) == (0, "")
    assert said == (
        f"{file} has {file.stat().st_size / 1e6:.1f} MB. To restore it, stop the service and run "
        f"`nst backup --restore {file} --home {home}`.\n"
    )
    # As it says.
    database.close()
    for path in home.glob("nst.db*"):
        path.unlink()
    code, said, complaint = nst(home, "backup", "--restore", str(file))
    assert (code, complaint) == (0, "")
    assert said.startswith(f"{home / 'nst.db'} is now as {file} was. Jobs made since are unknown to it: ")
    with open_database(home / "nst.db") as restored:
        assert JobStore(restored).get(job_id).name == "cat"


def test_the_command_has_nothing_to_copy(tmp_path: Path) -> None:
    code, said, complaint = nst(tmp_path, "backup", str(tmp_path / "copy.db"))
    assert code not in (0, 1)
    assert said == ""
    assert complaint == f"nst: There is no database {tmp_path / 'nst.db'} to back up; name another home with --home.\n"
    assert list(tmp_path.iterdir()) == []
