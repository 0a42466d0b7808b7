"""The clock of the machine is set, forward and back, by an hour and by days: nobody who works loses the job, nobody who
is dead keeps it, nothing waits for the clock to catch up, and what ended is told once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from flows.checked_picture import CheckedPicture
from flows.intake import Intake
from flows.retention import Retention
from flows.settings import Settings
from storage.errors import JobStateError
from storage.jobs import utc_now
from storage.models import JobState, NightState
from storage.retention import RetentionStore
from tests.intake_home import png
from tests.test_dispatch import HERE, Scene, set_state, state_of

LEASE = 60.0
HOUR = timedelta(hours=1)
DAYS = timedelta(days=3)
SET = [
    pytest.param(HOUR, id="an hour forward"),
    pytest.param(DAYS, id="days forward"),
    pytest.param(-HOUR, id="an hour back"),
    pytest.param(-DAYS, id="days back"),
]


@pytest.fixture(scope="module", autouse=True)
def deployments(prefect_api: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The work pool and the deployments, on a server that has no flow worker."""
    from flows.deployments import ensure_deployments

    ensure_deployments(tmp_path_factory.mktemp("deployed"))


class Clocks(Scene):
    """A scene with the clock of the wall, which is set, and one that only goes on."""

    seconds = 0.0

    def ticks(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        """Let time go by, on both clocks."""
        self.seconds += seconds
        self.later += timedelta(seconds=seconds)

    def renew(self, name: str) -> None:
        """What the job's own process does, with the clock as it is set."""
        self.store.renew(self.job(name).id, attempt=1, lease_until=self.clock() + timedelta(seconds=LEASE))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Clocks]:
    scene = Clocks(tmp_path / "home")
    yield scene
    scene.close()


def at_work(scene: Clocks, name: str, *, pid: int, host: str = HERE) -> None:
    """A job that a process works on, of no run that Prefect knows."""
    job = scene.pending(name)
    lease = scene.clock() + timedelta(seconds=LEASE)
    scene.store.start_attempt(job.id, host=host, pid=pid, lease_until=lease, flow_run_id=str(uuid4()))


@pytest.mark.parametrize("shift", SET)
def test_a_job_stays_with_a_process_that_lives(scene: Clocks, shift: timedelta) -> None:
    at_work(scene, "lake", pid=os.getpid())
    scene.cycle()
    scene.later += shift
    for _ in range(12):
        # It looks every ten seconds whether to renew.
        scene.cycle()
        scene.wait(10)
        scene.renew("lake")
        scene.cycle()
    job = scene.job("lake")
    assert (job.state, job.submission, [attempt.outcome for attempt in job.attempts]) == (JobState.RUNNING, 1, [None])


@pytest.mark.parametrize("shift", SET)
def test_a_process_that_lives_and_renews_nothing_loses_the_job_after_a_lease(scene: Clocks, shift: timedelta) -> None:
    """It hangs, or has the number of one that died before the machine was started again."""
    at_work(scene, "lake", pid=os.getpid())
    scene.later += shift
    scene.cycle()
    scene.wait(LEASE - 1)
    scene.cycle()
    assert scene.job("lake").state is JobState.RUNNING
    scene.wait(2)
    scene.cycle()
    job = scene.job("lake")
    assert (job.state, job.submission, len(job.attempts)) == (JobState.PENDING, 2, 1)
    # Should it wake, it has lost the job.
    for late in (
        lambda: scene.renew("lake"),
        lambda: scene.store.enter_phase(job.id, attempt=1, phase="publish"),
        lambda: scene.store.complete(job.id, attempt=1, result_folder="/x", result_files={}, rows=1, columns=1),
    ):
        with pytest.raises(JobStateError):
            late()
    assert scene.job("lake").state is JobState.PENDING


@pytest.mark.parametrize("shift", SET)
def test_a_dead_process_loses_its_job_at_once(scene: Clocks, dead_pid: int, shift: timedelta) -> None:
    at_work(scene, "lake", pid=dead_pid)
    scene.later += shift
    scene.cycle()
    assert (scene.job("lake").state, scene.job("lake").submission) == (JobState.PENDING, 2)
    assert scene.job("lake").flow_run_id is not None


def test_a_dead_process_elsewhere_does_not_keep_its_job_until_a_clock_that_was_set_back_catches_up(
    scene: Clocks, dead_pid: int
) -> None:
    at_work(scene, "lake", pid=dead_pid, host="elsewhere")
    scene.later -= DAYS
    scene.cycle()
    scene.wait(LEASE - 1)
    scene.cycle()
    assert scene.job("lake").state is JobState.RUNNING
    scene.wait(2)
    scene.cycle()
    assert scene.job("lake").state is JobState.PENDING


def test_a_job_elsewhere_that_is_late_by_the_clock_is_run_again_and_the_late_one_changes_nothing(scene: Clocks) -> None:
    at_work(scene, "lake", pid=os.getpid(), host="elsewhere")
    scene.later += HOUR
    scene.cycle()
    job = scene.job("lake")
    assert (job.state, job.submission) == (JobState.PENDING, 2)
    scene.start(job, pid=os.getpid())
    with pytest.raises(JobStateError, match=r"Attempt 1 at job .* is not open"):
        scene.store.complete(job.id, attempt=1, result_folder="/late", result_files={}, rows=1, columns=1)
    scene.store.complete(job.id, attempt=2, result_folder="/out", result_files={}, rows=1, columns=1)
    assert scene.job("lake").result_folder == "/out"


@pytest.mark.parametrize("shift", SET)
def test_a_night_stays_with_a_process_that_lives_and_not_with_one_that_hangs(scene: Clocks, shift: timedelta) -> None:
    run_id = scene.runs.submit_night("lakes")
    scene.night_of(run_id, pid=os.getpid())
    scene.later += shift
    for _ in range(8):
        scene.cycle()
        scene.wait(10)
        scene.nights.renew(run_id, lease_until=scene.clock() + timedelta(seconds=LEASE))
        scene.cycle()
    assert (scene.night().state, scene.night().submission, scene.night().pid) == (NightState.RUNNING, 1, os.getpid())
    scene.later += shift
    scene.cycle()
    scene.wait(LEASE + 1)
    scene.cycle()
    assert (scene.night().submission, scene.night().pid) == (2, None)


@pytest.mark.parametrize("shift", [pytest.param(-HOUR - HOUR, id="hours back"), pytest.param(-DAYS, id="days back")])
def test_what_waits_for_a_moment_does_not_wait_for_the_clock_to_catch_up(scene: Clocks, shift: timedelta) -> None:
    from prefect.states import Running

    paused, begun = scene.pending("paused"), scene.submitted("not begun")
    scene.store.start_attempt(paused.id, host=HERE, pid=os.getpid(), lease_until=scene.clock())
    scene.store.release(paused.id, error="The disk refused.", lease_until=scene.clock() + timedelta(seconds=30))
    set_state(begun.flow_run_id, Running())
    scene.cycle()
    assert scene.handed_over()["paused"] is None
    scene.later += shift
    scene.cycle()
    runs = scene.handed_over()
    assert runs["paused"] is not None
    assert runs["not begun"] not in (None, begun.flow_run_id)
    assert state_of(begun.flow_run_id)[0] == "CRASHED"


def test_a_burst_that_works_on_one_of_its_jobs_keeps_the_others_when_the_clock_is_set_forward(scene: Clocks) -> None:
    from prefect.states import Running

    scene.configure(burst=1)
    for name in ("a", "b", "c"):
        scene.pending(name)
    scene.cycle()
    (run_id,) = set(scene.handed_over().values())
    set_state(run_id, Running())
    scene.start(scene.job("a"), pid=os.getpid())
    scene.later += HOUR
    scene.cycle()
    assert set(scene.handed_over().values()) == {run_id}
    assert [scene.job(name).submission for name in ("a", "b", "c")] == [1, 1, 1]
    assert state_of(run_id)[0] == "RUNNING"


def test_what_ends_is_told_once_whatever_the_clock_says(scene: Clocks) -> None:
    def end(name: str) -> None:
        # With the clock as it is set.
        job = scene.pending(name)
        store = type(scene.store)(scene.store._database, clock=scene.clock)
        store.ask_cancel(job.id)

    scene.wait(5)
    end("before")
    scene.cycle()
    for number, shift in enumerate((-HOUR, -DAYS, HOUR, DAYS, -HOUR)):
        scene.later += shift
        scene.wait(1)
        end(f"set {number}")
        scene.wait(1)
        for _ in range(3):
            scene.cycle()
            scene.wait(2)
    assert scene.ended == ["before", *(f"set {number}" for number in range(5))]


def test_the_folder_of_a_completed_job_goes_although_the_clock_was_set_back(scene: Clocks) -> None:
    scene.later += DAYS
    scene.configure()
    done = scene.pending("done")
    number = scene.store.start_attempt(done.id, host=HERE, pid=os.getpid(), lease_until=scene.clock())
    scene.store.complete(done.id, attempt=number, result_folder="/x", result_files={}, rows=1, columns=1)
    scene.workspace.job_folder(done.id).mkdir()
    scene.later -= DAYS - timedelta(minutes=2)
    scene.cycle()
    assert scene.workspace.jobs_with_folders() == []


def test_a_clock_that_leaps_forward_by_days_cleans_nothing_up_for_a_day(scene: Clocks) -> None:
    retention = Retention(
        RetentionStore(scene._database), scene.workspace, scene.settings, clock=scene.clock, ticks=lambda: scene.seconds
    )

    def given_up(name: str) -> Path:
        job = scene.pending(name)
        scene.store.fail(job.id, attempt=None, error="No.")
        folder = scene.workspace.job_folder(job.id)
        folder.mkdir()
        (folder / "checkpoint").write_bytes(b"c")
        return folder

    folder = given_up("lake")
    retention.keep()
    scene.later += 400 * timedelta(days=1)
    for _ in range(23):
        retention.keep()
        scene.wait(3600)
    assert folder.exists()
    # It was a mistake, and is set right.
    scene.later -= 400 * timedelta(days=1)
    retention.keep()
    assert folder.exists()
    # It was none.
    scene.wait(1200)
    scene.later += 400 * timedelta(days=1)
    retention.keep()
    assert folder.exists()
    scene.wait(24 * 3600 + 1)
    retention.keep()
    assert not folder.exists()


@pytest.mark.parametrize("year", [1980, 2099])
def test_what_is_dropped_settles_and_waits_by_a_clock_that_nobody_sets(scene: Clocks, year: int) -> None:
    """The time of a file, which the camera or another machine has set, says nothing either."""
    inbox, seconds = scene.workspace.inbox, [1000.0]
    for seed, name in enumerate(("lake_content.png", "lake_style.png", "alone_content.png")):
        (inbox / name).write_bytes(png(seed))
        os.utime(inbox / name, ((year - 1970) * 31_556_952,) * 2)
    intake = Intake(
        scene.store,
        scene.workspace,
        Settings(home=scene.workspace.home, pair_timeout=100),
        check=lambda path: CheckedPicture.of(path, max_pixels=10**6),
        clock=lambda: seconds[0],
        on_job=lambda job: None,
    )
    assert intake.look().claimed == ()
    seconds[0] += 3
    assert [job.name for job in intake.look().claimed] == ["lake"]
    seconds[0] += 90
    assert intake.look().rejected == ()
    seconds[0] += 10
    assert [job.name for job in intake.look().rejected] == ["alone_content"]
    assert utc_now() - scene.job("lake").created_at < timedelta(minutes=5)
