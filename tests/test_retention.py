"""What is kept how long, on real folders and a real database; nothing of the user's is lost whatever happens."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flows.retention import Retention
from flows.settings import Settings
from storage.database import Database, open_database
from storage.errors import JobStateError, WorkspaceError
from storage.jobs import JobStore, Manifest, NewJob, NewLossPoint, NewSource
from storage.leftovers import trim
from storage.models import Job, JobState, LossPoint
from storage.retention import RetentionStore, spread
from storage.workspace import Workspace

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
DROPPED = {"content.jpg": b"a lake", "style.png": b"a night", "settings.toml": b"rows = 64\n"}
MADE = {
    "checkpoint": b"c" * 1000,
    "best.png": b"b" * 100,
    "preview.jpg": b"p" * 100,
    "snapshots/000010.jpg": b"s" * 100,
    "result/result.png": b"r" * 100,
    ".checkpoint.nst.part": b"half",
}


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


class Scene:
    """A home with a database, and the retention of its service."""

    def __init__(self, database: Database, home: Path, **settings: Any) -> None:
        self.clock = Clock()
        self.workspace = Workspace(home)
        self.workspace.create()
        self.database = database
        self.store = JobStore(database, clock=self.clock)
        self.kept = RetentionStore(database, clock=self.clock)
        self.settings = Settings(home=home, **settings)

    def retention(self) -> Retention:
        return Retention(self.kept, self.workspace, self.settings, clock=self.clock)

    def keep(self, **settings: Any) -> None:
        """What a freshly started service does."""
        chosen = Settings(**(self.settings.model_dump() | settings))
        Retention(self.kept, self.workspace, chosen, clock=self.clock).keep()

    def job(self, *, copies: bool = False, name: str = "cat") -> str:
        """A pending job with its pictures, and what else was dropped with them, in its folder."""
        sources = [
            NewSource(
                role="content" if file_name.startswith("content") else "style",
                original_path=f"/pictures/{file_name}",
                file_name=file_name,
                sha256="0" * 64,
                bytes=1,
                rows=1,
                columns=1,
            )
            for file_name in ("content.jpg", "style.png")
        ]
        # The style was copied from its style folder, so it is not among what was moved.
        moves = {self.workspace.inbox / "lake.jpg": "content.jpg", self.workspace.inbox / "x.toml": "settings.toml"}
        manifest = None if copies else Manifest(moves=moves)
        job = self.store.create(NewJob(name=name, preset="fast", config={}, sources=sources, manifest=manifest))
        write(self.workspace.job_folder(job.id), DROPPED if not copies else dict(list(DROPPED.items())[:2]))
        self.store.make_pending(job.id)
        return job.id

    def fail(self, job_id: str, *, made: bool = True) -> str:
        if made:
            write(self.workspace.job_folder(job_id), MADE)
        self.store.fail(job_id, attempt=None, error="The loss is nan.")
        return job_id

    def tree(self) -> dict[str, bytes]:
        """All files under work/ and rejected/ but the reasons."""
        found = files(self.workspace.home, "work") | files(self.workspace.home, "rejected")
        return {path: content for path, content in found.items() if not path.endswith(".reason.txt")}

    def where(self, job_id: str) -> tuple[JobState, str | None]:
        job = self.store.get(job_id)
        return job.state, job.result_folder


@pytest.fixture
def database(where: str) -> Iterator[Database]:
    with open_database(where) as database:
        yield database


@pytest.fixture
def scene(database: Database, tmp_path: Path) -> Scene:
    return Scene(database, tmp_path / "home")


def write(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def files(home: Path, folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in (home / folder).rglob("*") if path.is_file()}


def under(folder: str, contents: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in contents.items()}


def test_the_pictures_of_a_failed_job_move_out_and_the_rest_goes(scene: Scene) -> None:
    job_id = scene.fail(scene.job())
    scene.clock.now += 30 * DAY
    scene.keep()
    assert scene.tree() == under(f"work/{job_id}", DROPPED | MADE)
    scene.clock.now += timedelta(seconds=1)
    scene.keep()
    to = scene.workspace.rejected / "cat"
    assert scene.tree() == under("rejected/cat", DROPPED)
    assert list(scene.workspace.work.iterdir()) == []
    assert (to / "cat.reason.txt").read_text() == (
        f"Job {job_id} (cat) failed: The loss is nan. Nobody retried it for 30 days; drop the pictures again.\n"
    )
    assert scene.where(job_id) == (JobState.FAILED, str(to))
    with pytest.raises(JobStateError) as raised:
        scene.store.retry(job_id)
    assert str(raised.value) == (
        f"Job {job_id} cannot be tried again: its pictures have moved to {to}; drop them again."
    )
    scene.keep()
    assert scene.tree() == under("rejected/cat", DROPPED)


def test_a_cancelled_job_and_others_of_its_name(scene: Scene) -> None:
    first, second = scene.job(), scene.job()
    scene.store.ask_cancel(first)
    scene.fail(second, made=False)
    write(scene.workspace.rejected / "cat", {"notes.txt": b"mine"})
    scene.clock.now += 31 * DAY
    scene.keep(keep_work_days=2.5)
    to = [Path(str(scene.where(job_id)[1])) for job_id in (first, second)]
    assert {folder.name for folder in to} == {"cat-2", "cat-3"}
    assert scene.tree() == {
        "rejected/cat/notes.txt": b"mine",
        **under("rejected/cat-2", DROPPED),
        **under("rejected/cat-3", DROPPED),
    }
    assert (to[0] / f"{to[0].name}.reason.txt").read_text() == (
        f"Job {first} (cat) was cancelled. Nobody retried it for 2.5 days; drop the pictures again.\n"
    )


def test_jobs_that_wait_or_run_and_their_files_stay(scene: Scene) -> None:
    claimed = scene.store.create(NewJob(name="new", preset="fast", config={}, sources=[], manifest=Manifest(moves={})))
    pending, running, cancelling, retried = (scene.job() for _ in range(4))
    lease = START + timedelta(hours=1)
    for job_id in (running, cancelling):
        scene.store.start_attempt(job_id, host="here", pid=1, lease_until=lease)
    scene.store.ask_cancel(cancelling)
    scene.fail(retried)
    scene.store.retry(retried)
    for job_id in (claimed.id, pending, running, cancelling):
        write(scene.workspace.job_folder(job_id), MADE)
    before = scene.tree()
    scene.clock.now += 400 * DAY
    scene.keep(keep_work_gigabytes=1e-9)
    assert scene.tree() == before


def test_copies_are_removed(scene: Scene) -> None:
    job_id = scene.fail(scene.job(copies=True))
    scene.clock.now += 31 * DAY
    scene.keep()
    assert scene.tree() == {}
    assert list(scene.workspace.work.iterdir()) == []
    assert scene.where(job_id) == (JobState.FAILED, None)


@pytest.mark.parametrize("copies", [True, False], ids=["copies", "dropped"])
def test_what_somebody_put_into_a_jobs_folder_is_not_removed(scene: Scene, copies: bool) -> None:
    job_id = scene.fail(scene.job(copies=copies))
    write(scene.workspace.job_folder(job_id), {"letter.txt": b"dear all"})
    scene.clock.now += 31 * DAY
    scene.keep()
    there = {f"work/{job_id}/letter.txt": b"dear all"}
    assert scene.tree() == (there if copies else under("rejected/cat", {**DROPPED, "letter.txt": b"dear all"}))


def test_a_dropped_file_with_the_name_of_what_a_job_makes_is_the_users(scene: Scene) -> None:
    """Such a name is not given today; a job of an older version may have it."""
    moves = {scene.workspace.inbox / "cat" / "preview.jpg": "preview.jpg"}
    job = scene.store.create(NewJob(name="cat", preset="fast", config={}, sources=[], manifest=Manifest(moves=moves)))
    write(scene.workspace.job_folder(job.id), {"preview.jpg": b"mine", "checkpoint": b"not mine"})
    scene.store.make_pending(job.id)
    scene.fail(job.id, made=False)
    scene.clock.now += DAY
    scene.keep(keep_work_gigabytes=1e-9)
    assert scene.tree() == {f"work/{job.id}/preview.jpg": b"mine"}
    scene.clock.now += 31 * DAY
    scene.keep()
    assert scene.tree() == {"rejected/cat/preview.jpg": b"mine"}


def test_a_folder_without_pictures_leaves_nothing_in_rejected(scene: Scene) -> None:
    job_id = scene.fail(scene.job())
    for name in DROPPED:
        (scene.workspace.job_folder(job_id) / name).unlink()
    scene.clock.now += 31 * DAY
    scene.keep()
    assert scene.tree() == {}
    assert list(scene.workspace.work.iterdir()) == list(scene.workspace.rejected.iterdir()) == []
    assert scene.where(job_id) == (JobState.FAILED, None)


def test_a_folder_of_no_job_is_told_of_once_and_left_alone(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    write(scene.workspace.work, {"holiday/beach.jpg": b"mine", "loose.txt": b"mine too"})
    retention = scene.retention()
    for _ in range(2):
        scene.clock.now += DAY
        retention.keep()
    assert scene.tree() == {"work/holiday/beach.jpg": b"mine", "work/loose.txt": b"mine too"}
    assert caplog.messages == [
        f"{scene.workspace.work / name} is no job's; nst leaves it alone." for name in ("holiday", "loose.txt")
    ]


def test_too_large_a_work_folder_loses_what_the_oldest_jobs_made(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs = []
    for name in ("first", "second", "third"):
        jobs.append(scene.fail(scene.job(name=name)))
        scene.clock.now += timedelta(hours=1)
    size = sum(map(len, scene.tree().values()))
    made = sum(map(len, MADE.values()))
    scene.keep(keep_work_gigabytes=(size - made - 1) / 1e9)
    assert scene.tree() == {
        **under(f"work/{jobs[0]}", DROPPED),
        **under(f"work/{jobs[1]}", DROPPED),
        **under(f"work/{jobs[2]}", DROPPED | MADE),
    }
    assert caplog.messages == ["kept within the limits: removed 0.0 MB from work/"]
    caplog.clear()
    retention = Retention(
        scene.kept,
        scene.workspace,
        Settings(home=scene.workspace.home, keep_work_gigabytes=1e-9),
        clock=scene.clock,
    )
    for _ in range(2):
        scene.clock.now += timedelta(hours=1)
        retention.keep()
    assert scene.tree() == {key: value for job_id in jobs for key, value in under(f"work/{job_id}", DROPPED).items()}
    assert caplog.messages == [
        f"{scene.workspace.work} takes more than keep_work_gigabytes = 1e-09, and no more in it may be removed; retry "
        "what failed, drop it again, or allow more.",
        "kept within the limits: removed 0.0 MB from work/",
    ]
    scene.store.retry(jobs[0])


def test_a_job_that_has_just_ended_is_not_touched_for_its_size(scene: Scene) -> None:
    job_id = scene.fail(scene.job())
    scene.clock.now += timedelta(seconds=scene.settings.lease_seconds)
    scene.keep(keep_work_gigabytes=1e-9)
    assert scene.tree() == under(f"work/{job_id}", DROPPED | MADE)
    scene.clock.now += timedelta(seconds=1)
    scene.keep(keep_work_gigabytes=1e-9)
    assert scene.tree() == under(f"work/{job_id}", DROPPED)


def test_it_works_at_most_every_ten_minutes_and_a_bounded_piece(scene: Scene) -> None:
    retention = scene.retention()
    retention.keep()
    for number in range(23):
        scene.fail(scene.job(name=f"job{number:02}"), made=False)
    # The clock of the service, not the one that the job's end was taken from.
    with scene.database.begin() as session:
        session.connection().execute(sa.update(Job).values(finished_at=START - 40 * DAY))
    scene.clock.now += timedelta(minutes=9, seconds=59)
    retention.keep()
    assert len(list(scene.workspace.rejected.iterdir())) == 0
    scene.clock.now += timedelta(seconds=1)
    retention.keep()
    assert len(list(scene.workspace.rejected.iterdir())) == 20
    scene.clock.now += timedelta(minutes=10)
    retention.keep()
    assert len(list(scene.workspace.rejected.iterdir())) == 23


def test_it_works_on_when_the_clock_was_set_back(scene: Scene) -> None:
    retention = scene.retention()
    scene.clock.now += 1000 * DAY
    retention.keep()
    scene.clock.now -= 1000 * DAY
    scene.fail(scene.job(), made=False)
    with scene.database.begin() as session:
        session.connection().execute(sa.update(Job).values(finished_at=START - 40 * DAY))
    retention.keep()
    assert len(list(scene.workspace.rejected.iterdir())) == 1


def test_what_cannot_be_moved_stays_and_keeps_the_others_from_nothing(scene: Scene) -> None:
    stuck, other = scene.fail(scene.job(name="stuck")), scene.fail(scene.job(name="other"))
    scene.clock.now += 31 * DAY
    # A file where the folder of rejected drops would be: reserved, then taken by somebody.
    scene.kept.reject_pictures(stuck, before=scene.clock.now, to=scene.workspace.rejected / "taken")
    (scene.workspace.rejected / "taken").write_bytes(b"a file")
    with pytest.raises(WorkspaceError, match="taken"):
        scene.keep()
    assert scene.tree() == {
        "rejected/taken": b"a file",
        **under(f"work/{stuck}", DROPPED | MADE),
        **under("rejected/other", DROPPED),
    }
    assert scene.where(other) == (JobState.FAILED, str(scene.workspace.rejected / "other"))


def test_a_file_that_is_in_the_way_is_not_replaced_and_nothing_is_removed(scene: Scene) -> None:
    job_id = scene.fail(scene.job())
    scene.clock.now += 31 * DAY
    to = scene.workspace.rejected / "cat"
    scene.kept.reject_pictures(job_id, before=scene.clock.now, to=to)
    write(to, {"content.jpg": b"another lake"})
    with pytest.raises(WorkspaceError) as raised:
        scene.keep()
    folder = scene.workspace.job_folder(job_id)
    assert str(raised.value) == f"content.jpg in {folder} cannot be moved to {to}; move it by hand."
    rest = {name: content for name, content in DROPPED.items() if name != "content.jpg"}
    assert scene.tree() == {
        f"work/{job_id}/content.jpg": b"a lake",
        **under(f"work/{job_id}", MADE),
        **under("rejected/cat", rest | {"content.jpg": b"another lake"}),
    }


class TestRetryAtTheSameTime:
    def test_a_retry_between_the_look_and_the_note_wins(self, scene: Scene) -> None:
        job_id = scene.fail(scene.job())
        scene.clock.now += 31 * DAY
        scene.store.retry(job_id)
        assert not scene.kept.reject_pictures(job_id, before=scene.clock.now, to=Path("/rejected/cat"))
        with scene.kept.given_up(job_id, before=scene.clock.now) as given_up:
            assert not given_up
        # And again ended, it is young.
        scene.store.fail(job_id, attempt=None, error="again")
        assert not scene.kept.reject_pictures(job_id, before=scene.clock.now, to=Path("/rejected/cat"))
        assert scene.where(job_id) == (JobState.FAILED, None)

    def test_a_retry_waits_while_a_folder_is_emptied(self, scene: Scene) -> None:
        job_id = scene.fail(scene.job(copies=True))
        scene.clock.now += 31 * DAY
        retried = threading.Event()

        def retry() -> None:
            scene.store.retry(job_id)
            retried.set()

        thread = threading.Thread(target=retry)
        with scene.kept.given_up(job_id, before=scene.clock.now) as given_up:
            assert given_up
            thread.start()
            assert not retried.wait(0.3)
        thread.join()
        assert retried.is_set()

    @pytest.mark.parametrize("limits", [{}, {"keep_work_gigabytes": 1e-9, "keep_work_days": 99}], ids=["age", "size"])
    def test_either_the_job_waits_with_its_pictures_or_they_have_moved(
        self, scene: Scene, limits: dict[str, Any]
    ) -> None:
        outcomes = set()
        for number in range(12):
            job_id = scene.fail(scene.job(name=f"job{number}"))
            scene.clock.now += 31 * DAY
            together = threading.Barrier(2)

            def retry(job_id: str = job_id, together: threading.Barrier = together) -> None:
                together.wait()
                # What `nst retry` looks for before.
                if (scene.workspace.job_folder(job_id) / "content.jpg").exists():
                    try:
                        scene.store.retry(job_id)
                    except JobStateError as error:
                        assert "its pictures have moved to" in str(error)  # noqa: PT017

            thread = threading.Thread(target=retry)
            thread.start()
            together.wait()
            scene.keep(**limits)
            thread.join()
            state, folder = scene.where(job_id)
            tree = {path: content for path, content in scene.tree().items() if content in DROPPED.values()}
            if state is JobState.PENDING:
                assert tree == under(f"work/{job_id}", DROPPED)
                scene.workspace.discard(job_id)
            else:
                assert folder == str(scene.workspace.rejected / f"job{number}")
                assert tree == under(f"rejected/job{number}", DROPPED)
                for name in DROPPED:
                    (Path(folder) / name).unlink()
            outcomes.add(state)
        assert outcomes <= {JobState.PENDING, JobState.FAILED}


# Every step on the disk announces itself so, to whoever listens.
STEPS = frozenset({"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"})


def keep_and_die(home: Path, now: datetime, step: int) -> None:
    """Keep a home as a service does, killed before the step of this number."""
    left = step

    def listen(event: str, _arguments: Any) -> None:
        nonlocal left
        if event in STEPS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with open_database(home / "nst.db") as database:
        retention = Retention(RetentionStore(database), Workspace(home), Settings(home=home), clock=lambda: now)
        sys.addaudithook(listen)
        retention.keep()
        os._exit(0)


def test_killed_before_any_step_it_goes_on_and_nothing_is_lost(tmp_path: Path) -> None:
    step, killed = 0, True
    while killed:
        home = tmp_path / f"home{step}"
        with open_database(home / "nst.db") as database:
            scene = Scene(database, home)
            dropped, copied = scene.fail(scene.job()), scene.fail(scene.job(copies=True, name="copied"))
            scene.clock.now += 31 * DAY
        child = multiprocessing.get_context("fork").Process(target=keep_and_die, args=(home, scene.clock.now, step))
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        killed = child.exitcode != 0
        # Each dropped file is there once; while it is moved, under both names.
        for name, content in DROPPED.items():
            places = [home / "work" / dropped / name, home / "rejected" / "cat" / name]
            there = [path for path in places if path.exists()]
            assert there
            assert all(path.read_bytes() == content and path.samefile(there[0]) for path in there)
        with open_database(home / "nst.db") as database:
            again = Scene(database, home)
            again.clock.now = scene.clock.now + timedelta(hours=1)
            again.keep()
            assert again.tree() == under("rejected/cat", DROPPED)
            assert (home / "rejected" / "cat" / "cat.reason.txt").read_text().startswith(f"Job {dropped} (cat) failed")
            assert list((home / "work").iterdir()) == []
            assert again.where(dropped) == (JobState.FAILED, str(home / "rejected" / "cat"))
            assert again.where(copied) == (JobState.FAILED, None)
        step += 1
    assert step > 15


def curve(scene: Scene, iterations: list[int], *, name: str = "cat") -> str:
    """A job that has just failed, with these loss points."""
    job_id = scene.job(name=name)
    scene.store.start_attempt(job_id, host="here", pid=1, lease_until=START)
    points = [
        NewLossPoint(iteration=i, total=i, content=0, style=0, tv=0, layers={}, learning_rate=None, seconds=i)
        for i in iterations
    ]
    scene.store.add_loss_points(job_id, attempt=1, points=points)
    scene.store.fail(job_id, attempt=1, error="The disk is full.")
    return job_id


def iterations_of(scene: Scene, job_id: str) -> list[int]:
    return [point.iteration for point in scene.store.losses(job_id)]


def test_old_curves_are_thinned_out_evenly(scene: Scene) -> None:
    long, short = curve(scene, list(range(12_001))), curve(scene, list(range(0, 400, 2)))
    scene.clock.now += 2 * DAY
    young = curve(scene, list(range(300)))
    scene.clock.now += 364 * DAY
    scene.keep()
    kept = iterations_of(scene, long)
    assert (kept[0], kept[-1], len(kept)) == (0, 12_000, 200)
    gaps = {after - before for before, after in pairwise(kept)}
    assert gaps <= {60, 61}
    assert iterations_of(scene, short) == list(range(0, 400, 2))
    assert iterations_of(scene, young) == list(range(300))
    scene.keep()
    assert iterations_of(scene, long) == kept


def test_too_many_points_thin_out_the_oldest_curves_first(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    jobs = []
    for _ in range(3):
        jobs.append(curve(scene, list(range(1000))))
        scene.clock.now += timedelta(hours=1)
    scene.keep(keep_loss_points=1500)
    assert [len(iterations_of(scene, job_id)) for job_id in jobs] == [200, 200, 1000]
    assert not [message for message in caplog.messages if "keep_loss_points" in message]
    scene.clock.now += timedelta(hours=1)
    retention = Retention(
        scene.kept, scene.workspace, Settings(home=scene.workspace.home, keep_loss_points=599), clock=scene.clock
    )
    for _ in range(2):
        retention.keep()
        scene.clock.now += timedelta(hours=1)
    assert [len(iterations_of(scene, job_id)) for job_id in jobs] == [200, 200, 200]
    assert caplog.messages == [
        "There are more than keep_loss_points = 599 loss points though all curves are thinned out; allow more."
    ]


def test_the_curve_of_a_job_that_runs_again_is_left_alone(scene: Scene) -> None:
    job_id = curve(scene, list(range(1000)))
    scene.clock.now += 400 * DAY
    scene.store.retry(job_id)
    assert scene.kept.thin_losses(job_id) == 0
    scene.keep()
    assert iterations_of(scene, job_id) == list(range(1000))


def test_writers_get_on_while_a_long_curve_is_thinned_out(scene: Scene, where: str) -> None:
    long = curve(scene, [])
    with scene.database.begin() as session:
        session.execute(
            sa.text(
                "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 60000) "
                "INSERT INTO loss_points (job_id, iteration, attempt, total, content, style, tv, layers, seconds) "
                "SELECT :job, i, 1, 1, 1, 0, 0, '{}', i FROM n"
            ),
            {"job": long},
        )
    thread = threading.Thread(target=lambda: scene.kept.thin_losses(long))
    thread.start()
    counts = set()
    with open_database(where) as other:
        while thread.is_alive():
            with other.begin() as session:
                counts.add(session.scalar(sa.select(sa.func.count()).select_from(LossPoint)))
    thread.join()
    assert len(counts - {60_001, 200}) > 2
    assert len(iterations_of(scene, long)) == 200


def test_a_thinning_that_was_cut_off_ends_as_it_would_have() -> None:
    whole = list(range(0, 50_000, 3))
    kept = spread(whole, 200)
    half = sorted(kept.intersection(whole[:5000])) + whole[5000:]
    assert spread(half, 200) == kept
    assert spread([7, 9], 200) == {7, 9}


def test_the_thumbnails_used_least_recently_go_first(scene: Scene) -> None:
    cache = scene.workspace.home / "cache"
    write(cache, {f"thumbnails/{letter}.jpg": b"x" * 100_000 for letter in "abcdef"})
    for age, letter in enumerate("cafedb"):
        os.utime(cache / "thumbnails" / f"{letter}.jpg", (1e9 - age, 5e8 - age))
    scene.keep(keep_cache_gigabytes=350_000 / 1e9)
    assert sorted(path.name for path in (cache / "thumbnails").iterdir()) == ["a.jpg", "c.jpg", "f.jpg"]
    assert trim(cache, limit=300_000) == 0
    assert trim(cache / "away", limit=0) == 0
