"""One try at a job: how it holds its lease, how often it saves and how it ends, on a real database and real files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image
from prefect import flow

from flows.attempt import Attempt
from flows.settings import load_settings
from flows.tasks import complete, pause_after
from nst_engine.config import TransferConfig
from nst_engine.images import MAX_PIXELS
from storage.database import open_database
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState
from storage.workspace import Workspace

LEASE_SECONDS, LOOK_SECONDS = 0.6, 0.02


@pytest.fixture
def attempt(tmp_path: Path, claim_pair: Callable[..., Job]) -> Iterator[Attempt]:
    """The first try at a job, with a lease that has nearly run out."""
    settings = load_settings(home=tmp_path / "home", device="cpu").model_copy(update={"lease_seconds": LEASE_SECONDS})
    workspace = Workspace(settings.home)
    workspace.create()
    with open_database(workspace.database_path) as database:
        store = JobStore(database)
        job = claim_pair(store, workspace, TransferConfig(weights="random"), name="lake")
        number = store.start_attempt(job.id, host="here", pid=1, lease_until=utc_now() + timedelta(seconds=0.1))
        yield Attempt(store.get(job.id), number, store, workspace, settings)


def lease_of(attempt: Attempt) -> datetime | None:
    return attempt.store.get(attempt.job.id).lease_until


def held_for(attempt: Attempt, until: Callable[[], bool]) -> None:
    """Hold the attempt inside a flow until that is so, at most 20 s."""

    @flow(name="holding")
    def holding() -> None:
        deadline = time.monotonic() + 20
        with attempt.held():
            while not until():
                assert time.monotonic() < deadline
                time.sleep(LOOK_SECONDS)

    holding()


def has_keeper() -> bool:
    return "leases" in {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("prefect_api")
def test_a_held_job_has_its_lease_renewed_until_the_end_of_the_block(attempt: Attempt) -> None:
    leases: list[datetime | None] = []

    def renewed_twice() -> bool:
        leases.append(lease_of(attempt))
        return len(set(leases)) == 3

    held_for(attempt, renewed_twice)
    assert leases == sorted(moment for moment in leases if moment is not None)
    assert not has_keeper()


@pytest.mark.usefixtures("prefect_api")
def test_a_job_that_is_lost_while_it_is_held_is_left_alone(attempt: Attempt) -> None:
    attempt.store.release(attempt.job.id, error="It was taken for dead.")
    before = attempt.store.get(attempt.job.id)
    looks: list[bool] = []

    def looked_at_for_three_renewals() -> bool:
        looks.append(has_keeper())
        return len(looks) * LOOK_SECONDS > LEASE_SECONDS / 2

    held_for(attempt, looked_at_for_three_renewals)
    after = attempt.store.get(attempt.job.id)
    assert (after.state, after.lease_until) == (JobState.PENDING, before.lease_until)
    # What was found has not ended the thread.
    assert all(looks)


@pytest.mark.parametrize(
    ("took", "pause"),
    [
        pytest.param(0.1, 30.0, id="short"),
        pytest.param(5.0, 100.0, id="twenty times as long"),
        pytest.param(60.0, 600.0, id="a stall"),
        pytest.param(900.0, 900.0, id="longer than the longest pause"),
    ],
)
def test_the_pause_after_a_checkpoint_has_a_bound(took: float, pause: float) -> None:
    assert pause_after(took, least=30.0) == pause


def test_a_result_larger_than_any_picture_that_is_taken_in(attempt: Attempt, tmp_path: Path) -> None:
    rows, columns = 10_001, 10_000
    assert rows * columns > MAX_PIXELS
    Image.new("1", (columns, rows)).save(tmp_path / "result.png")
    complete(attempt, tmp_path)
    job = attempt.store.get(attempt.job.id)
    assert (job.state, job.result_rows, job.result_columns) == (JobState.COMPLETED, rows, columns)
