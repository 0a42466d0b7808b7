"""The life of jobs in the store, on a real database."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from storage.database import Database, open_database
from storage.errors import AmbiguousJobError, JobNotFoundError, JobStateError, WorkspaceError
from storage.jobs import TRANSITIONS, JobStore, Manifest, NewJob, NewLossPoint, NewSource, new_job_id
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
DROP = Manifest(
    moves={Path("/inbox/cat/content.jpg"): "content.jpg", Path("/inbox/cat/caf\udce9.txt"): "caf_.txt"},
    folder=Path("/inbox/cat"),
    rejected_to=Path("/rejected/cat"),
)
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
        "scale": 2,
    }
    return NewLossPoint(**(values | changes))


@pytest.fixture
def database(where: str) -> Iterator[Database]:
    with open_database(where) as database:
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


def pending(store: JobStore, new: NewJob = CAT) -> str:
    job_id = store.create(new).id
    store.make_pending(job_id)
    return job_id


def begin(store: JobStore, job_id: str, host: str = "atelier", **claim: Any) -> int:
    return store.start_attempt(job_id, host=host, pid=7, lease_until=at(100), **claim)


def running(store: JobStore, new: NewJob = CAT) -> str:
    job_id = pending(store, new)
    begin(store, job_id)
    return job_id


def released(store: JobStore) -> str:
    job_id = running(store)
    store.release(job_id, error="The worker is gone.")
    return job_id


def cancelling(store: JobStore) -> str:
    job_id = running(store)
    store.ask_cancel(job_id)
    return job_id


def completed(store: JobStore, new: NewJob = CAT) -> str:
    job_id = running(store, new)
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
    store.reject(job_id, error="The picture is empty.", folder="/home/ann/rejected/cat")
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
        "priority": 0,
        "burst_size": 1,
        "submission": 1,
        "attempts_before_retry": 0,
        "sources": [content | {"position": 0}, style | {"position": 0}, style | {"position": 1}],
        "attempts": [],
    }
    assert whole(job) == expected
    assert whole(store.get(job.id)) == expected


def test_the_whole_life_of_a_job(store: JobStore) -> None:
    job_id = pending(store)
    before = whole(store.get(job_id))
    attempt = begin(store, job_id, flow_run_id="run-1", submission=1)
    assert (store.get(job_id).lease_until, store.get(job_id).flow_run_id) == (at(100), "run-1")
    store.record_environment(job_id, attempt=attempt, **ENVIRONMENT)
    store.enter_phase(job_id, attempt=attempt, phase="preprocess")
    store.enter_phase(job_id, attempt=attempt, phase="optimise")
    store.note_first_iteration(job_id, attempt=attempt, iteration=40)
    store.complete(job_id, attempt=attempt, **RESULT)
    assert whole(store.get(job_id)) == before | ENVIRONMENT | {
        "state": JobState.COMPLETED,
        "host": "atelier",
        "flow_run_id": "run-1",
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
                "phase": "optimise",
                "first_iteration": 40,
            }
        ],
    }


def attempts_of(store: JobStore, job_id: str) -> list[tuple[Any, ...]]:
    return [
        (attempt.number, attempt.host, attempt.started_at, attempt.finished_at, attempt.outcome, attempt.error)
        for attempt in store.get(job_id).attempts
    ]


def test_a_released_job_is_run_again(store: JobStore) -> None:
    job_id = pending(store)
    begin(store, job_id, flow_run_id="run-1")
    store.reserve_result(job_id, [Path("/nowhere/cat")])
    before = whole(store.get(job_id))
    store.release(job_id, error="The worker is gone.")
    after = whole(store.get(job_id))
    assert after == before | {
        "state": JobState.PENDING,
        "flow_run_id": None,
        "lease_until": None,
        "submission": 2,
        "attempts": after["attempts"],
    }
    assert begin(store, job_id, host="studio", submission=2) == 2
    job = store.get(job_id)
    assert (job.state, job.host, job.started_at, job.lease_until) == (JobState.RUNNING, "studio", at(1), at(100))
    assert attempts_of(store, job_id) == [
        (1, "atelier", at(1), at(2), JobState.FAILED, "The worker is gone."),
        (2, "studio", at(3), None, None, None),
    ]


LATE: dict[str, Callable[[JobStore, str], object]] = {
    "losses": lambda store, job_id: store.add_loss_points(job_id, attempt=1, points=[point(1)]),
    "environment": lambda store, job_id: store.record_environment(job_id, attempt=1, **ENVIRONMENT),
    "complete": lambda store, job_id: store.complete(job_id, attempt=1, **RESULT),
    "fail": lambda store, job_id: store.fail(job_id, attempt=1, error="late"),
    "cancel": lambda store, job_id: store.cancel(job_id, attempt=1),
    "renew": lambda store, job_id: store.renew(job_id, attempt=1, lease_until=at(200)),
    "phase": lambda store, job_id: store.enter_phase(job_id, attempt=1, phase="publish"),
    "first iteration": lambda store, job_id: store.note_first_iteration(job_id, attempt=1, iteration=40),
}


@pytest.mark.parametrize("act", LATE.values(), ids=LATE)
def test_an_attempt_that_was_replaced_changes_nothing(store: JobStore, act: Callable[[JobStore, str], object]) -> None:
    job_id = released(store)
    begin(store, job_id, host="studio")
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


@pytest.mark.parametrize("begin_job", [running, cancelling])
@pytest.mark.parametrize("attempt", [1, None], ids=["named", "open"])
def test_a_cancel_ends_job_and_attempt(
    store: JobStore, begin_job: Callable[[JobStore], str], attempt: int | None
) -> None:
    job_id = begin_job(store)
    store.cancel(job_id, attempt=attempt)
    job = store.get(job_id)
    assert (job.state, job.error, job.finished_at) == (JobState.CANCELLED, None, at(2))
    assert attempts_of(store, job_id) == [(1, "atelier", at(1), at(2), JobState.CANCELLED, None)]


def test_a_rejected_job_says_why(store: JobStore) -> None:
    job = store.get(rejected(store))
    assert (job.state, job.error, job.finished_at) == (JobState.REJECTED, "The picture is empty.", at(1))
    assert job.result_folder == "/home/ann/rejected/cat"


BEGINNINGS: dict[str, Callable[[JobStore], str]] = {
    "claimed": claimed,
    "pending": pending,
    "running": running,
    "completed": completed,
    "failed": failed,
    "cancelling": cancelling,
    "cancelled": cancelled,
    "rejected": rejected,
}
MOVES: dict[str, Callable[[JobStore, str], object]] = {
    "make pending": lambda store, job_id: store.make_pending(job_id),
    "start": lambda store, job_id: begin(store, job_id),
    "complete": lambda store, job_id: store.complete(job_id, attempt=1, **RESULT),
    "reuse": lambda store, job_id: store.reuse(job_id, twin_id=completed(store), **RESULT),
    "fail": lambda store, job_id: store.fail(job_id, attempt=None, error="broken"),
    "ask cancel": lambda store, job_id: store.ask_cancel(job_id),
    "cancel": lambda store, job_id: store.cancel(job_id, attempt=None),
    "reject": lambda store, job_id: store.reject(job_id, error="no picture", folder="/rejected/cat"),
    "release": lambda store, job_id: store.release(job_id, error="gone"),
    "retry": lambda store, job_id: store.retry(job_id),
    "forget": lambda store, job_id: store.forget(job_id),
    "withdraw": lambda store, job_id: store.withdraw_submission(job_id),
    "reserve": lambda store, job_id: store.reserve_result(job_id, [Path("/nowhere/cat")]),
}
# What each does from the states from which it can be done; None: the job is gone.
ALLOWED: dict[tuple[str, str], JobState | None] = {
    ("claimed", "make pending"): JobState.PENDING,
    ("claimed", "fail"): JobState.FAILED,
    ("claimed", "cancel"): JobState.CANCELLED,
    ("claimed", "reject"): JobState.REJECTED,
    ("claimed", "forget"): None,
    ("pending", "start"): JobState.RUNNING,
    ("pending", "reuse"): JobState.COMPLETED,
    ("pending", "fail"): JobState.FAILED,
    ("pending", "ask cancel"): JobState.CANCELLED,
    ("pending", "cancel"): JobState.CANCELLED,
    ("pending", "withdraw"): JobState.PENDING,
    ("pending", "reserve"): JobState.PENDING,
    ("running", "complete"): JobState.COMPLETED,
    ("running", "fail"): JobState.FAILED,
    ("running", "ask cancel"): JobState.CANCELLING,
    ("running", "cancel"): JobState.CANCELLED,
    ("running", "release"): JobState.PENDING,
    ("running", "reserve"): JobState.RUNNING,
    ("cancelling", "complete"): JobState.COMPLETED,
    ("cancelling", "ask cancel"): JobState.CANCELLING,
    ("cancelling", "cancel"): JobState.CANCELLED,
    ("failed", "retry"): JobState.PENDING,
    ("cancelled", "retry"): JobState.PENDING,
}


@pytest.mark.parametrize("action", MOVES)
@pytest.mark.parametrize("old", BEGINNINGS)
def test_jobs_change_only_along_their_life(store: JobStore, old: str, action: str) -> None:
    job_id = BEGINNINGS[old](store)
    before = whole(store.get(job_id))
    if (old, action) not in ALLOWED:
        with pytest.raises(JobStateError, match=f"Job {job_id} is {old} and cannot "):
            MOVES[action](store, job_id)
        assert whole(store.get(job_id)) == before
        return
    MOVES[action](store, job_id)
    new = ALLOWED[old, action]
    if new is None:
        with pytest.raises(JobNotFoundError):
            store.get(job_id)
    else:
        assert store.state_of(job_id) is new


@pytest.mark.parametrize("end", ["complete", "reuse", "fail", "ask cancel", "cancel", "reject"])
def test_an_end_leaves_no_lease_and_only_a_success_a_result_folder(store: JobStore, end: str) -> None:
    job_id = store.create(replace(CAT, lease_until=at(100))).id
    if end != "reject":
        store.make_pending(job_id)
        store.reserve_result(job_id, [Path("/nowhere/cat")])
    if end == "complete":
        begin(store, job_id)
    MOVES[end](store, job_id)
    job = store.get(job_id)
    folders = {"complete": "/home/ann/out", "reuse": "/home/ann/out", "reject": "/rejected/cat"}
    assert (job.lease_until, job.result_folder) == (None, folders.get(end))
    assert job.finished_at is not None


def test_every_state_has_its_place_in_the_life_of_a_job() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {(old, new) for old, following in TRANSITIONS.items() for new in following} == {
        *(
            (JobState.CLAIMED, new)
            for new in (JobState.PENDING, JobState.FAILED, JobState.CANCELLED, JobState.REJECTED)
        ),
        *((JobState.PENDING, new) for new in (JobState.RUNNING, JobState.COMPLETED, JobState.FAILED)),
        *((JobState.RUNNING, new) for new in (JobState.PENDING, JobState.COMPLETED, JobState.FAILED)),
        (JobState.PENDING, JobState.CANCELLED),
        (JobState.RUNNING, JobState.CANCELLING),
        (JobState.CANCELLING, JobState.CANCELLED),
        (JobState.CANCELLING, JobState.COMPLETED),
        (JobState.FAILED, JobState.PENDING),
        (JobState.CANCELLED, JobState.PENDING),
    }


@pytest.mark.parametrize(
    "act",
    [
        *MOVES.values(),
        *LATE.values(),
        lambda store, job_id: store.state_of(job_id),
        lambda store, job_id: store.reuse(pending(store), twin_id=job_id, **RESULT),
        lambda store, job_id: store.get(job_id),
        lambda store, job_id: store.find(job_id),
        lambda store, job_id: store.find(""),
    ],
    ids=[*MOVES, *(f"late {act}" for act in LATE), "state", "twin", "get", "find", "find nothing"],
)
def test_an_unknown_job_is_named(store: JobStore, act: Callable[[JobStore, str], object]) -> None:
    claimed(store)
    with pytest.raises(JobNotFoundError, match=r"There is no job '(nothing)?'"):
        act(store, "nothing")


def test_of_two_processes_only_one_moves_a_job(where: str) -> None:
    with open_database(where) as first, open_database(where) as second:
        job_id = pending(JobStore(first))
        outcomes: list[str] = []
        start = threading.Barrier(2)

        def move(store: JobStore) -> None:
            start.wait(30)
            try:
                begin(store, job_id)
                outcomes.append("moved")
            except JobStateError:
                outcomes.append("refused")

        threads = [threading.Thread(target=move, args=(JobStore(database),)) for database in (first, second)]
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
        pytest.param("abd", "c10n000000", id="name that another's id begins with"),
    ],
)
def test_a_job_is_found_by_id_prefix_and_name(named: JobStore, reference: str, found: str) -> None:
    assert named.find(reference).id == found


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        pytest.param("ab", "'ab' fits several jobs: abd2000000, abc1000000; give the id of one of them.", id="prefix"),
        pytest.param("dog", "'dog' fits several jobs: b003000000, abd2000000; give", id="name"),
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
        "scale": 2,
    }
    second = first | {"iteration": 2, "learning_rate": None, "seconds": 1.0}
    assert [fields(loss) for loss in store.losses(job_id)] == [first, second]


def test_a_replayed_chunk_doubles_nothing(store: JobStore) -> None:
    job_id = running(store)
    store.add_loss_points(job_id, attempt=1, points=[point(1, 30.0), point(2, 20.0)])
    store.release(job_id, error="The worker is gone.")
    begin(store, job_id)
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


def test_what_the_store_writes_is_plain_sql(store: JobStore, database: Database) -> None:
    job_id = running(store)
    columns = ("id", "state", "config", "versions", "manifest", "created_at")
    with database.session() as session:
        texts = ", ".join(f"CAST({name} AS TEXT)" for name in columns)
        row = session.execute(sa.text(f"SELECT {texts} FROM jobs")).one()
    assert row[:-1] == (job_id, "running", '{"iterations": 300, "tv": 0.5}', None, None)
    assert row[-1].startswith("2026-11-22 12:00:00")


def test_a_drop_keeps_its_fingerprint_priority_and_manifest(store: JobStore) -> None:
    new = replace(CAT, fingerprint="f" * 64, priority=3, manifest=DROP, lease_until=at(50))
    job = store.get(store.create(new).id)
    assert (job.fingerprint, job.priority, job.lease_until, job.error) == ("f" * 64, 3, at(50), None)
    assert job.manifest == {
        "moves": {"/inbox/cat/content.jpg": "content.jpg", "/inbox/cat/caf\udce9.txt": "caf_.txt"},
        "folder": "/inbox/cat",
        "rejected_to": "/rejected/cat",
    }
    assert Manifest.from_document(job.manifest) == DROP


def test_a_manifest_may_have_no_folders() -> None:
    manifest = Manifest(moves={Path("/inbox/cat_content.jpg"): "content.jpg"})
    assert Manifest.from_document(manifest.to_document()) == manifest


def test_claims_to_be_finished_come_oldest_first(store: JobStore) -> None:
    refused = store.create(replace(CAT, manifest=DROP, sources=(), rejection="The picture is empty.")).id
    good = store.create(replace(CAT, manifest=DROP)).id
    claimed(store)
    pending(store, replace(CAT, manifest=DROP))
    assert [(job.id, job.error, len(job.sources)) for job in store.claimed()] == [
        (refused, "The picture is empty.", 0),
        (good, None, 3),
    ]


def test_a_forgotten_job_leaves_no_rows(store: JobStore, database: Database) -> None:
    kept = claimed(store)
    store.forget(claimed(store))
    with database.session() as session:
        rows = session.scalars(sa.select(Source.job_id).distinct()).all()
    assert ([job.id for job in store.recent(limit=10)], rows) == ([kept], [kept])


PRINTED = replace(CAT, fingerprint="f" * 64)


def test_the_newest_completed_twin_is_found(store: JobStore) -> None:
    completed(store, PRINTED)
    newest = completed(store, PRINTED)
    for make in (pending, running):
        make(store, PRINTED)
    completed(store, replace(CAT, fingerprint="0" * 64))
    twin = store.completed_twin("f" * 64)
    assert twin is not None
    assert whole(twin) == whole(store.get(newest))
    assert store.completed_twin("1" * 64) is None


def test_a_twin_at_work_is_one_that_was_made_before(database: Database) -> None:
    # All at one moment: the ids decide.
    ids = iter(["a" * 10, "b" * 10, "c" * 10, "d" * 10, "e" * 10])
    store = JobStore(database, clock=lambda: START, make_id=lambda: next(ids))
    made = [completed(store, PRINTED), running(store, PRINTED), pending(store, PRINTED), pending(store, PRINTED)]
    _, second, third, fourth = made
    unprinted = pending(store)

    def behind() -> set[str]:
        return store.behind_a_twin([store.get(job_id) for job_id in (*made, unprinted)])

    assert behind() == {third, fourth}
    store.ask_cancel(second)
    assert behind() == {third, fourth}
    store.cancel(second, attempt=None)
    assert behind() == {fourth}


def test_an_earlier_moment_counts_before_the_id(database: Database) -> None:
    ids = iter(["b" * 10, "a" * 10])
    store = JobStore(database, clock=Clock(), make_id=lambda: next(ids))
    first, second = pending(store, PRINTED), pending(store, PRINTED)
    assert store.behind_a_twin([store.get(job_id) for job_id in (first, second)]) == {second}


def test_a_result_is_reused_with_its_losses_and_environment(store: JobStore) -> None:
    twin = running(store, PRINTED)
    store.record_environment(twin, attempt=1, **ENVIRONMENT)
    store.add_loss_points(twin, attempt=1, points=[point(1, 30.0), point(2, 20.0)])
    store.complete(twin, attempt=1, **RESULT)
    job_id = running(store, PRINTED)
    store.add_loss_points(job_id, attempt=1, points=[point(1, 31.0), point(3, 11.0)])
    store.release(job_id, error="The worker is gone.")
    before = whole(store.get(job_id))
    store.reuse(job_id, twin_id=twin, **RESULT | {"result_folder": "/home/ann/out-2"})
    assert whole(store.get(job_id)) == before | ENVIRONMENT | {
        "state": JobState.COMPLETED,
        "reused_from": twin,
        "result_folder": "/home/ann/out-2",
        "result_files": {"result": "result.png"},
        "result_rows": 400,
        "result_columns": 533,
        "started_at": at(6),
        "finished_at": at(6),
    }
    copied = [fields(loss) | {"job_id": twin, "attempt": 1} for loss in store.losses(job_id)]
    assert copied == [fields(loss) for loss in store.losses(twin)]
    assert curve(store.losses(job_id)) == [(1, 0, 30.0), (2, 0, 20.0)]


def test_only_a_completed_job_is_reused(store: JobStore) -> None:
    twin, job_id = failed(store), pending(store)
    with pytest.raises(JobStateError, match=f"Job {twin} is failed and has no result to reuse"):
        store.reuse(job_id, twin_id=twin, **RESULT)
    assert store.state_of(job_id) is JobState.PENDING


def test_result_folders_are_given_once(store: JobStore, tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("cat", "cat-2", "cat-3", "cat-4")]
    names[0].symlink_to(tmp_path / "gone")
    first, second = pending(store), running(store)
    assert [store.reserve_result(job_id, names) for job_id in (first, second, first)] == [names[1], names[2], names[1]]
    store.fail(second, attempt=1, error="broken")
    third = pending(store)
    assert store.reserve_result(third, iter(names)) == names[2]
    # What a completed job has made stays its own, also where the user has moved it away.
    store.complete(running(store), attempt=1, **RESULT | {"result_folder": str(names[3])})
    fourth = pending(store)
    with pytest.raises(WorkspaceError, match=f"No folder for the result of job {fourth} is free; name another"):
        store.reserve_result(fourth, names)
    assert [store.get(job_id).result_folder for job_id in (first, second, third, fourth)] == [
        str(names[1]),
        None,
        str(names[2]),
        None,
    ]


def test_processes_that_reserve_at_once_get_different_folders(tmp_path: Path, where: str) -> None:
    names = [tmp_path / f"cat-{number}" for number in range(8)]
    taken: list[Path] = []
    start = threading.Barrier(8)
    with open_database(where) as database:
        store = JobStore(database)
        jobs = [pending(store) for _ in names]

        def reserve(job_id: str) -> None:
            start.wait(30)
            with open_database(where) as own:
                taken.append(JobStore(own).reserve_result(job_id, names))

        threads = [threading.Thread(target=reserve, args=(job_id,)) for job_id in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(taken) == names


def test_waiting_jobs_come_by_priority_and_age(store: JobStore) -> None:
    low = pending(store, replace(CAT, priority=-1))
    first, second = pending(store), pending(store)
    high = pending(store, replace(CAT, priority=5))
    own = pending(store, replace(CAT, lease_until=at(50)))
    submitted = pending(store)
    store.note_submission([submitted], flow_run_id="run-1", lease_until=at(10))
    claimed(store)
    running(store)
    ordered = [high, first, second, low]
    assert [job.id for job in store.waiting(limit=10, now=at(50))] == ordered
    assert [job.id for job in store.waiting(limit=2, now=at(50))] == ordered[:2]
    assert [job.id for job in store.waiting(limit=10, now=at(51))] == [high, first, second, own, low]


def claims(store: JobStore) -> list[tuple[Any, ...]]:
    jobs = store.recent(limit=100)[::-1]
    return [(job.state.value, job.flow_run_id, job.lease_until, job.submission) for job in jobs]


def test_a_submission_is_noted_extended_and_withdrawn(store: JobStore) -> None:
    first, second, third = pending(store), pending(store), pending(store)
    begun = running(store)
    store.note_submission([first, second, begun], flow_run_id="run-1", lease_until=at(10))
    store.note_submission([third], flow_run_id="run-2", lease_until=at(10))
    assert [job.job_id for job in store.submitted()] == [first, second, third]
    store.extend_submission("run-1", lease_until=at(20))
    store.withdraw_submission(second)
    assert claims(store) == [
        ("pending", "run-1", at(20), 1),
        ("pending", None, None, 2),
        ("pending", "run-2", at(10), 1),
        ("running", None, at(100), 1),
    ]
    assert [job.job_id for job in store.submitted()] == [first, third]


def test_a_run_keeps_only_its_pending_jobs(store: JobStore) -> None:
    job_id = pending(store)
    begin(store, job_id, flow_run_id="run-1")
    store.extend_submission("run-1", lease_until=at(500))
    assert claims(store) == [("running", "run-1", at(100), 1)]


def test_open_runs_are_those_with_a_job_to_end(store: JobStore) -> None:
    made = {name: pending(store) for name in ("pending", "running", "cancelling", "completed", "failed")}
    pending(store)
    for name, job_id in made.items():
        store.note_submission([job_id], flow_run_id=name, lease_until=at(10))
        if name != "pending":
            begin(store, job_id, flow_run_id=name)
    store.ask_cancel(made["cancelling"])
    store.complete(made["completed"], attempt=1, **RESULT)
    store.fail(made["failed"], attempt=1, error="broken")
    assert store.open_runs() == {"pending", "running", "cancelling"}


def test_a_run_that_lost_a_job_cannot_start_it(store: JobStore) -> None:
    job_id = pending(store)
    store.withdraw_submission(job_id)
    before = whole(store.get(job_id))
    with pytest.raises(JobStateError, match=f"Job {job_id} is at submission 2; submission 1 has lost it"):
        begin(store, job_id, submission=1)
    assert whole(store.get(job_id)) == before
    assert begin(store, job_id, submission=2) == 1


def test_a_lease_is_renewed_and_tells_of_a_cancel(store: JobStore) -> None:
    job_id = running(store)
    before = whole(store.get(job_id))
    assert store.renew(job_id, attempt=1, lease_until=at(200)) is JobState.RUNNING
    assert whole(store.get(job_id)) == before | {"lease_until": at(200)}
    store.ask_cancel(job_id)
    assert store.renew(job_id, attempt=1, lease_until=at(300)) is JobState.CANCELLING
    assert store.get(job_id).lease_until == at(300)


def test_overdue_are_jobs_at_work_without_a_lease(store: JobStore, database: Database) -> None:
    first, second, unleased = running(store), cancelling(store), running(store)
    pending(store)
    completed(store)
    with database.begin() as session:
        session.get_one(Job, unleased).lease_until = None
    assert [job.id for job in store.overdue(at(100))] == [unleased]
    assert [job.id for job in store.overdue(at(101))] == [first, second, unleased]


def test_held_are_jobs_whose_open_attempt_is_on_the_host(store: JobStore) -> None:
    here, stopping = running(store), cancelling(store)
    released(store)
    completed(store)
    moved = released(store)
    begin(store, moved, host="studio")
    assert [job.id for job in store.held("atelier")] == [here, stopping]
    assert [job.id for job in store.held("studio")] == [moved]


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_job_tried_again_starts_afresh(store: JobStore, end: str) -> None:
    job_id = released(store)
    store.note_submission([job_id], flow_run_id="run-2", lease_until=at(10))
    begin(store, job_id, flow_run_id="run-2")
    store.reserve_result(job_id, [Path("/nowhere/cat")])
    MOVES[end](store, job_id)
    before = whole(store.get(job_id))
    store.retry(job_id)
    assert whole(store.get(job_id)) == before | {
        "state": JobState.PENDING,
        "error": None,
        "finished_at": None,
        "flow_run_id": None,
        "submission": 3,
        "attempts_before_retry": 2,
    }
    assert begin(store, job_id, submission=3) == 3


def test_a_job_that_was_asked_to_stop_says_so(store: JobStore) -> None:
    waits, runs = pending(store), running(store)
    assert [store.ask_cancel(job_id) for job_id in (waits, runs, runs)] == [
        JobState.CANCELLED,
        JobState.CANCELLING,
        JobState.CANCELLING,
    ]
    assert (store.get(waits).finished_at, store.get(runs).finished_at) == (at(3), None)


def test_jobs_are_counted_by_state(store: JobStore) -> None:
    for make in (pending, pending, running, failed):
        make(store)
    counted = {JobState.PENDING: 2, JobState.RUNNING: 1, JobState.FAILED: 1}
    assert store.counts() == dict.fromkeys(JobState, 0) | counted


def test_finished_jobs_come_in_the_order_of_their_ends(store: JobStore) -> None:
    late = running(store)
    ended = [completed(store), failed(store), cancelled(store), rejected(store)]
    running(store)
    store.fail(late, attempt=1, error="broken")
    ends = [*ended, late]
    times = [store.get(job_id).finished_at for job_id in ends]
    assert [job.id for job in store.finished_after(START, limit=10)] == ends
    assert times[1] is not None
    assert [job.id for job in store.finished_after(times[1], limit=2)] == ends[2:4]


def test_completed_among_gives_those_that_were_completed_before(store: JobStore) -> None:
    done, waiting = completed(store), pending(store)
    ids = [done, waiting, "nosuchjob0"]
    finished = store.get(done).finished_at
    assert finished is not None
    assert store.completed_among(ids, before=finished + timedelta(seconds=1)) == [done]
    assert store.completed_among(ids, before=finished) == []


def test_a_release_may_leave_the_job_its_attempts_and_hold_it_back(store: JobStore) -> None:
    job_id = running(store)
    until = at(60_000)
    store.release(job_id, error="The service stops.", counted=False, lease_until=until)
    job = store.get(job_id)
    assert (job.state, len(job.attempts), job.attempts_before_retry) == (JobState.PENDING, 1, 1)
    assert store.waiting(limit=9, now=until) == []
    assert [waiting.id for waiting in store.waiting(limit=9, now=until + timedelta(seconds=1))] == [job_id]
