"""The checks of a soak, on a home made by hand: all hold, and whatever is planted there is found by the check for it.
The soak itself runs for longer than a test may: `make soak`."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import delete, update

from benchmarks.soak_check import INVARIANTS, Home, check
from benchmarks.soak_load import Collection, Drop, Ledger, files_of, settings_of, sha256_of
from nst_engine.images import encode_png
from storage.database import Database, open_database
from storage.jobs import JobStore, NewJob, NewLossPoint, NewSource, utc_now
from storage.models import Attempt, Job, JobState, LossPoint, Night
from storage.nights import NightStore
from storage.workspace import Workspace
from tests.service_process import content_of

ITERATIONS = 6
NUMBERS = {"good": 1, "cancelled": 2, "text": 3}
COLLECTED = 9
PART = ".result.png.nst.part"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A completed pair, a cancelled one, a drop that was rejected, and a collection of one pair."""
    workspace = Workspace(tmp_path)
    workspace.create()
    with open_database(workspace.database_path) as database:
        home = Home(workspace, database, Ledger(), expected)
        night_id = start_night(database)
        complete(home, make_job(home, dropped(home, "good")), workspace.outbox / "good")
        cancel(home, make_job(home, dropped(home, "cancelled")))
        reject(home, make_job(home, dropped(home, "text", hostile="text")))
        job = make_job(home, collected(home), collection="trip", night_id=night_id)
        complete(home, job, workspace.outbox / "trip" / "one")
        NightStore(database).finish(night_id)
        yield home


def expected(content: int, style: int, iterations: int) -> NDArray[np.uint8]:
    assert (style, iterations) == (content, ITERATIONS)
    return np.flip(content_of(content), axis=0)


def dropped(home: Home, name: str, *, hostile: str | None = None) -> dict[str, bytes]:
    files = files_of(name, NUMBERS[name], ITERATIONS, hostile)
    hashes = {file: sha256_of(data) for file, data in files.items()}
    home.ledger.drops.append(Drop(name, NUMBERS[name], ITERATIONS, hashes, hostile))
    return files


def collected(home: Home) -> dict[str, bytes]:
    pictures = files_of("one", COLLECTED, ITERATIONS)
    files = {f"contents/n{COLLECTED}.png": pictures["one_content.png"], "styles/s.png": pictures["one_style.png"]}
    write(home.workspace.collections / "trip", files)
    hashes = {file: sha256_of(data) for file, data in files.items()}
    home.ledger.collections.append(Collection("trip", (COLLECTED,), ITERATIONS, hashes))
    return {"one_content.png": files[f"contents/n{COLLECTED}.png"], "one_style.png": files["styles/s.png"]}


def make_job(home: Home, files: dict[str, bytes], *, collection: str | None = None, night_id: str | None = None) -> str:
    """A pending job whose files lie in its folder."""
    name = next(iter(files)).removesuffix(".toml").removesuffix("_content.png")
    sources = [
        NewSource(
            role="content" if "content" in file else "style",
            original_path=file,
            file_name=file,
            sha256=sha256_of(data),
            bytes=len(data),
            rows=64,
            columns=64,
        )
        for file, data in files.items()
        if file.endswith(".png")
    ]
    config = settings_of(ITERATIONS)
    new = NewJob(name=name, preset="default", config=config, sources=sources, collection=collection, night_id=night_id)
    store = JobStore(home.database)
    job = store.create(new)
    write(home.workspace.job_folder(job.id), files)
    return job.id


def complete(home: Home, job_id: str, folder: Path) -> None:
    store = JobStore(home.database)
    store.make_pending(job_id)
    number = store.start_attempt(job_id, host="here", pid=1, lease_until=utc_now())
    points = [
        NewLossPoint(
            iteration=iteration, total=1, content=1, style=0, tv=0, layers={}, learning_rate=1, seconds=iteration
        )
        for iteration in range(ITERATIONS + 1)
    ]
    store.add_loss_points(job_id, attempt=number, points=points)
    folder.parent.mkdir(exist_ok=True)
    home.workspace.job_folder(job_id).rename(folder)
    content = COLLECTED if folder.name == "one" else NUMBERS[folder.name]
    encode_png(expected(content, content, ITERATIONS), folder / "result.png")
    write(folder, {"job.json": b"{}", "loss.png": b""})
    store.complete(job_id, attempt=number, result_folder=str(folder), result_files={}, rows=1, columns=1)


def cancel(home: Home, job_id: str) -> None:
    JobStore(home.database).cancel(job_id, attempt=None)
    home.ledger.cancelled.add(job_id)


def reject(home: Home, job_id: str) -> None:
    folder = home.workspace.rejected / "text"
    home.workspace.job_folder(job_id).rename(folder)
    JobStore(home.database).reject(job_id, error="It is no picture.", folder=str(folder))


def start_night(database: Database) -> str:
    lease = utc_now() + timedelta(minutes=1)
    night, _ = NightStore(database).start("trip", host="here", pid=1, flow_run_id="run", lease_until=lease)
    return night.id


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def change(home: Home, statement: object) -> None:
    with home.database.begin() as session:
        session.connection().execute(statement)  # type: ignore[call-overload]


def of(home: Home, name: str) -> str:
    return next(job.id for job in home.jobs if job.name == name)


def of_job(home: Home, name: str, **values: object) -> None:
    change(home, update(Job).where(Job.id == of(home, name)).values(**values))


def again(home: Home, name: str) -> None:
    """The same drop becomes a second job with a result of its own."""
    files = files_of(name, NUMBERS[name], ITERATIONS)
    home.workspace.outbox.joinpath(name).rename(home.workspace.outbox / "before")
    of_job(home, name, result_folder=str(home.workspace.outbox / "before"))
    complete(home, make_job(home, files), home.workspace.outbox / name)


def test_a_home_where_all_is_well_breaks_no_invariant(home: Home) -> None:
    assert check(home) == {invariant: [] for invariant in INVARIANTS}


IN_ONE_PLACE = "each dropped file is in exactly one known place, byte for byte"
COLLECTIONS = "the files of collections are as they were"
ENDED_ONCE = "each drop and each pair of a collection ended once, as it should"
REJECTED = "what can never work is in rejected/"
RESULTS = "each result is whole and the expected picture, bit for bit"
ONE_RESULT = "no two jobs have one result, and no result is without a job"
LOSSES = "each iteration's loss is there once"
LEGAL = "each job, attempt and night has ended legally"
NOTHING_LEFT = "nothing is left over in inbox, work and outbox"
WHOLE = "the database is whole"


def orphan(home: Home) -> None:
    """A row that belongs to no job: damage that is found without any to the file."""
    with contextlib.closing(sqlite3.connect(home.workspace.database_path)) as connection, connection:
        connection.execute(
            "UPDATE loss_points SET job_id = 'nobody' WHERE job_id = ? AND iteration = 6", [of(home, "good")]
        )


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        pytest.param(
            lambda home: (home.workspace.outbox / "good" / "good_style.png").unlink(),
            {IN_ONE_PLACE},
            id="a source that is gone",
        ),
        pytest.param(
            lambda home: shutil.copy(home.workspace.outbox / "good" / "good.toml", home.workspace.rejected),
            {IN_ONE_PLACE},
            id="a source in two places",
        ),
        pytest.param(
            lambda home: write(home.workspace.outbox / "good", {"good_content.png": b"other"}),
            {IN_ONE_PLACE},
            id="a source that was changed",
        ),
        pytest.param(
            lambda home: write(home.workspace.collections / "trip", {"styles/s.png": b"other"}),
            {COLLECTIONS},
            id="a collection that was changed",
        ),
        pytest.param(
            lambda home: change(home, delete(Job).where(Job.id == of(home, "cancelled"))),
            {ENDED_ONCE, NOTHING_LEFT},
            id="a drop without a job",
        ),
        pytest.param(lambda home: again(home, "good"), {ENDED_ONCE, IN_ONE_PLACE}, id="a drop with two jobs"),
        pytest.param(lambda home: home.ledger.cancelled.clear(), {ENDED_ONCE}, id="cancelled by nobody"),
        pytest.param(
            lambda home: of_job(home, "cancelled", state=JobState.FAILED), {ENDED_ONCE}, id="a good pair that failed"
        ),
        pytest.param(
            lambda home: (home.workspace.rejected / "text").rename(home.workspace.outbox / "text"),
            {REJECTED},
            id="a hostile drop elsewhere",
        ),
        pytest.param(
            lambda home: encode_png(content_of(500), home.workspace.outbox / "good" / "result.png"),
            {RESULTS},
            id="another picture",
        ),
        pytest.param(
            lambda home: encode_png(content_of(500), home.workspace.outbox / "trip" / "one" / "result.png"),
            {RESULTS},
            id="another picture in a collection",
        ),
        pytest.param(
            lambda home: write(home.workspace.outbox / "good", {"result.png": b"half a"}), {RESULTS}, id="half a result"
        ),
        pytest.param(
            lambda home: (home.workspace.outbox / "good" / "loss.png").unlink(), {RESULTS}, id="a result not whole"
        ),
        pytest.param(
            lambda home: write(home.workspace.outbox / "good-2", {"job.json": b"{}"}), {ONE_RESULT}, id="two results"
        ),
        pytest.param(
            lambda home: change(home, delete(LossPoint).where(LossPoint.iteration == 3)), {LOSSES}, id="a loss gone"
        ),
        pytest.param(
            lambda home: of_job(home, "good", lease_until=utc_now()), {LEGAL}, id="a lease that was not ended"
        ),
        pytest.param(
            lambda home: change(home, update(Attempt).values(finished_at=None)), {LEGAL}, id="an attempt left open"
        ),
        pytest.param(
            lambda home: change(home, update(Attempt).values(outcome=JobState.FAILED)), {LEGAL}, id="completed by none"
        ),
        pytest.param(
            lambda home: of_job(home, "cancelled", state=JobState.RUNNING),
            {LEGAL, ENDED_ONCE, NOTHING_LEFT},
            id="still running",
        ),
        pytest.param(lambda home: change(home, delete(Night)), {LEGAL}, id="a night that nobody began"),
        pytest.param(
            lambda home: write(home.workspace.outbox, {PART: b""}), {NOTHING_LEFT}, id="a part that was left over"
        ),
        pytest.param(
            lambda home: write(home.workspace.inbox, {"note.txt": b""}), {NOTHING_LEFT}, id="something in the inbox"
        ),
        pytest.param(
            lambda home: write(home.workspace.work, {"abc/x": b""}), {NOTHING_LEFT}, id="a folder of nobody's"
        ),
        pytest.param(orphan, {WHOLE, LOSSES}, id="a damaged database"),
    ],
)
def test_whatever_is_planted_is_found(home: Home, plant: Callable[[Home], object], found: set[str]) -> None:
    plant(home)
    assert {invariant for invariant, broken in check(home).items() if broken} == found
