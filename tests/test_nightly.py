"""Nights on a real service: every pair once, also when the service is killed in the middle or a night cancelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nst_engine.images import encode_png
from storage.database import open_database
from storage.models import Job, JobState, Night, NightState
from storage.nights import NightStore
from tests.service_process import SMALL, STYLE, Service, content_of, running_service

TINY = SMALL.replace("iterations = 6", "iterations = 2")
# Long enough to be met in mid-work on any machine: hundreds of chunks.
LONG = SMALL.replace("iterations = 6", "iterations = 100000") + 'optimizer = "adam"\n'
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(
        tmp_path_factory.mktemp("nights"), chunk_seconds=0.3, bulk_at_once=4, nightly="off"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def nights(service: Service) -> Iterator[NightStore]:
    with open_database(service.workspace.database_path) as database:
        yield NightStore(database)


def test_a_night_runs_every_pair_once_and_the_next_only_what_is_new(service: Service, nights: NightStore) -> None:
    make_collection(service, "lakes", contents=12, styles=3)
    run = ended(service, ask_for_night(service, "lakes"))
    jobs = jobs_of(service, "lakes")
    assert (run["state_type"], run["state"]["message"]) == ("COMPLETED", "lakes: 36 of 36 pairs are done.")
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 36
    assert {Path(str(job.result_folder)).parent for job in jobs} == {service.workspace.outbox / "lakes"}
    first = last_night(nights, "lakes")
    assert summary(first) == (NightState.COMPLETED, 36, 0, 36, 0, 0, [])
    assert Path(str(first.contact_sheet)) == service.workspace.outbox / "lakes" / f"contact-sheet-{first.id}.jpg"
    assert Path(str(first.contact_sheet)).is_file()
    assert list(service.workspace.work.iterdir()) == []

    again = ended(service, ask_for_night(service, None))
    assert again["state"]["message"] == "lakes: 36 of 36 pairs are done, 36 of them before this night."
    assert summary(last_night(nights, "lakes")) == (NightState.COMPLETED, 36, 36, 0, 0, 0, [])

    encode_png(content_of(99), service.workspace.collections / "lakes" / "contents" / "new.png")
    ended(service, ask_for_night(service, "lakes"))
    assert summary(last_night(nights, "lakes")) == (NightState.COMPLETED, 39, 36, 3, 0, 0, [])
    assert len(jobs_of(service, "lakes")) == 39


def test_a_picture_that_is_damaged_costs_only_its_own_pairs(service: Service, nights: NightStore) -> None:
    folder = make_collection(service, "hills", contents=2, styles=1, seed=200)
    whole = (folder / "styles" / "s0.png").read_bytes()
    (folder / "styles" / "torn.png").write_bytes(whole[: len(whole) // 2])
    run = ended(service, ask_for_night(service, "hills"))
    assert (run["state_type"], run["state"]["message"]) == (
        "FAILED",
        "hills: 2 of 4 pairs are done, 2 cannot be made because of styles/torn.png.",
    )
    night = last_night(nights, "hills")
    (problem,) = night.problems or []
    assert (night.state, problem["file"], problem["pairs"]) == (NightState.FAILED, "styles/torn.png", 2)
    assert problem["reason"].startswith("is damaged or incomplete")
    assert [job.state for job in jobs_of(service, "hills")] == [JobState.COMPLETED] * 2
    keys = [f"night-{night.id}", f"night-{night.id}-problems"]
    tables: Any = service.api("POST", "artifacts/filter", {"artifacts": {"key": {"any_": keys}}})
    rows = {table["key"]: json.loads(table["data"]) for table in tables}
    assert {key: len(found) for key, found in rows.items()} == {keys[0]: 2, keys[1]: 1}
    assert rows[keys[1]][0]["file"] == "styles/torn.png"
    gallery = f"http://127.0.0.1:{service.environment['NST_GALLERY_PORT']}/collections/hills"
    assert all(f"({gallery})" in table["description"] for table in tables)


def test_a_drop_overtakes_a_night_and_a_cancelled_night_is_gone_on_with(service: Service, nights: NightStore) -> None:
    make_collection(service, "slow", contents=3, styles=2, seed=300, settings=LONG)
    run_id = ask_for_night(service, "slow")
    before = service.wait("four of them run", lambda: at_work(service, nights, "slow", 4))

    service.drop_pair("urgent", seed=999)
    (urgent,) = service.wait_for_end("urgent")
    assert urgent.state is JobState.COMPLETED
    assert {service.store.state_of(job.id) for job in before} == {JobState.RUNNING}

    service.api("POST", f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    service.wait("the night is cancelled", lambda: last_night(nights, "slow").state is NightState.CANCELLED)
    cancelled = jobs_of(service, "slow")
    assert [job.state for job in cancelled] == [JobState.CANCELLED] * 6
    assert ended(service, run_id)["state_type"] == "CANCELLED"

    ask_for_night(service, "slow")
    service.wait("four of them run again", lambda: at_work(service, nights, "slow", 4))
    assert {job.id for job in jobs_of(service, "slow")} == {job.id for job in cancelled}
    refused = service.command("bulk", "slow", "--now")
    assert refused.returncode == 2
    assert f"its night {last_night(nights, 'slow').id} is running already" in refused.stderr
    told = service.command("bulk", "slow", "--cancel")
    assert (told.returncode, told.stdout[:24]) == (0, "slow: cancelled; 0 of 6 ")
    night_id = last_night(nights, "slow").id
    service.wait("all have stopped", lambda: nights.counts(night_id)[JobState.CANCELLED] == 6)


def test_a_service_stopped_and_killed_in_the_middle_of_a_night_ends_it_with_every_pair_once(
    service: Service, nights: NightStore
) -> None:
    make_collection(service, "seas", contents=12, styles=3, seed=400)
    told = service.command("bulk", "seas", "--now")
    assert (told.returncode, told.stdout[:23]) == (0, "A night of seas begins.")
    service.wait("some are done", lambda: done(nights, "seas") >= 4)
    assert service.stop() == 0
    stopped = last_night(nights, "seas")
    assert (stopped.state, stopped.pid, stopped.flow_run_id, stopped.submission) == (NightState.RUNNING, None, None, 2)
    assert nights.counts(stopped.id)[JobState.RUNNING] == 0
    service.start()
    service.wait("more are done", lambda: done(nights, "seas") >= 16)
    service.kill()
    assert done(nights, "seas") < 36
    service.start()
    service.wait("the night ended", lambda: last_night(nights, "seas").state is not NightState.RUNNING, seconds=180)
    jobs = jobs_of(service, "seas")
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 36
    assert len({job.fingerprint for job in jobs}) == 36
    folders = {Path(str(job.result_folder)) for job in jobs}
    assert {path for path in (service.workspace.outbox / "seas").iterdir() if path.is_dir()} == folders
    assert len(folders) == 36
    assert summary(last_night(nights, "seas")) == (NightState.COMPLETED, 36, 0, 36, 0, 0, [])


def make_collection(
    service: Service, name: str, *, contents: int, styles: int, seed: int = 0, settings: str = TINY
) -> Path:
    """A collection of small pictures that differ, c0.png, ... and s0.png, ..."""
    folder = service.workspace.collections / name
    for role in ("contents", "styles"):
        (folder / role).mkdir(parents=True)
    for number in range(contents):
        encode_png(content_of(seed + number), folder / "contents" / f"c{number}.png")
    for number in range(styles):
        style = STYLE.copy()
        style[:8, :8] = np.uint8(number)
        encode_png(style, folder / "styles" / f"s{number}.png")
    (folder / "settings.toml").write_text(settings)
    return folder


def ask_for_night(service: Service, collection: str | None) -> str:
    """Make a nightly run as the schedule, or the dashboard, makes it; returns its id."""
    deployment: Any = service.api("GET", "deployments/name/nightly/nightly")
    parameters = {"collection": collection} if collection else {}
    run: Any = service.api("POST", f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    return str(run["id"])


def ended(service: Service, run_id: str) -> dict[str, Any]:
    """The run, when it has ended."""

    def found() -> dict[str, Any] | None:
        run: Any = service.api("GET", f"flow_runs/{run_id}")
        return run if run["state_type"] in ENDED else None

    run = service.wait("the nightly run ended", found, seconds=180)
    assert run is not None
    return run


def jobs_of(service: Service, collection: str) -> list[Job]:
    return [job for job in service.jobs() if job.collection == collection]


def done(nights: NightStore, collection: str) -> int:
    """How many jobs of the collection's last night are completed: cheap, since it is asked again and again."""
    night = nights.last(collection)
    return nights.counts(night.id)[JobState.COMPLETED] if night else 0


def at_work(service: Service, nights: NightStore, collection: str, wanted: int) -> list[Job]:
    """So many running jobs of the collection's night, one of them with losses, else none."""
    night = nights.last(collection)
    if night is None or nights.counts(night.id)[JobState.RUNNING] != wanted:
        return []
    found = [job for job in jobs_of(service, collection) if job.state is JobState.RUNNING]
    return found if any(service.store.losses(job.id) for job in found) else []


def last_night(nights: NightStore, collection: str) -> Night:
    night = nights.last(collection)
    assert night is not None
    return night


def summary(night: Night) -> tuple[object, ...]:
    return (
        night.state,
        night.pairs,
        night.done_before,
        night.completed,
        night.failed,
        night.cancelled,
        night.problems,
    )
