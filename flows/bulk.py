"""The flow of many jobs: the same flow as for one, run in this process a few at a time. A burst of drops becomes one
run of it, since a process for each job costs more than a small job itself; while one job is optimised on
the GPU worker, the next is prepared here."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.attempt import burst_stop, cancelled_in_prefect, night_run
from flows.leases import LOCK_PATIENCE_SECONDS, keeping
from flows.published import cancel_job
from flows.reuse import reuse_or_fail
from flows.settings import Settings, load_settings
from flows.silence import go_on_in_silence
from flows.stylize import stylize
from storage.database import open_database
from storage.errors import DatabaseError, JobStateError
from storage.jobs import JobStore, utc_now
from storage.models import JobState
from storage.workspace import Workspace

_NAMED: Final = 5


@flow(name="bulk", validate_parameters=False)
def bulk(submissions: Mapping[str, int], home: str) -> Any:
    """Run these pending jobs (id to submission) of the service at `home`.

    A job that fails does not stop the others; the run then ends Failed with one sentence that names them. When
    the run is cancelled, so are its jobs; when its process has to end, they stay pending.
    """
    go_on_in_silence()
    settings = load_settings(home=Path(home))
    stop = threading.Event()
    token = burst_stop.set(stop)
    with open_database(settings.database, patience_seconds=LOCK_PATIENCE_SECONDS) as database:
        store = JobStore(database)
        if flow_run.run_count > 1:
            submissions = _taken_up_again(store, submissions, settings)
        try:
            with _keeping_leases(store, settings, night_run.get() or str(flow_run.id)):
                _run_all(store, submissions, settings, stop)
        except (KeyboardInterrupt, TerminationSignal):
            # A night cancels all its jobs itself.
            if night_run.get() is None and cancelled_in_prefect(str(flow_run.id)):
                for job_id in submissions:
                    _cancel(store, job_id)
            raise
        finally:
            burst_stop.reset(token)
        return _verdict(store, list(submissions))


def _taken_up_again(store: JobStore, submissions: Mapping[str, int], settings: Settings) -> dict[str, int]:
    """Let the failed and cancelled jobs of a run that is retried in the dashboard wait for it again."""
    for job_id in submissions:
        if store.state_of(job_id) in (JobState.FAILED, JobState.CANCELLED):
            store.retry(job_id)
    store.note_submission(
        list(submissions),
        flow_run_id=str(flow_run.id),
        lease_until=utc_now() + timedelta(seconds=settings.lease_seconds),
    )
    return {job_id: store.get(job_id).submission for job_id in submissions}


def _run_all(store: JobStore, submissions: Mapping[str, int], settings: Settings, stop: threading.Event) -> None:
    """A bounded number of jobs at once; also waits for those that are running when this process has to end."""
    logger = get_run_logger()
    with ThreadPoolExecutor(settings.bulk_at_once, thread_name_prefix="job") as pool:
        waiting = iter(submissions.items())
        running: dict[Future[State[Any]], str] = {}
        try:
            while True:
                for job_id, submission in waiting:
                    job = store.get(job_id)
                    # Somebody has cancelled it, or another run has it.
                    if job.state is not JobState.PENDING or job.submission != submission:
                        continue
                    context = contextvars.copy_context()
                    running[pool.submit(context.run, _run_one, store, job_id, submission, settings)] = job_id
                    if len(running) >= settings.bulk_at_once:
                        break
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    state = future.result()
                    if state.is_failed() or state.is_crashed():
                        logger.warning("Job %s: %s", running[future], state.message)
                    del running[future]
        finally:
            stop.set()


def _run_one(store: JobStore, job_id: str, submission: int, settings: Settings) -> State[Any]:
    # Another of this run, or a drop, may have made the same meanwhile.
    if reuse_or_fail(store, Workspace(settings.home), store.get(job_id)):
        return Completed()
    # Prefect's types know this call as one that may have to be awaited, which it is not for this flow.
    return cast("State[Any]", stylize(job_id, str(settings.home), submission=submission, return_state=True))


@contextmanager
def _keeping_leases(store: JobStore, settings: Settings, run_id: str) -> Iterator[None]:
    """Say for the jobs of this run that have not begun that somebody still means to run them."""
    logger = get_run_logger()

    def extend(lease_until: datetime) -> None:
        store.extend_submission(run_id, lease_until=lease_until)

    def warn(error: DatabaseError) -> None:
        logger.warning("%s Waiting jobs of this run may be run by another.", error)

    extend(utc_now() + timedelta(seconds=settings.lease_seconds))
    with keeping(extend, seconds=settings.lease_seconds, warn=warn):
        yield


def _cancel(store: JobStore, job_id: str) -> None:
    try:
        cancel_job(store, job_id)
    except JobStateError:
        # It has ended by itself.
        return


def _verdict(store: JobStore, job_ids: list[str]) -> Any:
    jobs = [store.get(job_id) for job_id in job_ids]
    failed = [job.name for job in jobs if job.state is JobState.FAILED]
    if failed:
        named = ", ".join(failed[:_NAMED]) + (", ..." if len(failed) > _NAMED else "")
        return Failed(message=f"{len(failed)} of {len(jobs)} jobs failed: {named}.")
    cancelled = sum(job.state is JobState.CANCELLED for job in jobs)
    if cancelled == len(jobs):
        return Cancelled(message="All its jobs were cancelled.")
    done = sum(job.state is JobState.COMPLETED for job in jobs)
    rest = f", {cancelled} cancelled" if cancelled else ""
    return Completed(message=f"{done} of {len(jobs)} jobs are done{rest}.")
