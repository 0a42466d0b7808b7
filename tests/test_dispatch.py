"""The dispatcher on a real Prefect API, whose runs nobody works on, and on a real database: which jobs are handed over,
and what becomes of them when a run or a process ends in any way."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from flows.errors import OrchestrationError
from flows.settings import Settings
from nst_engine.config import TransferConfig
from nst_engine.images import encode_png
from storage.database import Database, open_database
from storage.jobs import JobStore, NewJob, NewSource, utc_now
from storage.models import Job, JobState, Night, NightState
from storage.new import NewLossPoint
from storage.nights import NightStore
from storage.workspace import Workspace, sha256_of

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

    from flows.dispatch import Dispatcher

HERE = socket.gethostname()


@pytest.fixture(scope="module", autouse=True)
def deployments(prefect_api: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The work pool and the deployments, on a server that has no flow worker."""
    from flows.deployments import ensure_deployments

    ensure_deployments(tmp_path_factory.mktemp("deployed"))


class Scene:
    """A home with its dispatcher, whose clock may be set forward."""

    def __init__(self, home: Path) -> None:
        self.workspace = Workspace(home)
        self.workspace.create()
        self._database = open_database(self.workspace.database_path)
        self.store = JobStore(self._database)
        self.nights = NightStore(self._database)
        self.ended: list[str] = []
        self.later = timedelta()
        self.configure()

    def configure(self, make_store: Callable[[Database], JobStore] = JobStore, **settings: Any) -> None:
        """A new dispatcher, as after a restart."""
        from flows.dispatch import Dispatcher
        from flows.runs import Runs

        self.settings = Settings(home=self.workspace.home, **settings)
        self.runs = Runs(self.workspace.home)
        self.dispatcher: Dispatcher = Dispatcher(
            make_store(self._database),
            self.workspace,
            self.settings,
            self.runs,
            nights=self.nights,
            on_end=lambda job: self.ended.append(job.name),
            clock=self.clock,
            ticks=self.ticks,
        )

    def clock(self) -> datetime:
        return utc_now() + self.later

    def ticks(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._database.close()

    def cycle(self) -> None:
        self.dispatcher.cycle()

    def pending(self, name: str, *, priority: int = 0, fingerprint: str | None = None, burst_size: int = 1) -> Job:
        job = self.store.create(
            NewJob(
                name=name,
                preset="default",
                config=TransferConfig().model_dump(),
                sources=[],
                fingerprint=fingerprint,
                priority=priority,
                burst_size=burst_size,
            )
        )
        self.store.make_pending(job.id)
        return self.job(name)

    def submitted(self, name: str) -> Job:
        """A job that a run has."""
        self.pending(name)
        self.cycle()
        job = self.job(name)
        assert job.flow_run_id is not None
        return job

    def running(self, name: str, *, pid: int, host: str = HERE) -> Job:
        """A job with a lease that a process works on, in a run that is Running."""
        from prefect.states import Running

        job = self.submitted(name)
        self.start(job, pid=pid, host=host)
        set_state(job.flow_run_id, Running())
        return self.job(name)

    def start(self, job: Job, *, pid: int, host: str = HERE) -> None:
        lease = self.clock() + timedelta(minutes=1)
        self.store.start_attempt(job.id, host=host, pid=pid, lease_until=lease, flow_run_id=job.flow_run_id)

    def night_of(self, run_id: str, *, pid: int, host: str = HERE) -> Night:
        """A running night of the collection `lakes` in a run that is Running, with a job that its run has."""
        from prefect.states import Running

        night, _ = self.nights.start(
            "lakes", host=host, pid=pid, flow_run_id=run_id, lease_until=self.clock() + timedelta(minutes=1)
        )
        new = NewJob(
            name="pair", preset="default", config={}, sources=[], collection="lakes", night_id=night.id, priority=9
        )
        self.store.create_pending([new], night_id=night.id, flow_run_id=run_id)
        self.nights.hand_out(night.id, flow_run_id=run_id, lease_until=self.clock(), limit=9)
        set_state(run_id, Running())
        return night

    def night(self) -> Night:
        night = self.nights.last("lakes")
        assert night is not None
        return night

    def job(self, name: str) -> Job:
        """The one job of that name; a short name may also be how another job's id begins."""
        (found,) = (job for job in self.store.recent(limit=100) if job.name == name)
        return found

    def handed_over(self) -> dict[str, str | None]:
        """The run of each job, by name."""
        return {job.name: job.flow_run_id for job in self.store.recent(limit=100)}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "home")
    yield scene
    scene.close()


def run_of(run_id: str | None) -> FlowRun:
    from prefect import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run_id))


def set_state(run_id: str | None, state: State) -> None:
    from prefect import get_client

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run_id), state, force=True)


def state_of(run_id: str | None) -> tuple[str, str | None]:
    state = run_of(run_id).state
    assert state is not None
    return state.type.value, state.message


def test_single_drops_become_a_run_each_but_no_more_than_may_be_open(scene: Scene) -> None:
    jobs = [scene.pending(f"drop {number}", priority=number // 4) for number in range(6)]
    scene.cycle()
    runs = scene.handed_over()
    # The two of the higher priority go first, then the oldest.
    assert {name for name, run in runs.items() if run} == {"drop 4", "drop 5", "drop 0", "drop 1"}
    assert len({run for run in runs.values() if run}) == 4
    run = run_of(runs["drop 4"])
    assert (run.name, run.work_pool_name, set(run.tags)) == ("drop 4", "nst", {"nst", "preset:default"})
    assert run.parameters == {"job_id": jobs[4].id, "home": str(scene.workspace.home), "submission": 1}
    assert state_of(runs["drop 4"])[0] == "SCHEDULED"
    lease = scene.job("drop 4").lease_until
    assert lease is not None
    assert timedelta(seconds=50) < lease - scene.clock() <= timedelta(seconds=60)
    scene.cycle()
    assert scene.handed_over() == runs
    scene.store.ask_cancel(jobs[4].id)
    scene.cycle()
    assert {name for name, run in scene.handed_over().items() if not run} == {"drop 3"}


@pytest.mark.parametrize("max_submitted", [1, 2, 4])
def test_a_burst_becomes_one_run(scene: Scene, max_submitted: int) -> None:
    scene.configure(burst=3, max_submitted=max_submitted)
    jobs = [scene.pending(f"pair {number}") for number in range(4)]
    scene.cycle()
    (run_id,) = set(scene.handed_over().values())
    run = run_of(run_id)
    assert (run.name, set(run.tags)) == ("burst of 4 from pair 0", {"nst", "burst"})
    assert run.parameters == {"home": str(scene.workspace.home), "submissions": {job.id: 1 for job in jobs}}
    scene.pending("drop")
    scene.cycle()
    single = scene.handed_over()["drop"]
    assert (single is None) == (max_submitted == 1)
    assert single != run_id


def test_a_single_drop_goes_before_a_burst_that_came_first(scene: Scene) -> None:
    scene.configure(burst=3, max_submitted=4)
    pairs = [scene.pending(f"pair {number}", burst_size=5) for number in range(5)]
    scene.pending("drop")
    scene.cycle()
    runs = scene.handed_over()
    assert {run_of(run_id).name for run_id in set(runs.values())} == {"burst of 5 from pair 0", "drop"}
    assert len({runs[pair.name] for pair in pairs}) == 1
    # Nobody works: what is open stays so, and there is never more of it.
    for number in range(5, 55):
        scene.pending(f"pair {number}", burst_size=50)
    later = ("second drop", "third drop", "fourth drop")
    for name in later:
        scene.pending(name)
        scene.cycle()
    runs = scene.handed_over()
    assert [bool(runs[name]) for name in later] == [True, True, False]
    assert len(set(runs.values()) - {None}) == 4


def test_a_burst_leaves_room_for_a_single_drop(scene: Scene) -> None:
    scene.configure(burst=3, max_submitted=2)
    scene.submitted("drop")
    for number in range(4):
        scene.pending(f"pair {number}")
    scene.cycle()
    assert [name for name, run in scene.handed_over().items() if run] == ["drop"]
    scene.store.ask_cancel(scene.job("drop").id)
    scene.cycle()
    assert len({run for name, run in scene.handed_over().items() if name != "drop"}) == 1


def test_a_submission_that_was_not_noted_is_the_same_run_when_made_again(scene: Scene) -> None:
    job = scene.pending("lake")
    before = scene.runs.submit_job(job)
    scene.cycle()
    assert scene.job("lake").flow_run_id == before
    scene.store.withdraw_submission(job.id)
    scene.cycle()
    after = scene.job("lake")
    assert (after.submission, after.flow_run_id == before) == (2, False)
    assert run_of(after.flow_run_id).parameters["submission"] == 2


@pytest.mark.parametrize("kind", ["Cancelled", "Cancelling"])
def test_a_run_that_is_cancelled_in_prefect_cancels_the_job(scene: Scene, kind: str) -> None:
    from prefect import states

    job = scene.submitted("lake")
    set_state(job.flow_run_id, getattr(states, kind)())
    scene.cycle()
    assert scene.job("lake").state is JobState.CANCELLED
    scene.cycle()
    assert (scene.handed_over()["lake"], scene.ended) == (job.flow_run_id, ["lake"])


def test_a_burst_that_is_cancelled_cancels_those_that_have_not_begun(scene: Scene) -> None:
    from prefect.states import Cancelled

    scene.configure(burst=1)
    for name in ("a", "b", "c"):
        scene.pending(name)
    scene.cycle()
    scene.start(scene.job("b"), pid=os.getpid())
    set_state(scene.job("a").flow_run_id, Cancelled())
    scene.cycle()
    assert [scene.job(name).state for name in ("a", "b", "c")] == [
        JobState.CANCELLED,
        JobState.RUNNING,
        JobState.CANCELLED,
    ]


@pytest.mark.parametrize("kind", ["Crashed", "Failed", "Completed"])
def test_a_run_that_ends_before_it_began_the_job_is_followed_by_another(scene: Scene, kind: str) -> None:
    from prefect import states

    job = scene.submitted("lake")
    set_state(job.flow_run_id, getattr(states, kind)())
    scene.cycle()
    again = scene.job("lake")
    assert (again.state, again.submission, again.attempts) == (JobState.PENDING, 2, [])
    assert again.flow_run_id not in (None, job.flow_run_id)
    assert state_of(again.flow_run_id)[0] == "SCHEDULED"


def test_a_run_that_was_deleted_is_followed_by_another(scene: Scene) -> None:
    from prefect import get_client

    job = scene.submitted("lake")
    with get_client(sync_client=True) as client:
        client.delete_flow_run(UUID(job.flow_run_id))
    scene.cycle()
    again = scene.job("lake")
    assert (again.state, again.submission) == (JobState.PENDING, 2)
    assert again.flow_run_id not in (None, job.flow_run_id)


def test_a_job_whose_runs_end_again_and_again_before_they_begin_fails(scene: Scene) -> None:
    from prefect.states import Crashed

    scene.configure(max_attempts=1)
    scene.submitted("lake")
    for _ in range(4):
        assert scene.job("lake").state is JobState.PENDING
        set_state(scene.job("lake").flow_run_id, Crashed())
        scene.cycle()
    job = scene.job("lake")
    assert (job.state, job.error) == (
        JobState.FAILED,
        "Its flow run ended 4 times before it began; see logs/ in the home.",
    )


def test_a_run_that_waits_keeps_its_job(scene: Scene) -> None:
    job = scene.submitted("lake")
    scene.later = timedelta(hours=3)
    scene.cycle()
    after = scene.job("lake")
    assert (after.flow_run_id, after.submission) == (job.flow_run_id, 1)
    assert after.lease_until is not None
    assert after.lease_until > utc_now() + timedelta(hours=3)


@pytest.mark.parametrize("kind", ["Pending", "Running"])
def test_a_run_that_does_not_begin_the_job_loses_it_with_the_lease(scene: Scene, kind: str) -> None:
    from prefect import states

    job = scene.submitted("lake")
    set_state(job.flow_run_id, getattr(states, kind)())
    scene.later = timedelta(seconds=50)
    scene.cycle()
    assert scene.job("lake").flow_run_id == job.flow_run_id
    scene.later = timedelta(seconds=70)
    scene.cycle()
    again = scene.job("lake")
    assert (again.state, again.submission) == (JobState.PENDING, 2)
    assert again.flow_run_id not in (None, job.flow_run_id)
    assert state_of(job.flow_run_id) == ("CRASHED", "Its process died before it began the job.")
    # The machine may be busy: the next run has twice as long.
    set_state(again.flow_run_id, getattr(states, kind)())
    scene.later += timedelta(seconds=110)
    scene.cycle()
    assert scene.job("lake").flow_run_id == again.flow_run_id
    scene.later += timedelta(seconds=20)
    scene.cycle()
    assert scene.job("lake").submission == 3


def test_a_job_whose_process_is_dead_goes_on_in_another(scene: Scene, dead_pid: int) -> None:
    job = scene.running("lake", pid=dead_pid)
    scene.cycle()
    again = scene.job("lake")
    assert (again.state, again.submission) == (JobState.PENDING, 2)
    assert again.flow_run_id not in (None, job.flow_run_id)
    (attempt,) = again.attempts
    assert (attempt.outcome, attempt.error) == (
        JobState.FAILED,
        f"The process {dead_pid} on {HERE} that worked on it died.",
    )
    assert state_of(job.flow_run_id) == ("CRASHED", "Its process died; nst takes the job up again.")


def test_a_job_is_left_to_a_process_that_lives_or_is_elsewhere(scene: Scene, dead_pid: int) -> None:
    jobs = [scene.running("here", pid=os.getpid()), scene.running("elsewhere", pid=dead_pid, host="other")]
    scene.cycle()
    assert [scene.job(job.name).state for job in jobs] == [JobState.RUNNING] * 2
    assert [state_of(job.flow_run_id)[0] for job in jobs] == ["RUNNING"] * 2


def test_a_lease_that_has_run_out_means_a_dead_process_wherever(scene: Scene) -> None:
    job = scene.running("lake", pid=os.getpid(), host="other")
    scene.later = timedelta(seconds=70)
    scene.cycle()
    again = scene.job("lake")
    assert (again.state, again.submission, len(again.attempts)) == (JobState.PENDING, 2, 1)
    assert again.attempts[0].error == f"The process {os.getpid()} on other that worked on it died."
    assert state_of(job.flow_run_id)[0] == "CRASHED"


def test_the_last_attempt_that_dies_fails_the_job_and_a_retry_begins_anew(scene: Scene, dead_pid: int) -> None:
    scene.configure(max_attempts=2)
    scene.running("lake", pid=dead_pid)
    scene.cycle()
    scene.start(scene.job("lake"), pid=dead_pid)
    scene.cycle()
    job = scene.job("lake")
    sentence = f"The process {dead_pid} on {HERE} that worked on it died. That was attempt 2; `nst retry` tries again."
    assert (job.state, job.error) == (JobState.FAILED, sentence)
    scene.store.retry(job.id)
    scene.cycle()
    scene.start(scene.job("lake"), pid=dead_pid)
    scene.cycle()
    assert (scene.job("lake").state, len(scene.job("lake").attempts)) == (JobState.PENDING, 3)


def test_a_job_that_is_being_cancelled_by_a_dead_process_is_cancelled(scene: Scene, dead_pid: int) -> None:
    job = scene.running("lake", pid=dead_pid)
    assert scene.store.ask_cancel(job.id) is JobState.CANCELLING
    scene.cycle()
    assert (scene.job("lake").state, scene.ended) == (JobState.CANCELLED, ["lake"])
    assert state_of(job.flow_run_id)[0] == "CRASHED"


def test_a_dead_job_of_a_run_that_prefect_does_not_know_goes_on(scene: Scene, dead_pid: int) -> None:
    """Such as one of `nst run`, whose own Prefect has gone with it."""
    job = scene.pending("lake")
    lease = scene.clock() + timedelta(minutes=1)
    scene.store.start_attempt(job.id, host=HERE, pid=dead_pid, lease_until=lease, flow_run_id=str(uuid4()))
    scene.cycle()
    assert (scene.job("lake").state, scene.job("lake").submission) == (JobState.PENDING, 2)
    assert scene.job("lake").flow_run_id is not None


class RacingStore(JobStore):
    """A store in which a job ends by itself at the moment when somebody else wants to end or reuse it."""

    def release(self, job_id: str, *, error: str) -> None:
        self.complete(job_id, attempt=1, result_folder="/out", result_files={}, rows=1, columns=1)
        super().release(job_id, error=error)

    def completed_twin(self, fingerprint: str) -> Job | None:
        twin = super().completed_twin(fingerprint)
        if twin is not None:
            for job in self.waiting(limit=10, now=utc_now()):
                self.ask_cancel(job.id)
        return twin


def test_a_job_that_ends_by_itself_meanwhile_stays_completed_and_so_its_run(scene: Scene, dead_pid: int) -> None:
    job = scene.running("lake", pid=dead_pid)
    scene.configure(RacingStore)
    scene.cycle()
    assert scene.job("lake").state is JobState.COMPLETED
    assert state_of(job.flow_run_id)[0] == "RUNNING"


def completed(scene: Scene, name: str, *, fingerprint: str) -> Job:
    """A completed job with a result."""
    job = scene.pending(name, fingerprint=fingerprint)
    scene.start(job, pid=os.getpid())
    point = NewLossPoint(
        iteration=0, total=1.0, content=0.0, style=1.0, tv=0.0, layers={}, learning_rate=None, seconds=0.1
    )
    scene.store.add_loss_points(job.id, attempt=1, points=[point])
    folder = scene.workspace.outbox / name
    folder.mkdir()
    encode_png(np.full((20, 20, 3), 17, np.uint8), folder / "result.png")
    scene.store.complete(job.id, attempt=1, result_folder=str(folder), result_files={}, rows=20, columns=20)
    return scene.job(name)


def pending_like(scene: Scene, name: str, tmp_path: Path, *, fingerprint: str) -> Job:
    """A pending job with its picture in its folder."""
    picture = tmp_path / "content.png"
    encode_png(np.full((20, 20, 3), 200, np.uint8), picture)
    source = NewSource(
        role="content",
        original_path=str(picture),
        file_name="content.png",
        sha256=sha256_of(picture),
        bytes=picture.stat().st_size,
        rows=20,
        columns=20,
    )
    job = scene.store.create(
        NewJob(
            name=name,
            preset="default",
            config=TransferConfig().model_dump(),
            sources=[source],
            fingerprint=fingerprint,
        )
    )
    scene.workspace.copy_source(job.id, picture, "content.png")
    scene.store.make_pending(job.id)
    return scene.job(name)


def test_what_is_under_way_is_waited_for_and_what_is_done_is_reused(scene: Scene, tmp_path: Path) -> None:
    twin = scene.pending("first", fingerprint="f")
    pending_like(scene, "second", tmp_path, fingerprint="f")
    scene.pending("other", fingerprint="g")
    scene.cycle()
    runs = scene.handed_over()
    assert (runs["first"] is None, runs["second"] is None, runs["other"] is None) == (False, True, False)
    scene.store.cancel(twin.id, attempt=None)
    scene.cycle()
    assert scene.handed_over()["second"] is not None


def test_what_is_done_is_reused_at_once_and_told(scene: Scene, tmp_path: Path) -> None:
    twin = completed(scene, "first", fingerprint="f")
    pending_like(scene, "second", tmp_path, fingerprint="f")
    scene.cycle()
    job = scene.job("second")
    assert (job.state, job.reused_from, job.flow_run_id) == (JobState.COMPLETED, twin.id, None)
    assert (scene.workspace.outbox / "second" / "result.png").is_file()
    assert scene.ended == ["first", "second"]
    scene.cycle()
    assert scene.ended == ["first", "second"]


def test_a_result_that_cannot_be_copied_fails_the_job(scene: Scene, tmp_path: Path) -> None:
    completed(scene, "first", fingerprint="f")
    job = pending_like(scene, "second", tmp_path, fingerprint="f")
    (scene.workspace.job_folder(job.id) / "content.png").unlink()
    scene.cycle()
    failed = scene.job("second")
    assert (failed.state, scene.ended) == (JobState.FAILED, ["first", "second"])
    assert "cannot be copied" in str(failed.error)


def test_a_job_whose_result_finds_no_room_is_handed_to_a_run_which_can_wait(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completed(scene, "first", fingerprint="f")
    pending_like(scene, "second", tmp_path, fingerprint="f")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("flows.reuse.shutil.copy2", refuse)
        scene.cycle()
    job = scene.job("second")
    assert (job.state, job.flow_run_id is None, job.error) == (JobState.PENDING, False, None)


def test_a_job_that_is_cancelled_while_it_is_reused_stays_cancelled(scene: Scene, tmp_path: Path) -> None:
    completed(scene, "first", fingerprint="f")
    pending_like(scene, "second", tmp_path, fingerprint="f")
    scene.configure(RacingStore)
    scene.cycle()
    assert scene.job("second").state is JobState.CANCELLED
    assert not (scene.workspace.outbox / "second").exists()


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """The address of an API that is not there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/api"


def test_without_prefect_jobs_wait_and_the_dead_are_still_found(
    scene: Scene, dead_pid: int, nobody_listens: str
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    running = [scene.submitted(name) for name in ("a", "b")]
    for job in running:
        scene.start(job, pid=dead_pid)
    scene.pending("lake")
    with temporary_settings({PREFECT_API_URL: nobody_listens}):
        with pytest.raises(OrchestrationError, match=r"^Prefect's API does not answer \(.+\); see logs/prefect.log"):
            scene.cycle()
        assert scene.handed_over() == {"a": None, "b": None, "lake": None}
        assert [scene.job(job.name).submission for job in running] == [2, 2]
    scene.cycle()
    assert all(scene.handed_over().values())
    assert {scene.job(name).state for name in ("a", "b", "lake")} == {JobState.PENDING}


def test_deployments_that_were_made_anew_are_found(scene: Scene, tmp_path: Path) -> None:
    from prefect import get_client

    from flows.deployments import ensure_deployments

    scene.submitted("before")
    with get_client(sync_client=True) as client:
        client.delete_deployment(client.read_deployment_by_name("stylize/stylize").id)
    ensure_deployments(tmp_path)
    scene.pending("after")
    scene.cycle()
    assert scene.handed_over()["after"] is not None


def test_the_end_of_a_job_is_told_once_and_only_what_ends_from_now_on(scene: Scene) -> None:
    scene.store.ask_cancel(scene.pending("before").id)
    scene.configure()
    scene.cycle()
    scene.store.ask_cancel(scene.pending("after").id)
    scene.cycle()
    scene.cycle()
    assert scene.ended == ["after"]


def test_the_folder_that_a_completed_job_has_left_is_removed(scene: Scene) -> None:
    done, waiting = scene.pending("done"), scene.pending("waiting")
    number = scene.store.start_attempt(done.id, host=HERE, pid=os.getpid(), lease_until=scene.clock())
    scene.store.complete(done.id, attempt=number, result_folder="/x", result_files={}, rows=1, columns=1)
    for job in (done, waiting):
        scene.workspace.job_folder(job.id).mkdir()
    scene.later = timedelta(seconds=11)
    scene.cycle()
    # Its flow may be about to remove it itself.
    assert scene.workspace.jobs_with_folders() == sorted([done.id, waiting.id])
    scene.later = timedelta(minutes=2)
    scene.cycle()
    assert scene.workspace.jobs_with_folders() == [waiting.id]


def test_a_night_whose_process_is_dead_goes_on_in_another_run(scene: Scene, dead_pid: int) -> None:
    lost = scene.runs.submit_night("lakes")
    night = scene.night_of(lost, pid=dead_pid)
    scene.cycle()
    assert state_of(lost)[0] == "CRASHED"
    after = scene.night()
    assert (after.id, after.state, after.submission, after.pid) == (night.id, NightState.RUNNING, 2, None)
    run = run_of(after.flow_run_id)
    assert (run.name, set(run.tags)) == ("night of lakes", {"nst", "night"})
    assert run.parameters == {"collection": "lakes", "home": str(scene.workspace.home), "night": night.id}
    # Its jobs are left to the night.
    job = scene.job("pair")
    assert (job.state, job.flow_run_id, job.submission) == (JobState.PENDING, None, 2)
    scene.cycle()
    assert (scene.night().flow_run_id, scene.job("pair").flow_run_id) == (after.flow_run_id, None)


def test_a_night_is_left_to_a_process_that_lives_or_is_elsewhere(scene: Scene, dead_pid: int) -> None:
    scene.night_of(scene.runs.submit_night("lakes"), pid=dead_pid, host="elsewhere")
    scene.cycle()
    assert scene.night().submission == 1
    scene.later = timedelta(minutes=2)
    scene.cycle()
    assert scene.night().submission == 2


def test_a_night_whose_dead_run_was_cancelled_is_cancelled_with_its_jobs(scene: Scene, dead_pid: int) -> None:
    from prefect.states import Cancelling

    run_id = scene.runs.submit_night("lakes")
    scene.night_of(run_id, pid=dead_pid)
    set_state(run_id, Cancelling())
    scene.cycle()
    assert (scene.night().state, scene.job("pair").state) == (NightState.CANCELLED, JobState.CANCELLED)


@pytest.mark.parametrize(
    ("kind", "later", "state", "submission"),
    [
        pytest.param(None, 10, NightState.RUNNING, 2, id="waits"),
        pytest.param("Pending", 30, NightState.RUNNING, 2, id="starts"),
        pytest.param("Running", 70, NightState.RUNNING, 3, id="died before it began"),
        pytest.param("Failed", 10, NightState.RUNNING, 3, id="failed before it began"),
        pytest.param("Cancelled", 10, NightState.CANCELLED, 2, id="cancelled"),
    ],
)
def test_a_run_that_was_given_a_night_is_followed(
    scene: Scene, dead_pid: int, kind: str | None, later: int, state: NightState, submission: int
) -> None:
    from prefect import states

    scene.night_of(scene.runs.submit_night("lakes"), pid=dead_pid)
    scene.cycle()
    run_id = scene.night().flow_run_id
    if kind is not None:
        set_state(run_id, getattr(states, kind)())
    scene.later = timedelta(seconds=later)
    scene.cycle()
    night = scene.night()
    assert (night.state, night.submission, night.flow_run_id == run_id) == (state, submission, submission == 2)
    if kind is None:
        assert night.lease_until is not None
        assert night.lease_until > utc_now() + timedelta(seconds=60)


def test_a_night_whose_runs_end_again_and_again_fails_and_its_jobs_are_run_alone(scene: Scene, dead_pid: int) -> None:
    night = scene.night_of(scene.runs.submit_night("lakes"), pid=dead_pid)
    for submission in range(1, 21):
        assert scene.nights.release(night.id, submission=submission)
    scene.cycle()
    found = scene.night()
    assert (found.state, found.error) == (
        NightState.FAILED,
        "Its flow run ended 20 times before the night did; see logs/ in the home.",
    )
    assert scene.handed_over()["pair"] is not None


def test_nights_leave_room_for_drops(scene: Scene) -> None:
    scene.configure(max_submitted=3)
    for name in ("a", "b", "c", "d"):
        run_id = scene.runs.submit_night(name)
        lease = scene.clock() + timedelta(minutes=1)
        scene.nights.start(name, host=HERE, pid=os.getpid(), flow_run_id=run_id, lease_until=lease)
    for number in range(4):
        scene.pending(f"drop {number}")
    scene.cycle()
    assert {name for name, run in scene.handed_over().items() if run} == {"drop 0", "drop 1"}
