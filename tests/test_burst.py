"""Bursts: many drops as one run, cancelled one by one, overtaken by a single drop, their GPU freed when they die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from storage.models import Job, JobState
from tests.service_process import SMALL, Service, running_service

# Long enough to be met in mid-work on any machine: hundreds of chunks.
LONG = SMALL.replace("iterations = 6", "iterations = 100000") + 'optimizer = "adam"\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("burst")
    with running_service(home, chunk_seconds=0.3, burst=1, max_attempts=1, bulk_at_once=2) as running:
        yield running


def test_a_burst_is_one_run_in_which_all_jobs_complete(service: Service) -> None:
    names = [f"b{number}" for number in range(6)]
    drop_at_once(service, *names, settings=SMALL)
    jobs = service.wait_for_end(*names)
    assert [(job.state, job.error) for job in jobs] == [(JobState.COMPLETED, None)] * 6
    (bulk,) = bulk_runs(service)
    service.wait("the burst is Completed", lambda: bulk_runs(service)[0]["state_type"] == "COMPLETED")
    within: Any = service.api("POST", "flow_runs/filter", {"flow_runs": {"name": {"any_": names}}})
    assert sorted(run["name"] for run in within) == names
    assert {run["state_type"] for run in within} == {"COMPLETED"}
    assert {run["parent_task_run_id"] is not None for run in within} == {True}
    assert bulk["name"] == "burst of 6 from b0"


def test_jobs_in_a_burst_are_cancelled_one_by_one_and_a_single_drop_overtakes_them(service: Service) -> None:
    drop_at_once(service, "long0", "long1", "long2", settings=LONG)
    service.wait("two of them run", lambda: len(running(service)) == 2)
    first = service.wait("one is optimised", lambda: [job for job in running(service) if service.store.losses(job.id)])[
        0
    ]

    service.drop_pair("urgent", seed=99)
    (urgent,) = service.wait_for_end("urgent")
    assert urgent.state is JobState.COMPLETED
    assert {job.name for job in running(service)} >= {first.name}

    assert service.command("cancel", first.id).returncode == 0
    (cancelled,) = service.wait_for_end(first.name, seconds=20)
    assert cancelled.state is JobState.CANCELLED
    # Its place is taken by the one that waited.
    service.wait("the next one runs", lambda: len(running(service)) == 2)
    second = running(service)[0]
    run_id = service.store.get(second.id).attempts[-1].flow_run_id
    service.api("POST", f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    (cancelled,) = service.wait_for_end(second.name, seconds=20)
    assert cancelled.state is JobState.CANCELLED
    (last,) = running(service)
    service.wait("it has the GPU", lambda: service.store.losses(last.id))


def test_a_burst_whose_process_is_killed_frees_the_gpu(service: Service) -> None:
    (job,) = running(service)
    os.kill(job.attempts[-1].pid, signal.SIGKILL)
    (failed,) = service.wait_for_end(job.name)
    assert failed.state is JobState.FAILED
    assert f"process {job.attempts[-1].pid}" in str(failed.error)
    service.drop_pair("after", seed=100)
    (after,) = service.wait_for_end("after")
    assert after.state is JobState.COMPLETED


def test_a_burst_cancelled_in_the_dashboard_cancels_all_its_jobs(service: Service) -> None:
    drop_at_once(service, "all0", "all1", "all2", settings=LONG)
    service.wait("two of them run", lambda: len(running(service)) == 2)
    bulk = next(run for run in bulk_runs(service) if run["state_type"] == "RUNNING" and "all0" in run["name"])
    service.api("POST", f"flow_runs/{bulk['id']}/set_state", {"state": {"type": "CANCELLING"}})
    jobs = service.wait_for_end("all0", "all1", "all2", seconds=60)
    assert [job.state for job in jobs] == [JobState.CANCELLED] * 3


def drop_at_once(service: Service, *names: str, settings: str) -> None:
    """Drop pairs so that one look at the inbox sees them all: the sensor is stopped meanwhile."""
    (sensor,) = service.part("sensor")
    os.kill(sensor, signal.SIGSTOP)
    for number, name in enumerate(names):
        service.drop_pair(name, settings=f'{settings}seed = {number}\nname = "{name}"\n')
    os.kill(sensor, signal.SIGCONT)


def bulk_runs(service: Service) -> list[dict[str, Any]]:
    """The runs of bursts, the newest first."""
    found: Any = service.api(
        "POST", "flow_runs/filter", {"flows": {"name": {"any_": ["bulk"]}}, "sort": "START_TIME_DESC"}
    )
    return list(found)


def running(service: Service) -> list[Job]:
    return [job for job in service.jobs() if job.state is JobState.RUNNING]
