"""Every question about jobs and every change of their state, each in one transaction."""

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

from sqlalchemy import func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from storage.database import Database
from storage.errors import AmbiguousJobError, JobNotFoundError, JobStateError
from storage.models import Attempt, Job, JobState, LossPoint, Role, Source, UtcDateTime

# The life of a job. A running job may start running again: its worker died and a new attempt takes over.
TRANSITIONS: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.CLAIMED: frozenset({JobState.PENDING, JobState.FAILED, JobState.CANCELLED, JobState.REJECTED}),
    JobState.PENDING: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.RUNNING, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLING}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLING: frozenset({JobState.CANCELLED}),
    JobState.CANCELLED: frozenset(),
    JobState.REJECTED: frozenset(),
}

# Crockford's: no i, l, o and u, so that an id can be read aloud and typed.
_ID_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH: Final = 10
_LISTED_IDS: Final = 5

_NEWEST_FIRST: Final = (Job.created_at.desc(), Job.id.desc())


@dataclass(frozen=True, kw_only=True)
class NewSource:
    """A picture of a job to be made: where it was, its name in the result folder, its size in bytes and pixels."""

    role: Role
    original_path: str
    file_name: str
    sha256: str
    bytes: int
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be made; the order of its sources is kept within each role."""

    name: str
    preset: str
    config: Mapping[str, Any]
    sources: Sequence[NewSource]


@dataclass(frozen=True, kw_only=True)
class NewLossPoint:
    """The losses after one iteration, by layer too; `seconds` since the start of the optimisation.

    `learning_rate` is None for an optimiser that has none. Raises ValueError when a number is not finite.
    """

    iteration: int
    total: float
    content: float
    style: float
    tv: float
    layers: Mapping[str, float]
    learning_rate: float | None
    seconds: float

    def __post_init__(self) -> None:
        numbers = [self.total, self.content, self.style, self.tv, self.seconds, *self.layers.values()]
        if self.learning_rate is not None:
            numbers.append(self.learning_rate)
        if not all(map(isfinite, numbers)):
            raise ValueError(f"The losses after iteration {self.iteration} are not finite.")


def utc_now() -> datetime:
    """The time of the system, in UTC."""
    return datetime.now(UTC)


def new_job_id() -> str:
    """Ten random characters of Crockford's base32 in lower case."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


class JobStore:
    """The jobs of one database.

    Methods that change a job raise JobNotFoundError for an unknown id and JobStateError where TRANSITIONS do
    not allow the change or the attempt is no longer open, and then change nothing. All raise DatabaseError
    when the database does not work. What they return is detached: a copy that later changes do not touch.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], datetime] = utc_now,
        make_id: Callable[[], str] = new_job_id,
    ) -> None:
        self._database = database
        self._clock = clock
        self._make_id = make_id

    def create(self, new: NewJob) -> Job:
        """Write a claimed job under a fresh id."""
        with self._database.begin() as session:
            job_id = self._make_id()
            while session.get(Job, job_id) is not None:
                job_id = self._make_id()
            positions: Counter[Role] = Counter()
            sources = []
            for source in new.sources:
                sources.append(Source(position=positions[source.role], **asdict(source)))
                positions[source.role] += 1
            job = Job(
                id=job_id,
                name=new.name,
                state=JobState.CLAIMED,
                preset=new.preset,
                config=dict(new.config),
                created_at=self._clock(),
                sources=sources,
            )
            session.add(job)
            session.flush()
            session.refresh(job)
        return job

    def make_pending(self, job_id: str) -> None:
        """Let a claimed job wait for its turn."""
        with self._database.begin() as session:
            _move(session, job_id, JobState.PENDING)

    def reject(self, job_id: str, *, error: str) -> None:
        """End a claimed job that can never work."""
        with self._database.begin() as session:
            _move(session, job_id, JobState.REJECTED, error=error, finished_at=self._clock())

    def start_attempt(self, job_id: str, *, host: str, pid: int, flow_run_id: str | None = None) -> int:
        """Run a pending job, or a running one whose worker died; returns the attempt's number, from 1.

        An attempt that was still open ends here as failed: it can no longer change the job.
        """
        now = self._clock()
        with self._database.begin() as session:
            _move(
                session,
                job_id,
                JobState.RUNNING,
                host=host,
                started_at=func.coalesce(Job.started_at, literal(now, UtcDateTime())),
            )
            _end_attempts(session, job_id, JobState.FAILED, now, error="Another attempt took over.")
            last = session.scalar(select(func.max(Attempt.number)).where(Attempt.job_id == job_id))
            number = (last or 0) + 1
            session.add(
                Attempt(job_id=job_id, number=number, started_at=now, host=host, pid=pid, flow_run_id=flow_run_id)
            )
        return number

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
            _require_open(session, job_id, attempt)
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
            session.connection().execute(
                update(Attempt).where(Attempt.job_id == job_id, Attempt.number == attempt).values(device=device)
            )

    def add_loss_points(self, job_id: str, *, attempt: int, points: Sequence[NewLossPoint]) -> None:
        """Write loss points of the open attempt; a point of an iteration already there is replaced."""
        if not points:
            return
        rows = [{"job_id": job_id, "attempt": attempt, **asdict(point)} for point in points]
        with self._database.begin() as session:
            _require_open(session, job_id, attempt)
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
        """End a running job whose result of `rows` x `columns` pixels lies in `result_folder`."""
        now = self._clock()
        with self._database.begin() as session:
            _move(
                session,
                job_id,
                JobState.COMPLETED,
                result_folder=result_folder,
                result_files=dict(result_files),
                result_rows=rows,
                result_columns=columns,
                finished_at=now,
            )
            _require_open(session, job_id, attempt)
            _end_attempts(session, job_id, JobState.COMPLETED, now)

    def fail(self, job_id: str, *, attempt: int | None, error: str) -> None:
        """End a job with the one sentence that says why; `attempt` None ends whichever attempt is open."""
        now = self._clock()
        with self._database.begin() as session:
            _move(session, job_id, JobState.FAILED, error=error, finished_at=now)
            if attempt is not None:
                _require_open(session, job_id, attempt)
            _end_attempts(session, job_id, JobState.FAILED, now, error=error)

    def cancel(self, job_id: str, *, attempt: int | None) -> None:
        """Cancel a job that has not ended; `attempt` None ends whichever attempt is open."""
        now = self._clock()
        with self._database.begin() as session:
            session.connection().execute(
                update(Job).where(Job.id == job_id, Job.state == JobState.RUNNING).values(state=JobState.CANCELLING)
            )
            _move(session, job_id, JobState.CANCELLED, finished_at=now)
            if attempt is not None:
                _require_open(session, job_id, attempt)
            _end_attempts(session, job_id, JobState.CANCELLED, now)

    def get(self, job_id: str) -> Job:
        """The job with its sources and attempts."""
        with self._database.session() as session:
            job = session.get(Job, job_id)
        if job is None:
            raise _no_job(job_id)
        return job

    def find(self, reference: str) -> Job:
        """The one job with this id, or whose id begins so or whose name is this.

        Raises JobNotFoundError when there is none and AmbiguousJobError when there are several.
        """
        wanted_id = reference.lower().encode("ascii", "replace").decode()
        fits = or_(Job.id.startswith(wanted_id, autoescape=True), Job.name == reference)
        with self._database.session() as session:
            job = session.get(Job, wanted_id)
            if job is not None:
                return job
            found = session.scalars(select(Job).where(fits).order_by(*_NEWEST_FIRST).limit(_LISTED_IDS + 1)).all()
        if not reference or not found:
            raise _no_job(reference)
        if len(found) > 1:
            ids = ", ".join(job.id for job in found[:_LISTED_IDS])
            more = ", ..." if len(found) > _LISTED_IDS else ""
            raise AmbiguousJobError(f"{reference!r} fits several jobs: {ids}{more}; give the id of one of them.")
        return found[0]

    def recent(self, *, limit: int, state: JobState | None = None) -> list[Job]:
        """The newest jobs first, at most `limit`, of one state or of all."""
        query = select(Job).order_by(*_NEWEST_FIRST).limit(limit)
        if state is not None:
            query = query.where(Job.state == state)
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


def _no_job(reference: str) -> JobNotFoundError:
    return JobNotFoundError(f"There is no job {reference!r}; `nst jobs` lists the jobs.")


def _move(session: Session, job_id: str, to: JobState, **values: object) -> None:
    """Change the state in one guarded statement, so that of two processes only one can."""
    allowed = [state for state, following in TRANSITIONS.items() if to in following]
    moved = session.connection().execute(
        update(Job).where(Job.id == job_id, Job.state.in_(allowed)).values(state=to, **values)
    )
    if moved.rowcount:
        return
    state = session.scalar(select(Job.state).where(Job.id == job_id))
    if state is None:
        raise _no_job(job_id)
    raise JobStateError(f"Job {job_id} is {state} and cannot become {to}.")


def _require_open(session: Session, job_id: str, attempt: int) -> None:
    found = session.get(Attempt, (job_id, attempt))
    if found is not None and found.finished_at is None:
        return
    if session.get(Job, job_id) is None:
        raise _no_job(job_id)
    raise JobStateError(f"Attempt {attempt} at job {job_id} is not open; it has ended or another took over.")


def _end_attempts(session: Session, job_id: str, outcome: JobState, now: datetime, *, error: str | None = None) -> None:
    session.connection().execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.finished_at.is_(None))
        .values(finished_at=now, outcome=outcome, error=error)
    )


def _upsert(session: Session) -> postgresql.Insert | sqlite.Insert:
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(LossPoint)
    key = ["job_id", "iteration"]
    rest = {column.key: column for column in statement.excluded if column.key not in key}
    return statement.on_conflict_do_update(index_elements=key, set_=rest)
