"""The flow of a night in this process, on a real Prefect API: what becomes of the night where it cannot do its work."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nst_engine.images import encode_png
from storage.database import open_database
from storage.jobs import JobStore, NewJob, utc_now
from storage.models import JobState, NightState
from storage.nights import NightStore
from storage.workspace import Workspace
from tests.service_process import SMALL, STYLE, content_of

pytestmark = pytest.mark.usefixtures("prefect_api")


class Scene:
    """A home with the collection `lakes` of one pair."""

    def __init__(self, home: Path) -> None:
        self.workspace = Workspace(home)
        self.workspace.create()
        self.database = open_database(self.workspace.database_path)
        self.jobs, self.nights = JobStore(self.database), NightStore(self.database)
        self.folder = self.workspace.collections / "lakes"
        for role, picture in (("contents", content_of(1)), ("styles", STYLE)):
            (self.folder / role).mkdir(parents=True)
            encode_png(picture, self.folder / role / "p.png")
        (self.folder / "settings.toml").write_text(SMALL)

    def execute(self, statement: str) -> None:
        connection = sqlite3.connect(self.workspace.database_path)
        connection.execute(statement)
        connection.close()

    def run(self, collection: str = "lakes") -> None:
        from flows.nightly import nightly

        nightly(collection=collection, home=str(self.workspace.home))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "home")
    yield scene
    scene.database.close()


def test_a_night_whose_jobs_cannot_even_begin_waits_for_another_run(scene: Scene) -> None:
    from flows.errors import OrchestrationError

    scene.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON jobs WHEN new.state = 'running' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    with pytest.raises(OrchestrationError, match=r"^A run of 1 jobs of lakes ended before it began 1 of them \("):
        scene.run()
    night = scene.nights.last("lakes")
    assert night is not None
    (job,) = scene.nights.jobs(night.id, limit=9)
    assert (night.state, night.pid, night.flow_run_id, night.submission) == (NightState.RUNNING, None, None, 2)
    # Not at once: what refuses may need time to be mended.
    assert night.lease_until is not None
    assert night.lease_until > utc_now()
    assert (job.state, job.flow_run_id, job.submission) == (JobState.PENDING, None, 2)


def test_a_bulk_run_leaves_jobs_alone_that_were_taken_from_it(scene: Scene) -> None:
    from prefect import get_client

    from flows.bulk import bulk

    new = NewJob(name="taken", preset="default", config={}, sources=[], collection="lakes")
    job = scene.jobs.create(new)
    scene.jobs.make_pending(job.id)
    scene.jobs.withdraw_submission(job.id)
    bulk({job.id: 1}, str(scene.workspace.home))
    after = scene.jobs.get(job.id)
    assert (after.state, after.submission, after.attempts) == (JobState.PENDING, 2, [])
    with get_client(sync_client=True) as client:
        assert "taken" not in {run.name for run in client.read_flow_runs()}


def test_a_collection_has_one_name(scene: Scene) -> None:
    from flows.errors import CollectionError

    # Under another name it would have a second night at the same time.
    with pytest.raises(CollectionError, match=r"^'lakes/' is no collection; give the name of its folder"):
        scene.run("lakes/")
    assert scene.nights.running() == []


def test_a_night_that_is_cancelled_while_it_looks_makes_no_job(scene: Scene) -> None:
    for number in range(2, 60):
        encode_png(content_of(number), scene.folder / "contents" / f"p{number}.png")

    def cancel() -> None:
        while not scene.nights.running():
            time.sleep(0.005)
        scene.nights.cancel(scene.nights.running()[0].id)

    from prefect.exceptions import CancelledRun

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(CancelledRun, match=r"^lakes: cancelled before anything was found\.$"):
        scene.run()
    canceller.join()
    night = scene.nights.last("lakes")
    assert night is not None
    assert (night.state, night.pairs, scene.jobs.recent(limit=99)) == (NightState.CANCELLED, None, [])
