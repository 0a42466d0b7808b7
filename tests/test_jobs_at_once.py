"""Processes that want the same jobs at once, on one database: each job is begun by one of them."""

from __future__ import annotations

import multiprocessing
import random
from datetime import timedelta
from typing import Any

from storage.database import open_database
from storage.errors import JobStateError
from storage.jobs import JobStore, NewJob, utc_now
from storage.models import JobState
from storage.nights import NightStore

JOBS, PROCESSES = 2000, 10


def begin_all(where: str, number: int, start: Any, begun: Any) -> None:
    """Begin every job that nobody else has begun, as a run that was handed it does."""
    order = random.Random(number)
    own = []
    with open_database(where) as database:
        store = JobStore(database)
        start.wait(240)
        while waiting := store.waiting(limit=200, now=utc_now()):
            # In the same order all would want the same one each time.
            order.shuffle(waiting)
            for job in waiting[:20]:
                lease = utc_now() + timedelta(minutes=1)
                try:
                    store.start_attempt(
                        job.id, host="here", pid=number, lease_until=lease, flow_run_id=f"run-{number}", submission=1
                    )
                except JobStateError:
                    continue
                own.append(job.id)
        begun.put((number, own))


def test_ten_processes_begin_every_job_once(where: str) -> None:
    with open_database(where) as database:
        nights = NightStore(database)
        lease = utc_now() + timedelta(minutes=1)
        night, _ = nights.start("lakes", host="here", pid=1, flow_run_id="run", lease_until=lease)
        new = [NewJob(name=f"job {n}", preset="fast", config={}, sources=[], night_id=night.id) for n in range(JOBS)]
        ids = JobStore(database).create_pending(new, night_id=night.id, flow_run_id="run")
        # Its jobs are everybody's then.
        nights.finish(night.id)
    # Forked, they would hold the locks of whatever threads this process has.
    spawn = multiprocessing.get_context("spawn")
    start, begun = spawn.Barrier(PROCESSES), spawn.SimpleQueue()
    children = [spawn.Process(target=begin_all, args=(where, number, start, begun)) for number in range(PROCESSES)]
    for child in children:
        child.start()
    found = dict(begun.get() for _ in children)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * PROCESSES
    with open_database(where) as database:
        jobs = JobStore(database).recent(limit=2 * JOBS)
    begun_by = {job_id: number for number, own in found.items() for job_id in own}
    assert sum(map(len, found.values())) == len(begun_by) == len(ids or ())
    assert begun_by == {job.id: job.attempts[0].pid for job in jobs}
    assert all(found.values())
    assert {(job.state, len(job.attempts), job.flow_run_id == f"run-{job.attempts[0].pid}") for job in jobs} == {
        (JobState.RUNNING, 1, True)
    }
