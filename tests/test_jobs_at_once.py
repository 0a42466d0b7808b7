"""Processes that want the same jobs at once, on one database: each job is begun by one of them."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

from storage.database import open_database
from storage.errors import JobStateError
from storage.jobs import JobStore, NewJob, utc_now
from storage.models import JobState


def begin_all(path: Path, number: int, start: Any, begun: Any) -> None:
    """Begin every job that nobody else has begun, as a run that was handed it does."""
    with open_database(path) as database:
        store = JobStore(database)
        start.wait(240)
        while waiting := store.waiting(limit=100, now=utc_now()):
            for job in waiting:
                lease = utc_now() + timedelta(minutes=1)
                try:
                    store.start_attempt(
                        job.id, host="here", pid=number, lease_until=lease, flow_run_id=f"run-{number}", submission=1
                    )
                except JobStateError:
                    continue
                begun.put((job.id, number))


def test_ten_processes_begin_every_job_once(tmp_path: Path) -> None:
    path, processes = tmp_path / "nst.db", 10
    with open_database(path) as database:
        store = JobStore(database)
        for number in range(40):
            store.make_pending(store.create(NewJob(name=f"job {number}", preset="fast", config={}, sources=[])).id)
    # Forked, they would hold the locks of whatever threads this process has.
    spawn = multiprocessing.get_context("spawn")
    start, begun = spawn.Barrier(processes), spawn.SimpleQueue()
    children = [spawn.Process(target=begin_all, args=(path, number, start, begun)) for number in range(processes)]
    for child in children:
        child.start()
    found = [begun.get() for _ in range(40)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * processes
    assert begun.empty()
    with open_database(path) as database:
        jobs = JobStore(database).recent(limit=100)
    assert sorted(found) == sorted((job.id, job.attempts[0].pid) for job in jobs)
    assert {(job.state, len(job.attempts), job.flow_run_id == f"run-{job.attempts[0].pid}") for job in jobs} == {
        (JobState.RUNNING, 1, True)
    }
