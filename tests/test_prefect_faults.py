"""What can happen to Prefect while jobs run and drops come: its server is killed and away, or slow, its database is
deleted while the server is away or runs. The service makes anew what Prefect has lost, and every job ends once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nst_engine.images import decode, encode_png
from storage.models import JobState
from tests.service_process import SMALL, STYLE, Service, content_of

AWAY_SECONDS = 15.0
# Longer than Prefect is away in any part of the test.
LONG = SMALL.replace("iterations = 6", "iterations = 3000") + 'optimizer = "adam"\n'
PATIENCE = 300.0


def test_every_job_ends_once_whatever_happens_to_prefect(tmp_path: Path) -> None:
    service = Service(tmp_path, chunk_seconds=0.3, checkpoint_seconds=2, lease_seconds=30, start_seconds=180)
    try:
        collection = service.workspace.collections / "lakes"
        for role, picture in (("contents", content_of(0)), ("styles", STYLE)):
            (collection / role).mkdir(parents=True)
            encode_png(picture, collection / role / "a.png")
        service.start(seconds=PATIENCE)
        service.wait("the schedule is there", lambda: schedules(service), seconds=PATIENCE)

        service.drop_pair("runs", seed=1, settings=LONG)
        at_work(service, "runs")
        # Killed, away, and back with nothing of what it knew.
        with away(service):
            service.drop_pair("drop while away", seed=2)
            service.wait("it waits", lambda: named(service, "drop while away"), seconds=PATIENCE)
            delete_database(service)
            time.sleep(AWAY_SECONDS)
            assert named(service, "drop while away") == [JobState.PENDING]
        made_anew(service)
        first = service.wait_for_end("runs", "drop while away", seconds=PATIENCE)

        # Slow: it stands still again and again.
        service.drop_pair("slow", seed=3)
        (server,) = service.part("prefect")
        for _ in range(5):
            os.kill(server, signal.SIGSTOP)
            time.sleep(1.5)
            os.kill(server, signal.SIGCONT)
            time.sleep(0.5)
        first += service.wait_for_end("slow", seconds=PATIENCE)

        # Deleted under a server that goes on.
        service.drop_pair("runs too", seed=4, settings=LONG)
        at_work(service, "runs too")
        delete_database(service)
        service.drop_pair("last", seed=5)
        service.wait("another server runs", lambda: service.part("prefect") not in ([], [server]), seconds=PATIENCE)
        made_anew(service)
        jobs = [*first, *service.wait_for_end("runs too", "last", seconds=PATIENCE)]

        names = ["runs", "drop while away", "slow", "runs too", "last"]
        assert [(job.name, job.state, job.error) for job in jobs] == [
            (name, JobState.COMPLETED, None) for name in names
        ]
        assert len(service.jobs()) == len(names)
        assert sorted(path.name for path in service.workspace.outbox.iterdir()) == sorted(names)
        # What ran when Prefect went away was never started again.
        assert {job.name: len(job.attempts) for job in jobs} == dict.fromkeys(names, 1)
        for number, job in enumerate(jobs, start=1):
            content = decode(service.workspace.outbox / job.name / "content.png")
            assert np.array_equal(content, content_of(number))
            iterations = 3000 if job.name.startswith("runs") else 6
            assert [point.iteration for point in service.store.losses(job.id)] == list(range(iterations + 1))
        assert list(service.workspace.inbox.iterdir()) == list(service.workspace.rejected.iterdir()) == []
    finally:
        service.close()


class EnoughError(Exception):
    """Ends a loop that would go on for ever."""


def test_the_flow_worker_asks_on_however_long_prefect_is_away(
    prefect_api: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prefect.workers.base as base

    from flows.flow_worker import _endure_outages

    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        raise httpx.ConnectError("away") if asked < 60 else EnoughError

    def loop() -> None:
        asyncio.run(base.critical_service_loop(ask, 0.0001, backoff=4, printer=lambda *_: None))

    # It is for this that it has to be taught to.
    with pytest.raises(RuntimeError, match="exceeded error threshold"):
        loop()
    assert asked < 20
    monkeypatch.setattr(base, "critical_service_loop", base.critical_service_loop)
    _endure_outages()
    with pytest.raises(EnoughError):
        loop()
    assert asked == 60


def named(service: Service, name: str) -> list[JobState]:
    return [job.state for job in service.jobs() if job.name == name]


def at_work(service: Service, name: str) -> None:
    def is_at_work() -> bool:
        jobs = [job for job in service.jobs() if job.name == name and job.state is JobState.RUNNING]
        return bool(jobs) and jobs[0].attempts[-1].phase == "optimise"

    service.wait(f"{name} is being computed", is_at_work, seconds=PATIENCE)


@contextlib.contextmanager
def away(service: Service) -> Iterator[None]:
    """The server killed, and its port held so that no other can take its place."""
    (server,) = service.part("prefect")
    os.kill(server, signal.SIGKILL)
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.wait("the port is free", lambda: is_bound(held, service.port))
        yield


def is_bound(held: socket.socket, port: int) -> bool:
    try:
        held.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def delete_database(service: Service) -> None:
    files = list((service.home / "prefect").glob("prefect.db*"))
    assert files
    for file in files:
        file.unlink(missing_ok=True)


def made_anew(service: Service) -> None:
    """Wait until the work pool, the deployments and the schedule are there again."""
    service.wait(
        "the deployments are there", lambda: deployments(service) == {"bulk", "nightly", "stylize"}, seconds=PATIENCE
    )
    service.wait("the schedule is there", lambda: schedules(service), seconds=PATIENCE)
    pool: Any = service.api("GET", "work_pools/nst")
    assert (pool["name"], pool["type"]) == ("nst", "process")


def answered(question: Callable[[], Any]) -> Any:
    """What Prefect answers, None while it is away or does not know."""
    try:
        return question()
    except httpx.HTTPError:
        return None


def deployments(service: Service) -> set[str]:
    found = answered(lambda: service.api("POST", "deployments/filter", {}))
    return {deployment["name"] for deployment in found or ()}


def schedules(service: Service) -> list[str]:
    found = answered(lambda: service.api("GET", "deployments/name/nightly/nightly"))
    return [schedule["schedule"]["cron"] for schedule in (found or {}).get("schedules", ())]
