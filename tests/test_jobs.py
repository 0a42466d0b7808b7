"""The life of jobs in the store, on a real database."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from storage.database import Database, open_database
from storage.errors import AmbiguousJobError, JobNotFoundError, JobStateError
from storage.jobs import TRANSITIONS, JobStore, NewJob, NewLossPoint, NewSource, new_job_id
from storage.models import Attempt, Job, JobState, LossPoint, Source

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that goes on one second each time it is read."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        now = self.now
        self.now += timedelta(seconds=1)
        return now


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


CONTENT = NewSource(
    role="content",
    original_path="/home/ann/cat.jpg",
    file_name="content.jpg",
    sha256="c" * 64,
    bytes=5_000_000_000,
    rows=400,
    columns=533,
)
STYLE = replace(CONTENT, role="style", original_path="/home/ann/night.png", file_name="style.png", sha256="5" * 64)
CAT = NewJob(name="cat", preset="fast", config={"iterations": 300, "tv": 0.5}, sources=(STYLE, CONTENT, STYLE))
ENVIRONMENT: dict[str, Any] = {
    "weights_name": "vgg19",
    "weights_sha256": "e" * 64,
    "precision": "bfloat16",
    "device": "gpu:0 NVIDIA H100",
    "versions": {"tensorflow": "2.21.0"},
}
RESULT: dict[str, Any] = {
    "result_folder": "/home/ann/out",
    "result_files": {"result": "result.png"},
    "rows": 400,
    "columns": 533,
}


def point(iteration: int, total: float = 10.0, **changes: Any) -> NewLossPoint:
    values: dict[str, Any] = {
        "iteration": iteration,
        "total": total,
        "content": 4.0,
        "style": 5.0,
        "tv": 1.0,
        "layers": {"content/block5_conv2": 4.0, "style/block1_conv1": 5.0},
        "learning_rate": 2.5,
        "seconds": iteration / 2,
    }
    return NewLossPoint(**(values | changes))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path / "nst.db") as database:
        yield database


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database, clock=Clock())


def fields(row: Job | Source | Attempt | LossPoint) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


def whole(job: Job) -> dict[str, Any]:
    """Everything remembered about a job but its losses."""
    return fields(job) | {
        "sources": [fields(source) for source in job.sources],
        "attempts": [fields(attempt) for attempt in job.attempts],
    }


def claimed(store: JobStore) -> str:
    return store.create(CAT).id


def pending(store: JobStore) -> str:
    job_id = claimed(store)
    store.make_pending(job_id)
    return job_id


def running(store: JobStore) -> str:
    job_id = pending(store)
    store.start_attempt(job_id, host="atelier", pid=7)
    return job_id


def completed(store: JobStore) -> str:
    job_id = running(store)
    store.complete(job_id, attempt=1, **RESULT)
    return job_id


def failed(store: JobStore) -> str:
    job_id = running(store)
    store.fail(job_id, attempt=1, error="The GPU is gone.")
    return job_id


def cancelled(store: JobStore) -> str:
    job_id = running(store)
    store.cancel(job_id, attempt=1)
    return job_id


def rejected(store: JobStore) -> str:
    job_id = claimed(store)
    store.reject(job_id, error="The picture is empty.")
    return job_id


def test_a_new_job_is_claimed_and_keeps_what_it_was_made_from(store: JobStore) -> None:
    job = store.create(CAT)
    source = {"bytes": 5_000_000_000, "rows": 400, "columns": 533, "job_id": job.id}
    style = source | {
        "role": "style",
        "original_path": "/home/ann/night.png",
        "file_name": "style.png",
        "sha256": "5" * 64,
    }
    content = source | {
        "role": "content",
        "original_path": "/home/ann/cat.jpg",
        "file_name": "content.jpg",
        "sha256": "c" * 64,
    }
    expected = dict.fromkeys(column.key for column in Job.__table__.columns) | {
        "id": job.id,
        "name": "cat",
        "state": JobState.CLAIMED,
        "preset": "fast",
        "config": {"iterations": 300, "tv": 0.5},
        "created_at": at(0),
        "sources": [content | {"position": 0}, style | {"position": 0}, style | {"position": 1}],
        "attempts": [],
    }
    assert whole(job) == expected
    assert whole(store.get(job.id)) == expected


def test_the_whole_life_of_a_job(store: JobStore) -> None:
    job_id = pending(store)
    before = whole(store.get(job_id))
    attempt = store.start_attempt(job_id, host="atelier", pid=7, flow_run_id="run-1")
    store.record_environment(job_id, attempt=attempt, **ENVIRONMENT)
    store.complete(job_id, attempt=attempt, **RESULT)
    assert whole(store.get(job_id)) == before | ENVIRONMENT | {
        "state": JobState.COMPLETED,
        "host": "atelier",
        "result_folder": "/home/ann/out",
        "result_files": {"result": "result.png"},
        "result_rows": 400,
        "result_columns": 533,
        "started_at": at(1),
        "finished_at": at(2),
        "attempts": [
            {
                "job_id": job_id,
                "number": 1,
                "started_at": at(1),
                "finished_at": at(2),
                "outcome": JobState.COMPLETED,
                "error": None,
                "host": "atelier",
                "pid": 7,
                "device": "gpu:0 NVIDIA H100",
                "flow_run_id": "run-1",
            }
        ],
    }


def attempts_of(store: JobStore, job_id: str) -> list[tuple[Any, ...]]:
    return [
        (attempt.number, attempt.host, attempt.started_at, attempt.finished_at, attempt.outcome, attempt.error)
        for attempt in store.get(job_id).attempts
    ]


def test_a_new_attempt_takes_over_from_a_dead_one(store: JobStore) -> None:
    job_id = running(store)
    assert store.start_attempt(job_id, host="studio", pid=8) == 2
    job = store.get(job_id)
    assert (job.state, job.host, job.started_at) == (JobState.RUNNING, "studio", at(1))
    assert attempts_of(store, job_id) == [
        (1, "atelier", at(1), at(2), JobState.FAILED, "Another attempt took over."),
        (2, "studio", at(2), None, None, None),
    ]


LATE: dict[str, Callable[[JobStore, str], object]] = {
    "losses": lambda store, job_id: store.add_loss_points(job_id, attempt=1, points=[point(1)]),
    "environment": lambda store, job_id: store.record_environment(job_id, attempt=1, **ENVIRONMENT),
    "complete": lambda store, job_id: store.complete(job_id, attempt=1, **RESULT),
    "fail": lambda store, job_id: store.fail(job_id, attempt=1, error="late"),
    "cancel": lambda store, job_id: store.cancel(job_id, attempt=1),
}


@pytest.mark.parametrize("act", LATE.values(), ids=LATE)
def test_an_attempt_that_was_replaced_changes_nothing(store: JobStore, act: Callable[[JobStore, str], object]) -> None:
    job_id = running(store)
    store.start_attempt(job_id, host="studio", pid=8)
    before = whole(store.get(job_id))
    with pytest.raises(JobStateError, match=f"Attempt 1 at job {job_id} is not open"):
        act(store, job_id)
    assert (whole(store.get(job_id)), store.losses(job_id)) == (before, [])


@pytest.mark.parametrize("attempt", [1, None], ids=["named", "open"])
def test_a_failure_ends_job_and_attempt(store: JobStore, attempt: int | None) -> None:
    job_id = running(store)
    store.fail(job_id, attempt=attempt, error="The GPU is gone.")
    job = store.get(job_id)
    assert (job.state, job.error, job.finished_at) == (JobState.FAILED, "The GPU is gone.", at(2))
    assert attempts_of(store, job_id) == [(1, "atelier", at(1), at(2), JobState.FAILED, "The GPU is gone.")]


@pytest.mark.parametrize("attempt", [1, None], ids=["named", "open"])
def test_a_cancel_ends_job_and_attempt(store: JobStore, attempt: int | None) -> None:
    job_id = running(store)
    store.cancel(job_id, attempt=attempt)
    job = store.get(job_id)
    assert (job.state, job.error, job.finished_at) == (JobState.CANCELLED, None, at(2))
    assert attempts_of(store, job_id) == [(1, "atelier", at(1), at(2), JobState.CANCELLED, None)]


def test_a_rejected_job_says_why(store: JobStore) -> None:
    job = store.get(rejected(store))
    assert (job.state, job.error, job.finished_at) == (JobState.REJECTED, "The picture is empty.", at(1))


BEGINNINGS: dict[JobState, Callable[[JobStore], str]] = {
    JobState.CLAIMED: claimed,
    JobState.PENDING: pending,
    JobState.RUNNING: running,
    JobState.COMPLETED: completed,
    JobState.FAILED: failed,
    JobState.CANCELLED: cancelled,
    JobState.REJECTED: rejected,
}
MOVES: dict[JobState, Callable[[JobStore, str], object]] = {
    JobState.PENDING: lambda store, job_id: store.make_pending(job_id),
    JobState.RUNNING: lambda store, job_id: store.start_attempt(job_id, host="atelier", pid=7),
    JobState.COMPLETED: lambda store, job_id: store.complete(job_id, attempt=1, **RESULT),
    JobState.FAILED: lambda store, job_id: store.fail(job_id, attempt=None, error="broken"),
    JobState.CANCELLED: lambda store, job_id: store.cancel(job_id, attempt=None),
    JobState.REJECTED: lambda store, job_id: store.reject(job_id, error="no picture"),
}
ALLOWED = {
    ("claimed", "pending"),
    ("claimed", "failed"),
    ("claimed", "cancelled"),
    ("claimed", "rejected"),
    ("pending", "running"),
    ("pending", "failed"),
    ("pending", "cancelled"),
    ("running", "running"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelled"),
}


@pytest.mark.parametrize(("old", "new"), list(product(BEGINNINGS, MOVES)), ids=lambda state: state.value)
def test_states_move_only_along_the_life_of_a_job(store: JobStore, old: JobState, new: JobState) -> None:
    job_id = BEGINNINGS[old](store)
    before = whole(store.get(job_id))
    if (old, new) in ALLOWED:
        MOVES[new](store, job_id)
        assert store.get(job_id).state == new
    else:
        with pytest.raises(JobStateError, match=f"Job {job_id} is {old} and cannot become {new}"):
            MOVES[new](store, job_id)
        assert whole(store.get(job_id)) == before


def test_every_state_has_its_place_in_the_life_of_a_job() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert set().union(*TRANSITIONS.values()) == set(JobState) - {JobState.CLAIMED}


@pytest.mark.parametrize(
    "act",
    [
        *MOVES.values(),
        LATE["losses"],
        LATE["environment"],
        lambda store, job_id: store.get(job_id),
        lambda store, job_id: store.find(job_id),
        lambda store, job_id: store.find(""),
    ],
    ids=[*MOVES, "losses", "environment", "get", "find", "find nothing"],
)
def test_an_unknown_job_is_named(store: JobStore, act: Callable[[JobStore, str], object]) -> None:
    claimed(store)
    with pytest.raises(JobNotFoundError, match=r"There is no job '(nothing)?'"):
        act(store, "nothing")


def test_of_two_processes_only_one_moves_a_job(tmp_path: Path) -> None:
    with open_database(tmp_path / "nst.db") as first, open_database(tmp_path / "nst.db") as second:
        job_id = pending(JobStore(first))
        outcomes: list[str] = []
        start = threading.Barrier(2)

        def move(store: JobStore, act: Callable[[JobStore, str], object]) -> None:
            start.wait(30)
            try:
                act(store, job_id)
                outcomes.append("moved")
            except JobStateError:
                outcomes.append("refused")

        threads = [
            threading.Thread(target=move, args=(JobStore(database), MOVES[state]))
            for database, state in ((first, JobState.FAILED), (second, JobState.CANCELLED))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["moved", "refused"]


def test_ids_are_ten_characters_that_cannot_be_confused() -> None:
    ids = {new_job_id() for _ in range(500)}
    assert len(ids) == 500
    assert {len(job_id) for job_id in ids} == {10}
    assert set("".join(ids)) == set("0123456789abcdefghjkmnpqrstvwxyz")


def test_an_id_that_is_taken_is_drawn_again(database: Database) -> None:
    draws = iter(["aaaaaaaaaa", "aaaaaaaaaa", "aaaaaaaaaa", "bbbbbbbbbb"])
    store = JobStore(database, make_id=lambda: next(draws))
    assert [claimed(store), claimed(store)] == ["aaaaaaaaaa", "bbbbbbbbbb"]


@pytest.fixture
def named(database: Database) -> JobStore:
    """Jobs of known names, oldest first, with these ids filled up with zeros."""
    names = {"abc1": "cat", "abd2": "dog", "b003": "dog", "c00n": "night sky", "c10n": "abd"}
    names |= {f"dd{n}": "many" for n in range(6)}
    ids = iter(names)
    store = JobStore(database, clock=Clock(), make_id=lambda: next(ids).ljust(10, "0"))
    for name in names.values():
        store.create(replace(CAT, name=name))
    return store


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        pytest.param("abc1000000", "abc1000000", id="id"),
        pytest.param("ABC1000000", "abc1000000", id="id in capitals"),
        pytest.param("abc", "abc1000000", id="prefix"),
        pytest.param("cat", "abc1000000", id="name"),
        pytest.param("night sky", "c00n000000", id="name with a space"),
    ],
)
def test_a_job_is_found_by_id_prefix_and_name(named: JobStore, reference: str, found: str) -> None:
    assert named.find(reference).id == found


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        pytest.param("ab", "'ab' fits several jobs: abd2000000, abc1000000; give the id of one of them.", id="prefix"),
        pytest.param("dog", "'dog' fits several jobs: b003000000, abd2000000; give", id="name"),
        pytest.param("abd", "'abd' fits several jobs: c10n000000, abd2000000; give", id="prefix and name"),
        pytest.param(
            "many",
            "'many' fits several jobs: dd50000000, dd40000000, dd30000000, dd20000000, dd10000000, ...; give",
            id="more than five",
        ),
    ],
)
def test_a_reference_that_fits_several_jobs_lists_them(named: JobStore, reference: str, message: str) -> None:
    with pytest.raises(AmbiguousJobError) as caught:
        named.find(reference)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("reference", ["ab%", "_", "Cat", "cät", "caf\udce9", "abc10000000"])
def test_a_reference_is_no_pattern(named: JobStore, reference: str) -> None:
    with pytest.raises(JobNotFoundError):
        named.find(reference)


def test_recent_jobs_come_newest_first(store: JobStore) -> None:
    ids = [claimed(store), pending(store), claimed(store), running(store)]
    newest = ids[::-1]
    assert [job.id for job in store.recent(limit=10)] == newest
    assert [job.id for job in store.recent(limit=2)] == newest[:2]
    assert [job.id for job in store.recent(limit=10, state=JobState.CLAIMED)] == [ids[2], ids[0]]
    assert whole(store.recent(limit=1)[0]) == whole(store.get(ids[3]))


def test_jobs_made_at_one_moment_keep_one_order(database: Database) -> None:
    ids = iter(["b" * 10, "c" * 10, "a" * 10])
    store = JobStore(database, clock=lambda: START, make_id=lambda: next(ids))
    for _ in range(3):
        claimed(store)
    assert [job.id[0] for job in store.recent(limit=10)] == ["c", "b", "a"]


def curve(points: list[LossPoint]) -> list[tuple[int, int, float]]:
    return [(p.iteration, p.attempt, p.total) for p in points]


def test_loss_points_come_back_whole_and_in_order(store: JobStore) -> None:
    job_id = running(store)
    store.add_loss_points(job_id, attempt=1, points=[point(2, learning_rate=None), point(1)])
    store.add_loss_points(job_id, attempt=1, points=[])
    first = {
        "job_id": job_id,
        "iteration": 1,
        "attempt": 1,
        "total": 10.0,
        "content": 4.0,
        "style": 5.0,
        "tv": 1.0,
        "layers": {"content/block5_conv2": 4.0, "style/block1_conv1": 5.0},
        "learning_rate": 2.5,
        "seconds": 0.5,
    }
    second = first | {"iteration": 2, "learning_rate": None, "seconds": 1.0}
    assert [fields(loss) for loss in store.losses(job_id)] == [first, second]


def test_a_replayed_chunk_doubles_nothing(store: JobStore) -> None:
    job_id = running(store)
    store.add_loss_points(job_id, attempt=1, points=[point(1, 30.0), point(2, 20.0)])
    store.start_attempt(job_id, host="studio", pid=8)
    store.add_loss_points(job_id, attempt=2, points=[point(2, 21.0), point(3, 11.0)])
    assert curve(store.losses(job_id)) == [(1, 1, 30.0), (2, 2, 21.0), (3, 2, 11.0)]


def test_final_losses_of_many_jobs(store: JobStore) -> None:
    first, second, without, unasked = (running(store) for _ in range(4))
    store.add_loss_points(first, attempt=1, points=[point(1, 9.0), point(10, 5.0), point(9, 6.0)])
    store.add_loss_points(second, attempt=1, points=[point(1, 8.0)])
    store.add_loss_points(unasked, attempt=1, points=[point(1, 7.0)])
    found = store.final_losses([first, second, without])
    assert {job_id: loss.total for job_id, loss in found.items()} == {first: 5.0, second: 8.0}
    assert store.final_losses([]) == {}


@pytest.mark.parametrize("number", [nan, inf, -inf])
@pytest.mark.parametrize("field", ["total", "content", "style", "tv", "learning_rate", "seconds", "layers"])
def test_losses_that_are_not_finite_are_refused(field: str, number: float) -> None:
    with pytest.raises(ValueError, match="after iteration 3 are not finite"):
        point(3, **{field: {"style/block1_conv1": number} if field == "layers" else number})


def test_what_the_store_writes_is_plain_sql(store: JobStore, tmp_path: Path) -> None:
    job_id = running(store)
    raw = sqlite3.connect(tmp_path / "nst.db")
    row = raw.execute("SELECT id, state, config, versions, created_at FROM jobs").fetchone()
    raw.close()
    assert row == (job_id, "running", '{"iterations": 300, "tv": 0.5}', None, "2026-11-22 12:00:00.000000")
