"""A result that is in its place though its job has not ended: whoever put it there died, or was refused, before the
database said so. Whatever else was to become of such a job, it is completed, so that no job fails or is cancelled
beside its own result, nor gets a second one."""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from flows.report import RECORD, result_files
from flows.result_file import result_size
from nst_engine.errors import ImageError
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState

# To say in the database what is true on the disk takes no longer.
_LEASE: Final = timedelta(minutes=1)


def record_in(folder: Path, job: Job) -> dict[str, Any] | None:
    """The job's record in a result folder; None where there is none, or that of another job."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return record if record["id"] == job.id else None


def complete_published(store: JobStore, job_id: str) -> bool:
    """Complete a pending, running or cancelling job whose result is in its place; False for any other.

    Its folder under work/ is left to the dispatcher. Raises JobStateError when the job has ended meanwhile.
    """
    job = store.get(job_id)
    if job.state not in (JobState.PENDING, JobState.RUNNING, JobState.CANCELLING) or job.result_folder is None:
        return False
    folder = Path(job.result_folder)
    record = record_in(folder, job)
    if record is None:
        return False
    try:
        rows, columns = result_size(job, folder)
    except ImageError:
        return False
    result: dict[str, Any] = {
        "result_folder": str(folder),
        "result_files": result_files(job),
        "rows": rows,
        "columns": columns,
    }
    twin = record.get("reused_from")
    if job.state is JobState.PENDING and twin is not None and store.state_of(twin) is JobState.COMPLETED:
        store.reuse(job.id, twin_id=twin, **result)
        return True
    if job.state is JobState.PENDING:
        number = store.start_attempt(
            job.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            lease_until=utc_now() + _LEASE,
            submission=job.submission,
        )
    else:
        number = job.attempts[-1].number
    store.complete(job.id, attempt=number, **result)
    return True


def cancel_job(store: JobStore, job_id: str) -> JobState:
    """Cancel a pending job, or let its worker cancel a running one; returns the job's new state.

    One whose result is in its place is completed: the cancel came too late. Raises JobStateError for one that has
    ended.
    """
    if store.state_of(job_id) is JobState.PENDING and complete_published(store, job_id):
        return JobState.COMPLETED
    return store.ask_cancel(job_id)
