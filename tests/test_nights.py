"""Nights in the store, on a real database: whose they are, what they hand out, and how they end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from storage.database import Database, open_database
from storage.jobs import JobStore, NewJob, NewSource
from storage.models import Job, JobState, Night, NightState
from storage.nights import NightStore, Standing

NOW = datetime(2026, 11, 23, 1, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
RUN: dict[str, Any] = {"host": "atelier", "pid": 7, "flow_run_id": "run-1", "lease_until": LATER}
RESULT: dict[str, Any] = {"result_folder": "/out/c_s", "result_files": {}, "rows": 48, "columns": 60}
CONTENT = NewSource(
    role="content",
    original_path="/c/lakes/contents/c.png",
    file_name="content.png",
    sha256="c" * 64,
    bytes=5,
    rows=64,
    columns=80,
)
STYLE = replace(CONTENT, role="style", original_path="/c/lakes/styles/s.png", file_name="style.png")
PAIR = NewJob(name="c_s", preset="fast", config={}, sources=(CONTENT, STYLE), collection="lakes", fingerprint="f" * 64)


@pytest.fixture
def database(where: str) -> Iterator[Database]:
    with open_database(where) as database:
        yield database


@pytest.fixture
def nights(database: Database) -> NightStore:
    return NightStore(database, clock=lambda: NOW)


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database, clock=lambda: NOW)


def started(nights: NightStore, collection: str = "lakes") -> Night:
    night, new = nights.start(collection, **RUN)
    assert new
    return night


def made(jobs: JobStore, night: Night, count: int = 1, **changes: Any) -> list[str]:
    """Pending jobs of the night, each of another fingerprint."""
    new = [
        replace(PAIR, **({"night_id": night.id, "fingerprint": f"{number:064}"} | changes)) for number in range(count)
    ]
    assert night.flow_run_id is not None
    ids = jobs.create_pending(new, night_id=night.id, flow_run_id=night.flow_run_id)
    assert ids is not None
    return ids


def run(jobs: JobStore, job_id: str) -> int:
    return jobs.start_attempt(job_id, host="atelier", pid=7, lease_until=LATER, flow_run_id="run-1")


def fields(row: Night | Job) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


def now_of(nights: NightStore, night: Night) -> Night:
    found = nights.get(night.id)
    assert found is not None
    return found


def test_a_night_is_its_runs_and_the_only_one_of_its_collection(nights: NightStore) -> None:
    night = started(nights)
    assert fields(night) == {
        **dict.fromkeys(fields(night)),
        "id": night.id,
        "collection": "lakes",
        "state": NightState.RUNNING,
        "started_at": NOW,
        "submission": 1,
        **RUN,
    }
    again, new = nights.start("lakes", **RUN | {"flow_run_id": "run-2"})
    assert (again.id, again.flow_run_id, new) == (night.id, "run-1", False)
    other = started(nights, "hills")
    assert [each.id for each in nights.running()] == sorted([night.id, other.id])
    nights.finish(night.id)
    assert started(nights).id != night.id


def test_of_processes_that_start_a_night_at_once_one_gets_it(where: str, nights: NightStore) -> None:
    found: list[tuple[str, bool]] = []

    def start() -> None:
        with open_database(where) as own:
            night, new = NightStore(own).start("lakes", **RUN)
            found.append((night.id, new))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new for _, new in found) == [False] * 7 + [True]
    assert len({night_id for night_id, _ in found}) == 1


def test_a_released_night_waits_for_another_run_with_its_waiting_jobs(nights: NightStore, jobs: JobStore) -> None:
    night = started(nights)
    waits, works = made(jobs, night, 2)
    handed_out = nights.hand_out(night.id, flow_run_id="run-1", lease_until=LATER, limit=9)
    assert handed_out == {waits: 1, works: 1}
    run(jobs, works)
    assert nights.release(night.id, submission=1, lease_until=LATER)
    released = {"host": None, "pid": None, "flow_run_id": None, "lease_until": LATER, "submission": 2}
    assert fields(now_of(nights, night)) == fields(night) | released
    waiting, working = jobs.get(waits), jobs.get(works)
    assert (waiting.state, waiting.flow_run_id, waiting.lease_until, waiting.submission) == (
        JobState.PENDING,
        None,
        None,
        2,
    )
    assert (working.state, working.flow_run_id, working.submission) == (JobState.RUNNING, "run-1", 1)
    # Who comes second has nothing to release.
    assert not nights.release(night.id, submission=1)
    assert now_of(nights, night).submission == 2


def test_a_night_is_taken_over_only_by_the_run_that_it_was_handed_to(nights: NightStore) -> None:
    night, second = started(nights), RUN | {"flow_run_id": "run-2", "pid": 8}
    assert nights.take_over(night.id, **second) is None
    nights.release(night.id, submission=1)
    nights.note_submission(night.id, submission=2, flow_run_id="run-2", lease_until=LATER)
    assert nights.take_over(night.id, **second | {"flow_run_id": "run-3"}) is None
    taken = nights.take_over(night.id, **second)
    assert taken is not None
    assert fields(taken) == fields(night) | second | {"submission": 2}
    # Noted late, it changes nothing.
    nights.note_submission(night.id, submission=2, flow_run_id="run-2", lease_until=NOW)
    assert now_of(nights, night).lease_until == LATER
    nights.finish(night.id)
    assert nights.take_over(night.id, **second) is None


def test_a_run_may_begin_before_its_submission_is_noted(nights: NightStore) -> None:
    night = started(nights)
    nights.release(night.id, submission=1)
    taken = nights.take_over(night.id, **RUN | {"flow_run_id": "run-2"})
    assert taken is not None
    assert taken.flow_run_id == "run-2"


def test_a_run_renews_all_its_nights_that_are_running(nights: NightStore) -> None:
    first, ended = started(nights), started(nights, "hills")
    other, _ = nights.start("seas", **RUN | {"flow_run_id": "run-2"})
    nights.finish(ended.id)
    late = LATER + timedelta(hours=1)
    nights.renew("run-1", lease_until=late)
    assert [now_of(nights, night).lease_until for night in (first, ended, other)] == [late, None, LATER]


def test_jobs_of_a_running_night_are_handed_out_by_it_alone(nights: NightStore, jobs: JobStore) -> None:
    night = started(nights)
    low, high = made(jobs, night), made(jobs, night, priority=5)
    held = made(jobs, night, lease_until=LATER)
    assert jobs.waiting(limit=9, now=NOW) == []
    assert nights.hand_out(night.id, flow_run_id="run-2", lease_until=LATER, limit=9) == {}
    assert nights.hand_out(night.id, flow_run_id="run-1", lease_until=LATER, limit=1) == {high[0]: 1}
    assert nights.hand_out(night.id, flow_run_id="run-1", lease_until=LATER, limit=9) == {low[0]: 1}
    assert nights.hand_out(night.id, flow_run_id="run-1", lease_until=LATER, limit=9) == {}
    assert [(jobs.get(job).flow_run_id, jobs.get(job).lease_until) for job in (*high, *held)] == [
        ("run-1", LATER),
        (None, LATER),
    ]
    assert jobs.submitted() == []
    nights.finish(night.id)
    # A job that is tried again later waits like any other.
    assert {job.job_id for job in jobs.submitted()} == {*low, *high}
    assert [job.id for job in jobs.waiting(limit=9, now=LATER + timedelta(seconds=1))] == held


def test_jobs_of_earlier_nights_become_the_nights_own(nights: NightStore, jobs: JobStore) -> None:
    before = started(nights)
    pending, running, failed, cancelled, completed = made(jobs, before, 5)
    for job_id in (running, failed, completed):
        run(jobs, job_id)
    jobs.fail(failed, attempt=1, error="The GPU is gone.")
    jobs.ask_cancel(cancelled)
    jobs.complete(completed, attempt=1, **RESULT)
    jobs.note_submission([pending], flow_run_id="run-0", lease_until=LATER)
    nights.finish(before.id)
    night = started(nights)
    kept = fields(jobs.get(completed))
    ids = [pending, running, failed, cancelled, completed]
    assert not nights.take_up(night.id, ids, flow_run_id="run-2")
    assert not nights.take_up(before.id, ids, flow_run_id="run-1")
    assert {jobs.get(job_id).night_id for job_id in ids} == {before.id}
    assert nights.take_up(night.id, ids, flow_run_id="run-1")
    found = {
        job_id: (job.state, job.night_id, job.flow_run_id, job.submission, job.attempts_before_retry, job.error)
        for job_id in (pending, running, failed, cancelled)
        for job in [jobs.get(job_id)]
    }
    assert found == {
        pending: (JobState.PENDING, night.id, None, 2, 0, None),
        running: (JobState.RUNNING, night.id, "run-1", 1, 0, None),
        failed: (JobState.PENDING, night.id, None, 2, 1, None),
        cancelled: (JobState.PENDING, night.id, None, 2, 0, None),
    }
    # It was completed after it had been found to be open.
    assert fields(jobs.get(completed)) == kept | {"night_id": night.id}


@pytest.mark.parametrize(
    ("outcomes", "problems", "error", "state"),
    [
        pytest.param(["completed", "cancelled"], [], None, NightState.COMPLETED, id="done"),
        pytest.param(["completed", "failed"], [], None, NightState.FAILED, id="a job failed"),
        pytest.param(
            ["completed"], [{"file": "a", "reason": "b", "pairs": 1}], None, NightState.FAILED, id="a problem"
        ),
        pytest.param([], [], "There is no folder styles.", NightState.FAILED, id="an error"),
    ],
)
def test_a_night_ends_with_its_counts(
    nights: NightStore,
    jobs: JobStore,
    outcomes: list[str],
    problems: list[dict[str, Any]],
    error: str | None,
    state: NightState,
) -> None:
    night = started(nights)
    nights.note_plan(night.id, pairs=9, done_before=3, problems=problems)
    for job_id, outcome in zip(made(jobs, night, len(outcomes)), outcomes, strict=True):
        run(jobs, job_id)
        match outcome:
            case "completed":
                jobs.complete(job_id, attempt=1, **RESULT)
            case "failed":
                jobs.fail(job_id, attempt=1, error="The GPU is gone.")
            case _:
                jobs.cancel(job_id, attempt=1)
    ended = nights.finish(night.id, contact_sheet="/out/sheet.jpg", error=error)
    assert ended is not None
    expected = {
        "state": state,
        "finished_at": NOW,
        "lease_until": None,
        "pairs": 9,
        "done_before": 3,
        "problems": problems,
        "contact_sheet": "/out/sheet.jpg",
        "error": error,
        **{outcome: outcomes.count(outcome) for outcome in ("completed", "failed", "cancelled")},
    }
    assert fields(ended) == fields(night) | expected
    assert fields(now_of(nights, night)) == fields(ended)
    assert nights.finish(night.id) is None
    assert nights.cancel(night.id) is None


def test_a_cancelled_night_cancels_what_is_left_of_it(nights: NightStore, jobs: JobStore) -> None:
    night = started(nights)
    pending, running, completed = made(jobs, night, 3)
    run(jobs, running)
    run(jobs, completed)
    jobs.complete(completed, attempt=1, **RESULT)
    (other,) = made(jobs, started(nights, "hills"))
    ended = nights.cancel(night.id)
    assert ended is not None
    counts = {"completed": 1, "failed": 0, "cancelled": 2}
    assert fields(ended) == fields(night) | counts | {
        "state": NightState.CANCELLED,
        "finished_at": NOW,
        "lease_until": None,
    }
    assert [jobs.state_of(job_id) for job_id in (pending, running, completed, other)] == [
        JobState.CANCELLED,
        JobState.CANCELLING,
        JobState.COMPLETED,
        JobState.PENDING,
    ]
    assert jobs.get(pending).finished_at == NOW
    assert nights.counts(night.id) == dict.fromkeys(JobState, 0) | {
        JobState.CANCELLED: 1,
        JobState.CANCELLING: 1,
        JobState.COMPLETED: 1,
    }


def test_of_the_jobs_of_a_pair_the_best_tells_how_it_stands(nights: NightStore, jobs: JobStore) -> None:
    night = started(nights)
    paths = ("/c/lakes/contents/c.png", "/c/lakes/styles/s.png")
    failed, completed, second = (made(jobs, night, fingerprint="a" * 64)[0] for _ in range(3))
    (lost,), (waits,) = made(jobs, night, fingerprint="b" * 64), made(jobs, night, fingerprint="c" * 64)
    for job_id in (failed, completed, second, lost):
        run(jobs, job_id)
    for job_id in (failed, second, lost):
        jobs.fail(job_id, attempt=1, error="The GPU is gone.")
    jobs.complete(completed, attempt=1, **RESULT)
    made(jobs, night, collection="hills", fingerprint="d" * 64)
    assert nights.standings("lakes") == {
        "a" * 64: Standing(completed, JobState.COMPLETED, night.id, ()),
        "b" * 64: Standing(lost, JobState.FAILED, night.id, paths),
        "c" * 64: Standing(waits, JobState.PENDING, night.id, paths),
    }
    assert nights.results("lakes") == {"a" * 64: "/out/c_s"}


def test_the_last_night_is_the_newest_and_its_jobs_come_by_age(database: Database) -> None:
    times = iter(NOW + timedelta(seconds=number) for number in range(99))
    nights = NightStore(database, clock=lambda: next(times))
    jobs = JobStore(database, clock=lambda: next(times))
    first = started(nights)
    nights.finish(first.id)
    second = started(nights)
    ids = made(jobs, second, 3)
    last = nights.last("lakes")
    assert last is not None
    assert (last.id, nights.last("hills")) == (second.id, None)
    assert [job.id for job in nights.jobs(second.id, limit=2)] == ids[:2]


def test_a_night_that_runs_is_the_last_also_when_the_clock_was_set_back(database: Database) -> None:
    times = iter([NOW, LATER, NOW - timedelta(days=1), LATER])
    nights = NightStore(database, clock=lambda: next(times))
    before = started(nights)
    nights.finish(before.id)
    running = started(nights)
    assert now_of(nights, running).started_at < now_of(nights, before).started_at
    last = nights.last("lakes")
    assert last is not None
    assert last.id == running.id
    nights.finish(running.id)
    last = nights.last("lakes")
    assert last is not None
    assert last.id == before.id


def test_a_drop_does_not_wait_for_a_twin_that_waits_in_a_night(database: Database, nights: NightStore) -> None:
    times = iter(NOW + timedelta(seconds=number) for number in range(99))
    jobs = JobStore(database, clock=lambda: next(times))
    (own,) = made(jobs, started(nights), fingerprint="e" * 64)
    drop = jobs.create(replace(PAIR, collection=None, fingerprint="e" * 64))
    jobs.make_pending(drop.id)
    assert jobs.behind_a_twin([drop]) == set()
    run(jobs, own)
    assert jobs.behind_a_twin([drop]) == {drop.id}


def test_jobs_are_made_only_by_the_run_that_has_the_night(nights: NightStore, jobs: JobStore) -> None:
    night = started(nights)
    assert nights.holds(night.id, flow_run_id="run-1")
    assert jobs.create_pending([PAIR], night_id=night.id, flow_run_id="run-2") is None
    nights.cancel(night.id)
    assert jobs.create_pending([PAIR], night_id=night.id, flow_run_id="run-1") is None
    assert (nights.holds(night.id, flow_run_id="run-1"), jobs.recent(limit=9)) == (False, [])


def test_a_job_that_a_night_has_taken_up_is_handed_to_no_other_run(nights: NightStore, jobs: JobStore) -> None:
    before = started(nights)
    (job_id,) = made(jobs, before)
    nights.finish(before.id)
    # The dispatcher finds it, submits a run for it, and notes that when a night has begun.
    (found,) = jobs.waiting(limit=9, now=LATER)
    night = started(nights)
    nights.take_up(night.id, [found.id], flow_run_id="run-1")
    jobs.note_submission([found.id], flow_run_id="burst", lease_until=LATER)
    assert jobs.get(job_id).flow_run_id is None
    assert nights.hand_out(night.id, flow_run_id="run-1", lease_until=LATER, limit=9) == {job_id: 2}
    assert (nights.not_begun(night.id, flow_run_id="run-1"), nights.not_begun(night.id, flow_run_id="run-2")) == (1, 0)


def test_many_jobs_are_made_at_once_in_their_order(nights: NightStore, database: Database) -> None:
    ids = iter(["a" * 10, "a" * 10, "b" * 10, "a" * 10, "c" * 10])
    jobs = JobStore(database, clock=lambda: NOW, make_id=lambda: next(ids))
    night = started(nights)
    assert made(jobs, night, 3) == ["a" * 10, "b" * 10, "c" * 10]
    job = jobs.get("b" * 10)
    assert (job.state, job.collection, job.night_id, job.manifest) == (JobState.PENDING, "lakes", night.id, None)
    assert [(source.role, source.original_path) for source in job.sources] == [
        ("content", CONTENT.original_path),
        ("style", STYLE.original_path),
    ]
