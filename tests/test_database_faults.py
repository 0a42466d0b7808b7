"""What can happen to the database: locked by another process for long, read-only, damaged in every way, set back to
yesterday's backup. No picture is lost, no job is done twice, and the user is told the one thing to do."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from flows.checked_picture import CheckedPicture
from flows.daily_backup import DailyBackup
from flows.exits import WRONG_MACHINE
from flows.intake import Intake
from flows.settings import Settings
from flows.strays import take_back_strays
from nst_engine.config import TransferConfig
from nst_engine.images import encode_png
from storage.backup import back_up_daily, restore
from storage.damage import require_sound
from storage.database import Database, open_database
from storage.database_copy import newest_backup
from storage.errors import DatabaseError, WorkspaceError
from storage.jobs import JobStore, NewJob, NewLossPoint, utc_now
from storage.models import Job, JobState
from storage.retention import RetentionStore
from storage.workspace import Workspace
from tests.service_process import CONTENT, SMALL, STYLE, Service
from tests.test_database import make_database

ROOT = Path(__file__).parents[1]
PAGE = 4096
LOCKED_SECONDS = 33.0
"""Longer than anybody but a flow waits for the database."""
LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""
WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from storage.database import open_database
from storage.jobs import JobStore, NewJob

with open_database(Path(sys.argv[1])) as database:
    for number in range(int(sys.argv[2])):
        JobStore(database).create(NewJob(name=f"late {number}", preset="fast", config={"x": "y" * 500}, sources=[]))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def database(workspace: Workspace) -> Iterator[Database]:
    with open_database(workspace.database_path) as database:
        yield database


def make_jobs(database: Database, count: int, *, name: str = "early") -> list[str]:
    """Jobs that take a page or more together; returns their ids."""
    store = JobStore(database)
    new = [
        NewJob(name=f"{name} {number}", preset="fast", config={"x": "y" * 500}, sources=[]) for number in range(count)
    ]
    return [store.create(each).id for each in new]


def die_with_a_log(path: Path, count: int) -> bytes:
    """Let a process write jobs and be killed, so that they are in the -wal only; returns that."""
    done = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(path), str(count)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    log = path.with_name(f"{path.name}-wal").read_bytes()
    assert log
    return log


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def spoil_the_header(path: Path) -> None:
    overwrite(path, 0, b"\x55" * 100)


def spoil_a_page_of_jobs(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
    overwrite(path, (root - 1) * PAGE, b"\x55" * PAGE)


def spoil_the_schema(path: Path) -> None:
    overwrite(path, 100, b"\x55" * (PAGE - 100))


def cut_in_the_middle(path: Path) -> None:
    os.truncate(path, path.stat().st_size // PAGE // 2 * PAGE)


def cut_the_last_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - PAGE)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def empty_beside_its_log(path: Path) -> None:
    die_with_a_log(path, 3)
    os.truncate(path, 0)


def take_away(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "sign"),
    [
        pytest.param(spoil_the_header, "is damaged (file is not a database)", id="header"),
        pytest.param(spoil_the_schema, "is damaged (", id="first page"),
        pytest.param(spoil_a_page_of_jobs, "is damaged (", id="a page in the middle"),
        pytest.param(cut_in_the_middle, "is damaged (", id="cut in the middle"),
        pytest.param(cut_the_last_page, "is damaged (", id="last page cut off"),
        pytest.param(empty, "is gone", id="empty"),
        pytest.param(
            empty_beside_its_log, "is damaged (it is empty, and what was to be written", id="empty beside its log"
        ),
        pytest.param(take_away, "is gone", id="deleted"),
    ],
)
def test_a_damaged_database_is_refused_with_the_command_that_restores_it(
    workspace: Workspace, spoil: Callable[[Path], None], sign: str
) -> None:
    path = workspace.database_path
    with open_database(path) as database:
        early = make_jobs(database, 30)
    for day in (20, 22, 21):
        back_up_daily(path, day=date(2026, 11, day), keep=7)
    with open_database(path) as database:
        make_jobs(database, 30, name="late")
    require_sound(path)
    spoil(path)
    spoiled = path.read_bytes() if path.exists() else None
    with pytest.raises(DatabaseError) as raised:
        require_sound(path)
    backup = workspace.home / "backups" / "nst-2026-11-22.db"
    command = f"nst backup --restore {backup} --home {workspace.home}"
    assert str(raised.value).startswith(f"The database {path} {sign}")
    assert str(raised.value).endswith(
        f"; its newest backup is {backup}: restore that with `{command}`, which keeps the old file beside it."
    )
    assert (path.read_bytes() if path.exists() else None) == spoiled
    aside = restore(path, backup)
    require_sound(path)
    with open_database(path) as database:
        assert database.integrity() == []
        assert {job.id for job in JobStore(database).recent(limit=100)} == set(early)
    assert (aside.read_bytes() if aside else None) == spoiled
    assert backup.is_file()


def test_a_damaged_database_without_a_backup_is_refused(workspace: Workspace) -> None:
    path = workspace.database_path
    with open_database(path) as database:
        make_jobs(database, 30)
    spoil_the_header(path)
    with pytest.raises(DatabaseError) as raised:
        require_sound(path)
    assert str(raised.value) == (
        f"The database {path} is damaged (file is not a database), and there is no backup of it in "
        f"{workspace.home / 'backups'}: move it and its -wal and -shm to another folder to begin a new one, which "
        "takes up again what lies in work/."
    )


def test_a_home_without_a_database_and_one_whose_first_start_was_killed_are_sound(workspace: Workspace) -> None:
    require_sound(workspace.database_path)
    assert not workspace.database_path.exists()
    workspace.database_path.touch()
    require_sound(workspace.database_path)
    with open_database(workspace.database_path) as database:
        assert make_jobs(database, 1)


def test_no_command_makes_an_empty_database_beside_the_log_of_another(workspace: Workspace) -> None:
    """SQLite itself would delete the log, and with it all that is left."""
    path = workspace.database_path
    log = die_with_a_log(path, 3)
    os.truncate(path, 0)
    with pytest.raises(DatabaseError, match=r"is damaged: it is empty and nst\.db-wal beside it is not"):
        open_database(path)
    assert path.with_name("nst.db-wal").read_bytes() == log


def test_the_loss_points_are_left_to_the_daily_backup(workspace: Workspace) -> None:
    """The check at the start has to be quick; it leaves out the table that is most of a database."""
    path = workspace.database_path
    with open_database(path) as database:
        store = JobStore(database)
        (job_id,) = make_jobs(database, 1)
        store.make_pending(job_id)
        store.start_attempt(job_id, host="here", pid=1, lease_until=utc_now())
        points = [
            NewLossPoint(iteration=i, total=1, content=1, style=0, tv=0, layers={}, learning_rate=None, seconds=i)
            for i in range(2000)
        ]
        store.add_loss_points(job_id, attempt=1, points=points)
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'loss_points'").fetchone()
    back_up_daily(path, day=date(2026, 11, 20), keep=1)
    overwrite(path, (root - 1) * PAGE, b"\x55" * PAGE)
    require_sound(path)
    with pytest.raises(DatabaseError, match=r"is damaged .*, so no backup was made"):
        back_up_daily(path, day=date(2026, 11, 21), keep=1)
    # The last whole one is not removed for one that failed.
    assert [file.name for file in (workspace.home / "backups").iterdir()] == ["nst-2026-11-20.db"]


def nst(*arguments: str, home: Path | None = None) -> tuple[int, str]:
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows.cli", *arguments, *(["--home", str(home)] if home else [])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, f"{done.stdout}{done.stderr}"


def test_the_service_refuses_to_start_and_the_command_that_it_names_mends_it(workspace: Workspace) -> None:
    path = workspace.database_path
    with open_database(path) as database:
        early = make_jobs(database, 3)
    back_up_daily(path, day=date(2026, 11, 20), keep=7)
    spoil_the_header(path)
    with pytest.raises(DatabaseError) as raised:
        require_sound(path)
    for command in ("up", "sensor"):
        code, said = nst(command, home=workspace.home)
        assert (code, said.splitlines()[-1]) == (WRONG_MACHINE, f"nst: {raised.value}")
    _, command, _ = str(raised.value).split("`")
    (name, *arguments) = shlex.split(command)
    code, said = nst(*arguments)
    assert (name, code) == ("nst", 0)
    assert said.startswith(f"{path} is now as {newest_backup(path)} was. The old one is {path}.replaced. ")
    require_sound(path)
    with open_database(path) as database:
        assert {job.id for job in JobStore(database).recent(limit=9)} == set(early)


def test_nothing_is_restored_while_a_service_runs_or_from_what_is_no_backup(workspace: Workspace) -> None:
    path = workspace.database_path
    with open_database(path) as database:
        make_jobs(database, 30)
    before = path.read_bytes()
    for day in (20, 21):
        back_up_daily(path, day=date(2026, 11, day), keep=7)
    whole, bad = (workspace.home / "backups" / f"nst-2026-11-{day}.db" for day in (20, 21))
    spoil_a_page_of_jobs(bad)
    with pytest.raises(DatabaseError) as raised:
        restore(path, bad)
    assert str(raised.value).startswith(f"{bad} is damaged (")
    assert str(raised.value).endswith(f"), so nothing was restored; name another backup, such as {whole}.")
    foreign = workspace.home / "songs.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(DatabaseError, match=r"songs\.db is damaged \(it holds no jobs of nst's\)"):
        restore(path, foreign)
    for what in (path, workspace.home / "none.db"):
        with pytest.raises(WorkspaceError, match="is no backup to restore"):
            restore(path, what)
    from flows.locks import only_one
    from flows.service import SENSOR_LOCK, SERVICE_LOCK

    for lock, what in ((SERVICE_LOCK, "nst up"), (SENSOR_LOCK, "A sensor")):
        with only_one(workspace.home / lock, what="this test"):
            code, said = nst("backup", "--restore", str(whole), home=workspace.home)
        assert code == WRONG_MACHINE
        assert f"{what} already runs for {workspace.home} (process {os.getpid()}); stop it first" in said
    assert path.read_bytes() == before
    assert sorted(file.name for file in workspace.home.glob("*nst.db*")) == ["nst.db"]


def test_the_log_of_the_old_database_is_kept_and_not_applied_to_the_restored_one(workspace: Workspace) -> None:
    path = workspace.database_path
    with open_database(path) as database:
        early = make_jobs(database, 30)
    backup = back_up_daily(path, day=date(2026, 11, 20), keep=7)
    assert backup is not None
    log = die_with_a_log(path, 40)
    old = path.read_bytes()
    for number in ("", "-2"):
        aside = restore(path, backup)
        assert aside == path.with_name(f"nst.db{number}.replaced" if number == "" else "nst.db-2.replaced")
        with open_database(path) as database:
            assert {job.id for job in JobStore(database).recent(limit=100)} == set(early)
    kept = path.with_name("nst.db.replaced")
    assert (kept.read_bytes(), kept.with_name(f"{kept.name}-wal").read_bytes()) == (old, log)
    with open_database(kept) as database:
        assert len(JobStore(database).recent(limit=100)) == 70


def test_one_backup_a_day_and_the_last_ones_kept(workspace: Workspace, database: Database) -> None:
    path, folder = workspace.database_path, workspace.home / "backups"
    (job_id,) = make_jobs(database, 1)
    now = [datetime(2026, 11, 20, 12, tzinfo=UTC)]

    def look(keep: int) -> list[str]:
        daily = DailyBackup(path, keep=keep, clock=lambda: now[0])
        daily.look()
        if daily._thread is not None:
            daily._thread.join()
        return sorted(file.name for file in folder.iterdir()) if folder.exists() else []

    assert look(0) == []
    assert look(3) == ["nst-2026-11-20.db"]
    first = (folder / "nst-2026-11-20.db").stat()
    (folder / "notes.txt").write_text("mine")
    assert look(3) == ["notes.txt", "nst-2026-11-20.db"] or look(3) == ["nst-2026-11-20.db", "notes.txt"]
    assert (folder / "nst-2026-11-20.db").stat().st_mtime_ns == first.st_mtime_ns
    for _ in range(4):
        now[0] += timedelta(days=1)
        look(3)
    days = [f"nst-2026-11-{day}.db" for day in (22, 23, 24)]
    assert look(3) == sorted(["notes.txt", *days])
    assert newest_backup(workspace.database_path) == folder / days[-1]
    # A clock that was set back by days ends nothing.
    now[0] -= timedelta(days=30)
    look(3)
    assert newest_backup(workspace.database_path) == folder / days[-1]
    with open_database(folder / days[-1]) as copy:
        assert JobStore(copy).get(job_id).name == "early 0"


def test_a_backup_is_made_before_an_upgrade(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    path = workspace.database_path
    make_database(
        path,
        "0004",
        "INSERT INTO jobs (id, name, state, preset, config, created_at) "
        "VALUES ('0123456789', 'cat', 'pending', 'fast', '{}', '2026-11-20 12:00:00')",
    )
    open_database(path).close()
    today = datetime.now().astimezone().date()
    (copy,) = (workspace.home / "backups").iterdir()
    assert copy.name == f"nst-{today}-schema-0004.db"
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0004",)
        assert connection.execute("SELECT name FROM jobs").fetchone() == ("cat",)
    # It is one to restore, which is upgraded anew.
    spoil_the_header(path)
    restore(path, copy)
    with open_database(path) as database:
        assert JobStore(database).get("0123456789").name == "cat"
    assert [file.name for file in (workspace.home / "backups").iterdir()] == [copy.name]


class Home:
    """A home whose inbox is looked at in this process, by a clock that is set by hand."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.settings = Settings(home=workspace.home)
        self.seconds = 0.0

    def drop(self, name: str, *, shade: int) -> None:
        settings = 'preset = "default"\nrows = 33\npriority = 4\nweights = "random"\n'
        (self.workspace.inbox / f"{name}.toml").write_text(settings)
        encode_png(np.full((20, 20, 3), shade, np.uint8), self.workspace.inbox / f"{name}_content.png")
        encode_png(STYLE, self.workspace.inbox / f"{name}_style.png")

    def take(self, database: Database) -> list[Job]:
        """Look until what stands still is taken."""
        intake = Intake(
            JobStore(database),
            self.workspace,
            self.settings,
            check=lambda path: CheckedPicture.of(path, max_pixels=10**6),
            clock=lambda: self.seconds,
            on_job=lambda job: None,
        )
        intake.look()
        self.seconds += 3
        return list(intake.look().claimed)

    def files(self) -> dict[str, bytes]:
        """All files of the user's four folders."""
        folders = (self.workspace.inbox, self.workspace.work, self.workspace.outbox, self.workspace.rejected)
        return {
            str(path.relative_to(self.workspace.home)): path.read_bytes()
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file()
        }


def digest(job: Job) -> tuple[object, ...]:
    """What a job is, but for when and under which name it was made."""
    return job.fingerprint, job.priority, job.config, [(source.role, source.sha256) for source in job.sources]


def test_jobs_that_a_restored_database_does_not_know_come_back_with_their_settings(workspace: Workspace) -> None:
    home, path = Home(workspace), workspace.database_path
    with open_database(path) as database:
        home.drop("known", shade=10)
        (known,) = home.take(database)
    backup = back_up_daily(path, day=date(2026, 11, 20), keep=7)
    assert backup is not None
    with open_database(path) as database:
        home.drop("late", shade=20)
        home.drop("half done", shade=30)
        late = {digest(job) for job in []} | {str(digest(job)) for job in home.take(database)}
    for job_id in workspace.jobs_with_folders():
        (workspace.job_folder(job_id) / "checkpoint").write_bytes(b"c")
        (workspace.job_folder(job_id) / "preview.jpg").write_bytes(b"p")
    spoil_the_header(path)
    restore(path, backup)
    with open_database(path) as database:
        store = RetentionStore(database)
        folders = take_back_strays(store, workspace)
        assert len(folders) == 2
        assert {file.name for folder in folders for file in folder.iterdir()} == {
            "content.png",
            "style.png",
            "settings.toml",
        }
        assert take_back_strays(store, workspace) == []
        jobs = home.take(database)
        assert {str(digest(job)) for job in jobs} == late
        assert {job.name for job in jobs} == {folder.name for folder in folders}
        assert {job.state for job in JobStore(database).recent(limit=9)} == {JobState.PENDING}
        assert set(workspace.jobs_with_folders()) - {known.id} == {f".{f.name[10:]}.aside" for f in folders} | {
            job.id for job in jobs
        }
    assert sum(name.endswith("content.png") for name in home.files()) == 3
    # The known one has all it had.
    assert {file.name for file in workspace.job_folder(known.id).iterdir()} == {
        *("content.png", "style.png", "settings.toml", "checkpoint", "preview.jpg")
    }


def test_jobs_in_a_damaged_log_come_back(workspace: Workspace) -> None:
    """SQLite takes a log as far as it is whole: what comes after the damage has never been."""
    home, path = Home(workspace), workspace.database_path
    with open_database(path) as database:
        home.drop("known", shade=10)
        home.take(database)
    with closing(sqlite3.connect(path)) as reader, open_database(path) as database:
        # A reader keeps the log from being written into the file.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        home.drop("late", shade=20)
        (late,) = home.take(database)
        copies = {name: path.with_name(name).read_bytes() for name in ("nst.db", "nst.db-wal")}
    # What a power cut leaves, with the beginning of the log damaged.
    path.with_name("nst.db-wal").unlink(missing_ok=True)
    path.with_name("nst.db-shm").unlink(missing_ok=True)
    path.write_bytes(copies["nst.db"])
    path.with_name("nst.db-wal").write_bytes(b"\x55" * 64 + copies["nst.db-wal"][64:])
    require_sound(path)
    with open_database(path) as database:
        assert [job.name for job in JobStore(database).recent(limit=9)] == ["known"]
        assert take_back_strays(RetentionStore(database), workspace) == [workspace.inbox / f"recovered-{late.id}"]
        (again,) = home.take(database)
        assert str(digest(again)) == str(digest(late))


def test_copies_of_a_collection_are_left_to_the_next_night_and_what_is_no_jobs_alone(
    workspace: Workspace, database: Database
) -> None:
    lakes = workspace.collections / "lakes"
    for role, picture in (("contents", CONTENT), ("styles", STYLE)):
        (lakes / role).mkdir(parents=True)
        encode_png(picture, lakes / role / "a.png")
    copied, changed, foreign = (workspace.work / name for name in ("0123456789", "abcdefghjk", "holiday"))
    for folder in (copied, changed, foreign):
        folder.mkdir()
        shutil.copy(lakes / "styles" / "a.png", folder / "style.png")
        shutil.copy(lakes / "contents" / "a.png", folder / "content.png")
    encode_png(CONTENT // 2, changed / "content.png")
    (workspace.work / "zzzzzzzzzz").write_text("a file")
    assert take_back_strays(RetentionStore(database), workspace) == [workspace.inbox / "recovered-abcdefghjk"]
    assert {path.name for path in workspace.work.iterdir()} == {
        *(".0123456789.aside", ".abcdefghjk.aside", "holiday", "zzzzzzzzzz")
    }
    assert {path.name for path in (workspace.inbox / "recovered-abcdefghjk").iterdir()} == {"content.png", "style.png"}


def test_a_stray_moves_to_an_inbox_on_another_disk(workspace: Workspace, database: Database) -> None:
    other = Path("/dev/shm") / f"nst-inbox-{os.getpid()}"
    if not other.parent.is_dir() or other.parent.stat().st_dev == workspace.home.stat().st_dev:
        pytest.skip("there is no /dev/shm that is a disk of its own")
    other.mkdir()
    try:
        workspace.inbox.rmdir()
        workspace.inbox.symlink_to(other)
        folder = workspace.work / "0123456789"
        folder.mkdir()
        encode_png(CONTENT, folder / "content.png")
        picture = (folder / "content.png").read_bytes()
        assert take_back_strays(RetentionStore(database), workspace) == [workspace.inbox / "recovered-0123456789"]
        assert [path.name for path in other.iterdir()] == ["recovered-0123456789"]
        assert (other / "recovered-0123456789" / "content.png").read_bytes() == picture
        assert not folder.exists()
    finally:
        shutil.rmtree(other)


def test_a_result_that_a_restored_database_does_not_know_of_completes_its_job(
    workspace: Workspace, database: Database, prefect_api: None
) -> None:
    from flows.attempt import Attempt
    from flows.tasks import published_before

    store, config = JobStore(database), TransferConfig().model_dump()
    job = store.create(NewJob(name="lake", preset="default", config=config, sources=[]))
    store.make_pending(job.id)
    for folder, job_id in (("lake", "another"), ("lake-2", job.id)):
        (workspace.outbox / folder).mkdir()
        (workspace.outbox / folder / "job.json").write_text(json.dumps({"id": job_id}))
        encode_png(CONTENT, workspace.outbox / folder / "result.png")
    store.start_attempt(job.id, host="here", pid=os.getpid(), lease_until=utc_now())
    attempt = Attempt(store.get(job.id), 1, store, workspace, Settings(home=workspace.home))
    # One with its pictures is computed, whatever lies in the outbox.
    workspace.job_folder(job.id).mkdir()
    assert published_before(attempt) is None
    workspace.job_folder(job.id).rmdir()
    assert published_before(attempt) == workspace.outbox / "lake-2"
    done = store.get(job.id)
    assert (done.state, done.result_folder) == (JobState.COMPLETED, str(workspace.outbox / "lake-2"))
    assert (done.result_rows, done.result_columns) == CONTENT.shape[:2]


READ_ONLY = """
import sys
from pathlib import Path
from storage.damage import require_sound
from storage.database import open_database
from storage.errors import DatabaseError
from storage.jobs import JobStore, NewJob

path = Path(sys.argv[1])

def write(database):
    try:
        JobStore(database).create(NewJob(name="cat", preset="fast", config={}, sources=[]))
    except DatabaseError as error:
        return str(error)
    return "written"

path.chmod(0o444)
with open_database(path) as database:
    print(write(database))
    try:
        require_sound(path)
    except DatabaseError as error:
        print(error)
    # SQLite makes the files beside it with the rights of the database.
    for file in path.parent.glob("nst.db*"):
        file.chmod(0o644)
    print(write(database))
    print(len(JobStore(database).recent(limit=9)))
"""


def test_a_read_only_database_is_named_and_works_on_once_it_is_not(workspace: Workspace) -> None:
    path = workspace.database_path
    with open_database(path) as database:
        make_jobs(database, 1)
    # Root may write whatever a file's mode says.
    bound = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    if bound and shutil.which("setpriv") is None:
        pytest.skip("root writes to any file, and there is no setpriv to take that right away")
    done = subprocess.run(
        [*bound, sys.executable, "-c", READ_ONLY, path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"The database {path} is read-only; make the file and its folder writable or name another file.",
        f"The database {path} is read-only; make the file and its disk readable and writable.",
        "written",
        "2",
    ]


@contextmanager
def locked(path: Path, *, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the database's write lock, at the longest for so long."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_service_whose_database_is_locked_for_long_goes_on_where_it_was(tmp_path: Path) -> None:
    long = SMALL.replace("iterations = 6", "iterations = 1500") + 'optimizer = "adam"\n'
    # The lease runs out while the lock is held.
    service = Service(tmp_path, chunk_seconds=0.3, checkpoint_seconds=2, lease_seconds=20, start_seconds=180)
    gallery = f"http://127.0.0.1:{service.gallery_port}/"
    try:
        service.start()
        service.drop_pair("long", settings=long)
        service.wait("it is being computed", lambda: is_at_work(service, "long"), seconds=300)
        with locked(service.workspace.database_path, seconds=LOCKED_SECONDS) as process:
            service.drop_pair("meanwhile", seed=1)
            began = time.monotonic()
            while process.poll() is None:
                answer = httpx.get(gallery, timeout=5)
                assert answer.status_code == 200
                assert "long" in answer.text
                assert time.monotonic() - began < LOCKED_SECONDS + 10
                time.sleep(1)
        jobs = service.wait_for_end("long", "meanwhile", seconds=300)
        assert [(job.state, job.error) for job in jobs] == [(JobState.COMPLETED, None)] * 2
        assert len(service.jobs()) == 2
        # No attempt was lost, no point is missing, nothing was taken twice.
        assert [len(job.attempts) for job in jobs] == [1, 1]
        assert [point.iteration for point in service.store.losses(jobs[0].id)] == list(range(1501))
        assert sorted(path.name for path in service.workspace.outbox.iterdir()) == ["long", "meanwhile"]
        assert list(service.workspace.inbox.iterdir()) == []
        (backup,) = (tmp_path / "backups").iterdir()
        assert backup.name == f"nst-{datetime.now().astimezone().date()}.db"
    finally:
        service.close()


def is_at_work(service: Service, name: str) -> bool:
    return any(
        job.name == name and job.state is JobState.RUNNING and job.attempts[-1].phase == "optimise"
        for job in service.jobs()
    )
