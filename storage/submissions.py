"""Pending jobs as a queue: which wait, which run each has been handed to, and for how long that holds. The jobs of a
night that is running are its own: nobody else hands them out."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, update
from sqlalchemy.orm import aliased

from storage.lifecycle import Store, refuse
from storage.models import Attempt, Job, JobState, Night, NightState

_LONGEST_PAUSE: Final = timedelta(hours=1)
"""Nobody lets a job wait for so long; such a lease was given before the clock was set back."""


@dataclass(frozen=True)
class Submission:
    """A pending job in the hands of a run: until when, for the how manieth time, and after how many attempts."""

    job_id: str
    flow_run_id: str
    lease_until: datetime | None
    submission: int
    attempts: int


class SubmissionStore(Store):
    """The part of the JobStore about handing pending jobs to runs."""

    def wait_for_lock(self) -> None:
        """Return once this process may write; DatabaseError when another one held the lock for too long."""
        with self._database.begin() as session:
            session.connection()

    def waiting(self, *, limit: int, now: datetime, few: int = 1) -> list[Job]:
        """Pending jobs that no run has and nobody holds a lease on: the highest priority first, then those that came in
        bursts of at most `few`, then the oldest."""
        query = select(Job).where(waits(now), of_no_running_night())
        query = query.order_by(Job.priority.desc(), Job.burst_size > few, Job.created_at, Job.id).limit(limit)
        with self._database.session() as session:
            return list(session.scalars(query))

    def waiting_to_reuse(self, *, limit: int, now: datetime) -> list[Job]:
        """Those that wait and for which completed_twin() finds a job, oldest first."""
        twin = aliased(Job)
        completed = select(twin.id).where(
            twin.fingerprint == Job.fingerprint,
            twin.state == JobState.COMPLETED,
            twin.result_folder.is_not(None),
        )
        query = select(Job).where(waits(now), of_no_running_night(), completed.exists())
        with self._database.session() as session:
            return list(session.scalars(query.order_by(Job.created_at, Job.id).limit(limit)))

    def note_submission(self, job_ids: Collection[str], *, flow_run_id: str, lease_until: datetime) -> None:
        """Hand those of the jobs that are still pending to a run; one that the run has begun already is its own.

        One that a night has taken up meanwhile is the night's.
        """
        with self._database.begin() as session:
            session.connection().execute(
                update(Job)
                .where(Job.id.in_(job_ids), Job.state == JobState.PENDING, of_no_running_night())
                .values(flow_run_id=flow_run_id, lease_until=lease_until)
            )

    def submitted(self) -> list[Submission]:
        """Pending jobs that a run has, oldest first."""
        attempts = select(func.count()).where(Attempt.job_id == Job.id).scalar_subquery()
        query = (
            select(Job.id, Job.flow_run_id, Job.lease_until, Job.submission, attempts)
            .where(Job.state == JobState.PENDING, Job.flow_run_id.is_not(None), of_no_running_night())
            .order_by(Job.created_at, Job.id)
        )
        with self._database.session() as session:
            return [Submission(*row) for row in session.execute(query)]

    def extend_submission(self, flow_run_id: str, *, lease_until: datetime) -> None:
        """Let a run keep its pending jobs until then."""
        with self._database.begin() as session:
            session.connection().execute(
                update(Job)
                .where(Job.flow_run_id == flow_run_id, Job.state == JobState.PENDING)
                .values(lease_until=lease_until)
            )

    def withdraw_submission(self, job_id: str) -> None:
        """Take a pending job from its run, which can no longer start it: the next submission has a new number."""
        with self._database.begin() as session:
            withdrawn = session.connection().execute(
                update(Job)
                .where(Job.id == job_id, Job.state == JobState.PENDING)
                .values(flow_run_id=None, lease_until=None, submission=Job.submission + 1)
            )
            if not withdrawn.rowcount:
                refuse(session, job_id, "be withdrawn from its run")

    def open_runs(self) -> set[str]:
        """The runs that have a pending, running or cancelling job."""
        states = (JobState.PENDING, JobState.RUNNING, JobState.CANCELLING)
        query = select(Job.flow_run_id).where(Job.state.in_(states), Job.flow_run_id.is_not(None)).distinct()
        with self._database.session() as session:
            return {run for run in session.scalars(query) if run is not None}


def waits(now: datetime) -> ColumnElement[bool]:
    """A pending job that no run has and nobody holds a lease on."""
    return and_(
        Job.state == JobState.PENDING,
        Job.flow_run_id.is_(None),
        or_(Job.lease_until.is_(None), Job.lease_until < now, Job.lease_until > now + _LONGEST_PAUSE),
    )


def night_held(night_id: str, *, flow_run_id: str) -> Select[str]:
    """The id of the night while it runs and this run has it."""
    return select(Night.id).where(
        Night.id == night_id, Night.state == NightState.RUNNING, Night.flow_run_id == flow_run_id
    )


def of_no_running_night() -> ColumnElement[bool]:
    """A job that no running night has."""
    return ~select(Night.id).where(Night.id == Job.night_id, Night.state == NightState.RUNNING).exists()
