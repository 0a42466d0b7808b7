"""Attempts at jobs: their start, lease, phases and losses, and every way in which one ends."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from storage.errors import JobStateError
from storage.lifecycle import Store, change_attempt, end_attempts, move, refuse, require_open, state_in
from storage.models import Attempt, Job, JobState, LossPoint, UtcDateTime
from storage.new import NewLossPoint

_AT_WORK = (JobState.RUNNING, JobState.CANCELLING)


class AttemptStore(Store):
    """The part of the JobStore about running jobs."""

    def start_attempt(
        self,
        job_id: str,
        *,
        host: str,
        pid: int,
        lease_until: datetime,
        flow_run_id: str | None = None,
        submission: int | None = None,
    ) -> int:
        """Run a pending job; returns the attempt's number, from 1.

        `submission` is the number under which the job was handed to the caller; JobStateError when the job has
        been withdrawn since.
        """
        now = self._clock()
        with self._database.begin() as session:
            move(
                session,
                job_id,
                JobState.RUNNING,
                host=host,
                started_at=func.coalesce(Job.started_at, literal(now, UtcDateTime())),
                lease_until=lease_until,
                # A run that has the job keeps it, also where it starts it in a run within.
                flow_run_id=func.coalesce(Job.flow_run_id, flow_run_id),
            )
            current = session.scalar(select(Job.submission).where(Job.id == job_id))
            if submission not in (None, current):
                raise JobStateError(f"Job {job_id} is at submission {current}; submission {submission} has lost it.")
            last = session.scalar(select(func.max(Attempt.number)).where(Attempt.job_id == job_id))
            number = (last or 0) + 1
            session.add(
                Attempt(job_id=job_id, number=number, started_at=now, host=host, pid=pid, flow_run_id=flow_run_id)
            )
        return number

    def renew(self, job_id: str, *, attempt: int, lease_until: datetime) -> JobState:
        """Hold the lease of an open attempt until then; returns whether the job is running or cancelling."""
        with self._database.begin() as session:
            require_open(session, job_id, attempt)
            session.connection().execute(update(Job).where(Job.id == job_id).values(lease_until=lease_until))
            return state_in(session, job_id)

    def state_of(self, job_id: str) -> JobState:
        """The state of a job, read alone."""
        with self._database.session() as session:
            return state_in(session, job_id)

    def enter_phase(self, job_id: str, *, attempt: int, phase: str) -> None:
        """Note what the open attempt is at."""
        with self._database.begin() as session:
            change_attempt(session, job_id, attempt, phase=phase)

    def note_first_iteration(self, job_id: str, *, attempt: int, iteration: int) -> None:
        """Note the iteration from which the open attempt went on."""
        with self._database.begin() as session:
            change_attempt(session, job_id, attempt, first_iteration=iteration)

    def record_environment(
        self,
        job_id: str,
        *,
        attempt: int,
        weights_name: str,
        weights_sha256: str,
        precision: str,
        device: str,
        versions: Mapping[str, str],
    ) -> None:
        """Note what the open attempt computes with: weights, precision, device and versions of libraries."""
        with self._database.begin() as session:
            change_attempt(session, job_id, attempt, device=device)
            session.connection().execute(
                update(Job)
                .where(Job.id == job_id)
                .values(
                    weights_name=weights_name,
                    weights_sha256=weights_sha256,
                    precision=precision,
                    device=device,
                    versions=dict(versions),
                )
            )

    def add_loss_points(self, job_id: str, *, attempt: int, points: Sequence[NewLossPoint]) -> None:
        """Write loss points of the open attempt; a point of an iteration already there is replaced."""
        if not points:
            return
        rows = [{"job_id": job_id, "attempt": attempt, **asdict(point)} for point in points]
        with self._database.begin() as session:
            require_open(session, job_id, attempt)
            session.connection().execute(_upsert(session), rows)

    def complete(
        self,
        job_id: str,
        *,
        attempt: int,
        result_folder: str,
        result_files: Mapping[str, str],
        rows: int,
        columns: int,
    ) -> None:
        """End a job whose result of `rows` x `columns` pixels lies in `result_folder`, even one being cancelled."""
        now = self._clock()
        with self._database.begin() as session:
            move(
                session,
                job_id,
                JobState.COMPLETED,
                of=_AT_WORK,
                result_folder=result_folder,
                result_files=dict(result_files),
                result_rows=rows,
                result_columns=columns,
                finished_at=now,
            )
            require_open(session, job_id, attempt)
            end_attempts(session, job_id, JobState.COMPLETED, now)

    @contextmanager
    def holding(self, job_id: str, *, attempt: int) -> Iterator[None]:
        """Nobody else can end the attempt, nor another begin, while the block lasts; JobStateError when it is not open.

        No other writer gets on either (on SQLite), so the block has to be short.
        """
        with self._database.begin() as session:
            session.scalar(select(Job.id).where(Job.id == job_id).with_for_update())
            require_open(session, job_id, attempt)
            yield

    def fail(self, job_id: str, *, attempt: int | None, error: str) -> None:
        """End a job with the one sentence that says why; `attempt` None ends whichever attempt is open."""
        now = self._clock()
        with self._database.begin() as session:
            move(session, job_id, JobState.FAILED, error=error, finished_at=now, result_folder=None)
            if attempt is not None:
                require_open(session, job_id, attempt)
            end_attempts(session, job_id, JobState.FAILED, now, error=error)

    def ask_cancel(self, job_id: str) -> JobState:
        """Cancel a pending job, or let its worker cancel a running one; returns the job's new state."""
        with self._database.begin() as session:
            state = state_in(session, job_id)
            if state is JobState.PENDING:
                move(
                    session,
                    job_id,
                    JobState.CANCELLED,
                    of=[JobState.PENDING],
                    finished_at=self._clock(),
                    result_folder=None,
                )
                return JobState.CANCELLED
            if state is JobState.RUNNING:
                move(session, job_id, JobState.CANCELLING)
            elif state is not JobState.CANCELLING:
                refuse(session, job_id, "be cancelled")
            return JobState.CANCELLING

    def cancel(self, job_id: str, *, attempt: int | None) -> None:
        """Cancel a job that has not ended; `attempt` None ends whichever attempt is open."""
        now = self._clock()
        with self._database.begin() as session:
            session.connection().execute(
                update(Job).where(Job.id == job_id, Job.state == JobState.RUNNING).values(state=JobState.CANCELLING)
            )
            move(session, job_id, JobState.CANCELLED, finished_at=now, result_folder=None)
            if attempt is not None:
                require_open(session, job_id, attempt)
            end_attempts(session, job_id, JobState.CANCELLED, now)

    def release(
        self,
        job_id: str,
        *,
        error: str,
        attempt: int | None = None,
        counted: bool = True,
        lease_until: datetime | None = None,
    ) -> None:
        """Let a running job wait for its turn again; its open attempt ends as failed with `error`.

        `attempt` None ends whichever attempt is open. One that is not `counted` leaves the job as many attempts as it
        had. Nobody takes the job up before `lease_until`.
        """
        now = self._clock()
        with self._database.begin() as session:
            move(
                session,
                job_id,
                JobState.PENDING,
                of=[JobState.RUNNING],
                flow_run_id=None,
                lease_until=lease_until,
                submission=Job.submission + 1,
                attempts_before_retry=Job.attempts_before_retry + (0 if counted else 1),
            )
            if attempt is not None:
                require_open(session, job_id, attempt)
            end_attempts(session, job_id, JobState.FAILED, now, error=error)

    def overdue(self, now: datetime) -> list[Job]:
        """Running and cancelling jobs without a lease or whose lease has run out, oldest first."""
        query = (
            select(Job)
            .where(Job.state.in_(_AT_WORK), or_(Job.lease_until.is_(None), Job.lease_until < now))
            .order_by(Job.created_at, Job.id)
        )
        with self._database.session() as session:
            return list(session.scalars(query))

    def held(self, host: str) -> list[Job]:
        """Running and cancelling jobs whose open attempt is on that host, oldest first."""
        here = Job.attempts.any((Attempt.host == host) & Attempt.finished_at.is_(None))
        query = select(Job).where(Job.state.in_(_AT_WORK), here).order_by(Job.created_at, Job.id)
        with self._database.session() as session:
            return list(session.scalars(query))

    def losses(self, job_id: str) -> list[LossPoint]:
        """The loss curve by iteration; empty for a job without one."""
        query = select(LossPoint).where(LossPoint.job_id == job_id).order_by(LossPoint.iteration)
        with self._database.session() as session:
            return list(session.scalars(query))

    def final_losses(self, job_ids: Sequence[str]) -> dict[str, LossPoint]:
        """The last loss point of each of these jobs that has one."""
        last = (
            select(LossPoint.job_id, func.max(LossPoint.iteration).label("iteration"))
            .where(LossPoint.job_id.in_(job_ids))
            .group_by(LossPoint.job_id)
            .subquery()
        )
        query = select(LossPoint).join(
            last, (LossPoint.job_id == last.c.job_id) & (LossPoint.iteration == last.c.iteration)
        )
        with self._database.session() as session:
            return {point.job_id: point for point in session.scalars(query)}


def _upsert(session: Session) -> postgresql.Insert | sqlite.Insert:
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(LossPoint)
    key = ["job_id", "iteration"]
    rest = {column.key: column for column in statement.excluded if column.key not in key}
    return statement.on_conflict_do_update(index_elements=key, set_=rest)
