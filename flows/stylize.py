"""The flow of one job: preprocess -> optimise -> deprocess -> publish. It takes a pending job from the database
to its result folder and leaves the database true whatever happens on the way."""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from prefect import flow
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.attempt import Attempt, cancelled_in_prefect, is_service_run
from flows.claim import bring_pictures
from flows.dashboard import failure_report
from flows.errors import ClusterLostError, JobCancelledError, JobInterruptedError, WorkerLostError
from flows.report import RECORD
from flows.settings import load_settings
from flows.tasks import complete, deprocess, optimise, preprocess, publish
from nst_engine.errors import DiskSpaceError, NotFiniteError, OutOfMemoryError
from storage.database import open_database
from storage.errors import DatabaseError, WorkspaceError
from storage.jobs import JobStore, utc_now
from storage.models import JobState
from storage.workspace import Workspace

_PAUSE_SECONDS: Final = 10.0
"""Before the second attempt, and as much more before each further one: what failed may need time to be mended."""

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
    with open_database(Workspace(Path(parameters["home"])).database_path) as database:
        return JobStore(database).get(parameters["job_id"]).name


@flow(name="stylize", flow_run_name=_run_name, validate_parameters=False)
def stylize(
    job_id: str, home: str, device: str | None = None, out: str | None = None, submission: int | None = None
) -> Any:
    """Run the pending job `job_id` of the service at `home`; returns the result folder.

    The result goes to the folder `out`, else to one named after the job in the outbox. When anything fails
    the job is failed with one sentence, and the error is raised; what another attempt may get past leaves the job
    pending instead, while it has attempts left. A cancelled job ends in Prefect's state Cancelled. A run
    whose `submission` is no longer the job's own leaves the job alone.
    """
    settings = load_settings(home=Path(home), device=device)
    workspace = Workspace(settings.home)
    with open_database(workspace.database_path) as database:
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
    """Take the attempt through its tasks and write how it ended into the database."""
    job, store = attempt.job, attempt.store
    try:
        folder = _published_before(attempt)
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
        if _cancel_is_meant(attempt):
            _cancel(attempt)
        else:
            store.release(job.id, error="Its process was ended.", counted=False)
        raise
    except JobInterruptedError as error:
        store.release(job.id, error=str(error), counted=False)
        raise
    except Exception as error:
        # A fault of the program may have any text; the record keeps one line.
        sentence = " ".join(str(error).split()) or repr(error)
        if isinstance(error, _WORTH_ANOTHER_TRY) and _tries_left(attempt):
            pause = timedelta(seconds=_PAUSE_SECONDS * (attempt.number - job.attempts_before_retry))
            store.release(job.id, error=sentence, lease_until=utc_now() + pause)
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


def _published_before(attempt: Attempt) -> Path | None:
    """Where an earlier attempt that died before it could say so has put the result; completes the job."""
    reserved = attempt.job.result_folder
    if reserved is None or not (Path(reserved) / RECORD).is_file():
        return None
    if json.loads((Path(reserved) / RECORD).read_text(encoding="utf-8"))["id"] != attempt.job.id:
        return None
    complete(attempt, Path(reserved))
    return Path(reserved)
