"""The flow of one job: preprocess -> optimise -> deprocess -> publish. It takes a pending job from the database
to its result folder and leaves the database true whatever happens on the way."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from prefect import flow
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed

from flows.attempt import Attempt, cancelled_in_prefect, is_service_run
from flows.claim import bring_pictures
from flows.dashboard import failure_report
from flows.errors import ClusterLostError, JobCancelledError, JobInterruptedError, WorkerLostError
from flows.interruption import interruptible
from flows.leases import LOCK_PATIENCE_SECONDS
from flows.published import complete_published
from flows.settings import load_settings
from flows.silence import go_on_in_silence
from flows.tasks import deprocess, optimise, preprocess, publish, published_before
from nst_engine.errors import DiskSpaceError, NotFiniteError, OutOfMemoryError
from storage.database import open_database
from storage.errors import DatabaseError, JobStateError, WorkspaceError
from storage.jobs import JobStore, utc_now
from storage.models import JobState
from storage.refusal import error_line, is_disk_full, is_refusal
from storage.workspace import Workspace

_PAUSE_SECONDS: Final = 10.0
"""Before the second attempt, and as much more before each further one: what failed may need time to be mended."""
_FULL_PAUSE_SECONDS: Final = 60.0
"""Before the first attempt after a full disk, and as much more before each further one, up to the longest."""
_LONGEST_FULL_PAUSE_SECONDS: Final = 600.0

# What another attempt may well get past; everything else would only fail again.
_WORTH_ANOTHER_TRY: Final = (
    ClusterLostError,
    WorkerLostError,
    DatabaseError,
    WorkspaceError,
    # Others may have taken the memory. MemoryNeededError says that there can never be enough.
    OutOfMemoryError,
    MemoryError,
    DiskSpaceError,
    OSError,
    # Prefect is away.
    httpx.HTTPError,
    PrefectException,
)


def _run_name() -> str:
    parameters = flow_run.parameters
    with open_database(load_settings(home=Path(parameters["home"])).database) as database:
        return JobStore(database).get(parameters["job_id"]).name


@flow(name="stylize", flow_run_name=_run_name, validate_parameters=False)
def stylize(
    job_id: str, home: str, device: str | None = None, out: str | None = None, submission: int | None = None
) -> Any:
    """Run the pending job `job_id` of the service at `home`; returns the result folder.

    The result goes to the folder `out`, else to one named after the job in the outbox. When anything fails
    the job is failed with one sentence, and the error is raised; what another attempt may get past leaves the job
    pending instead, while it has attempts left. A cancelled job ends in Prefect's state Cancelled. A run
    whose `submission` is no longer the job's own leaves the job alone, and so does one that stood still until its
    attempt was given up; that one ends in Prefect's state Crashed.
    """
    if is_service_run():
        go_on_in_silence()
    settings = load_settings(home=Path(home), device=device)
    workspace = Workspace(settings.home)
    with open_database(settings.database, patience_seconds=LOCK_PATIENCE_SECONDS) as database:
        store = JobStore(database)
        job = store.get(job_id)
        if job.state in (JobState.FAILED, JobState.CANCELLED) and flow_run.run_count > 1:
            store.retry(job_id)
            submission = None
        elif job.state is JobState.CANCELLED:
            return Cancelled(message=f"Job {job.name} was cancelled before it began.")
        elif job.state is JobState.COMPLETED:
            return job.result_folder
        number = store.start_attempt(
            job_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            flow_run_id=flow_run.id,
            lease_until=utc_now() + timedelta(seconds=settings.lease_seconds),
            submission=submission,
        )
        return _run(Attempt(store.get(job_id), number, store, workspace, settings), Path(out) if out else None)


def _run(attempt: Attempt, out: Path | None) -> Any:
    """Take the attempt through its tasks to its end, or leave the job alone when it has been given up meanwhile."""
    try:
        return _run_tasks(attempt, out)
    except JobStateError:
        if attempt.recorded().finished_at is None:
            raise
        sentence = (
            f"Attempt {attempt.number} at {attempt.job.name} stood still past its lease of "
            f"{attempt.settings.lease_seconds:g} s and was given up; it leaves the job as it is."
        )
        get_run_logger().warning("%s", sentence)
        return Crashed(message=sentence)


def _run_tasks(attempt: Attempt, out: Path | None) -> Any:
    """Take the attempt through its tasks and write how it ended into the database."""
    job, store = attempt.job, attempt.store
    try:
        with interruptible():
            folder = published_before(attempt)
            if folder is None:
                bring_pictures(attempt.workspace, job)
                pictures = preprocess(attempt)
                state = optimise(attempt, pictures)
                deprocess(attempt, state)
                folder = publish(attempt, out)
    except JobCancelledError as error:
        _cancel(attempt)
        return Cancelled(message=str(error))
    # Prefect turns SIGTERM into its own signal while a flow runs.
    except (KeyboardInterrupt, TerminationSignal):
        if complete_published(store, job.id) or store.state_of(job.id) is JobState.COMPLETED:
            raise
        if _cancel_is_meant(attempt):
            _cancel(attempt)
        else:
            store.release(job.id, error="Its process was ended.", attempt=attempt.number, counted=False)
        raise
    except JobInterruptedError as error:
        store.release(job.id, error=str(error), attempt=attempt.number, counted=False)
        raise
    except JobStateError:
        raise
    except Exception as error:
        if attempt.recorded().outcome not in (None, JobState.COMPLETED):
            # Another attempt has the job now, and takes its files away when it has ended.
            raise JobStateError(f"Attempt {attempt.number} at job {job.id} was given up.") from error
        # What goes wrong once the result is in its place does not undo it.
        if complete_published(store, job.id) or store.state_of(job.id) is JobState.COMPLETED:
            return store.get(job.id).result_folder
        sentence = error_line(error, place=attempt.folder)
        if is_disk_full(error) and is_service_run():
            # It may stay full for days, and says nothing about the job: no attempt is counted.
            wait = min(_FULL_PAUSE_SECONDS * attempt.number, _LONGEST_FULL_PAUSE_SECONDS)
            until = utc_now() + timedelta(seconds=wait)
            store.release(job.id, error=sentence, attempt=attempt.number, counted=False, lease_until=until)
            raise
        if (isinstance(error, _WORTH_ANOTHER_TRY) or is_refusal(error)) and _tries_left(attempt):
            pause = timedelta(seconds=_PAUSE_SECONDS * (attempt.number - job.attempts_before_retry))
            store.release(job.id, error=sentence, attempt=attempt.number, lease_until=utc_now() + pause)
            raise
        store.fail(job.id, attempt=attempt.number, error=sentence)
        failure_report(store.get(job.id), sentence)
        # The best picture stays in the job's folder, where the error says it is.
        if not isinstance(error, NotFiniteError):
            attempt.discard_copies()
        raise
    return str(folder)


def _cancel(attempt: Attempt) -> None:
    attempt.store.cancel(attempt.job.id, attempt=attempt.number)
    attempt.discard_copies()


def _cancel_is_meant(attempt: Attempt) -> bool:
    """Whether a signal to this process means that nobody wants the job any more, or only that the service stops."""
    if not is_service_run():
        return True
    if attempt.store.state_of(attempt.job.id) is JobState.CANCELLING:
        return True
    return cancelled_in_prefect(str(flow_run.id))


def _tries_left(attempt: Attempt) -> bool:
    # `nst run` is one try: nobody would start the next.
    tries = attempt.number - attempt.job.attempts_before_retry
    return is_service_run() and tries < attempt.settings.max_attempts
