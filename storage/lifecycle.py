"""The life of a job: which state may follow which, and the guarded statements that change one."""

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Final, NoReturn

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage.database import Database
from storage.errors import JobNotFoundError, JobStateError
from storage.models import Attempt, Job, JobState

TRANSITIONS: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.CLAIMED: frozenset({JobState.PENDING, JobState.FAILED, JobState.CANCELLED, JobState.REJECTED}),
    # Completed at once where another job's result is reused.
    JobState.PENDING: frozenset({JobState.RUNNING, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}),
    # Pending again where the worker died.
    JobState.RUNNING: frozenset({JobState.PENDING, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLING}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset({JobState.PENDING}),
    # Completed where the cancel came too late.
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.COMPLETED}),
    JobState.CANCELLED: frozenset({JobState.PENDING}),
    JobState.REJECTED: frozenset(),
}
OPEN: Final = (JobState.RUNNING, JobState.CANCELLING, JobState.PENDING, JobState.CLAIMED)
ENDED: Final = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.REJECTED})


def utc_now() -> datetime:
    """The time of the system, in UTC."""
    return datetime.now(UTC)


class Store:
    """A database and a clock: what all parts of the JobStore work on."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock


def move(
    session: Session, job_id: str, to: JobState, *, of: Collection[JobState] | None = None, **values: object
) -> None:
    """Change the state in one guarded statement, so that of two processes only one can.

    The change is made from the states that TRANSITIONS allow, or from those of them that are in `of`. An end
    also ends the lease.
    """
    allowed = [state for state, following in TRANSITIONS.items() if to in following and (of is None or state in of)]
    if to in ENDED:
        values["lease_until"] = None
    moved = session.connection().execute(
        update(Job).where(Job.id == job_id, Job.state.in_(allowed)).values(state=to, **values)
    )
    if not moved.rowcount:
        refuse(session, job_id, f"become {to}")


def refuse(session: Session, job_id: str, what: str) -> NoReturn:
    """Raise JobStateError, or JobNotFoundError where there is no such job."""
    raise JobStateError(f"Job {job_id} is {state_in(session, job_id)} and cannot {what}.")


def state_in(session: Session, job_id: str) -> JobState:
    """The state of a job; raises JobNotFoundError."""
    state = session.scalar(select(Job.state).where(Job.id == job_id))
    if state is None:
        raise no_job(job_id)
    return state


def no_job(reference: str) -> JobNotFoundError:
    """The error for an id or name that no job has."""
    return JobNotFoundError(f"There is no job {reference!r}; `nst jobs` lists the jobs.")


def change_attempt(session: Session, job_id: str, attempt: int, **values: object) -> None:
    """Change columns of an attempt; raises JobStateError when it is not open."""
    changed = session.connection().execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.number == attempt, Attempt.finished_at.is_(None))
        .values(**values)
    )
    if not changed.rowcount:
        require_open(session, job_id, attempt)


def require_open(session: Session, job_id: str, attempt: int) -> None:
    """Raise JobStateError unless the attempt is open, JobNotFoundError where there is no such job."""
    found = session.get(Attempt, (job_id, attempt))
    if found is not None and found.finished_at is None:
        return
    state_in(session, job_id)
    raise JobStateError(f"Attempt {attempt} at job {job_id} is not open; it has ended or another took over.")


def end_attempts(session: Session, job_id: str, outcome: JobState, now: datetime, *, error: str | None = None) -> None:
    """End the attempt that is open, if there is one."""
    session.connection().execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.finished_at.is_(None))
        .values(finished_at=now, outcome=outcome, error=error)
    )
