"""What the metrics and `nst doctor` ask: sums and newest times. Every question stays quick at 100,000 jobs: each reads
an index, or a bounded number of rows."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, select

from storage.database import Database
from storage.models import Job, JobState, LossPoint
from storage.submissions import of_no_running_night


@dataclass(frozen=True)
class Pace:
    """How long an iteration of one job took on average, in seconds."""

    device: str
    precision: str
    seconds: float


@dataclass(frozen=True)
class Ended:
    """A job that has ended, with the sentence that says why where it failed."""

    job_id: str
    name: str
    state: JobState
    finished_at: datetime
    error: str | None


class Figures:
    """Reads one database. All methods raise DatabaseError when it does not work."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def oldest_pending(self) -> datetime | None:
        """When the job was made that has waited longest, those of a running night included."""
        with self._database.session() as session:
            return session.scalar(select(func.min(Job.created_at)).where(Job.state == JobState.PENDING))

    def oldest_in_the_queue(self) -> datetime | None:
        """As oldest_pending, without those of a running night, whose turn may be hours away."""
        query = select(Job.created_at).where(Job.state == JobState.PENDING, of_no_running_night())
        with self._database.session() as session:
            return session.scalar(query.order_by(Job.created_at, Job.id).limit(1))

    def newest_time(self) -> datetime | None:
        """The latest time at which a job was made or ended."""
        query = select(func.max(Job.created_at)), select(func.max(Job.finished_at))
        with self._database.session() as session:
            times = [time for time in map(session.scalar, query) if time is not None]
        return max(times, default=None)

    def paces(self, *, of_last: int) -> list[Pace]:
        """The paces of those of the jobs that ended last which computed something, the newest first."""
        newest = select(Job.id).where(Job.finished_at.is_not(None)).order_by(Job.finished_at.desc()).limit(of_last)
        last = (
            select(func.max(LossPoint.iteration))
            .where(LossPoint.job_id == Job.id, LossPoint.iteration > 0)
            .correlate(Job)
            .scalar_subquery()
        )
        query = (
            select(Job.device, Job.precision, LossPoint.iteration, LossPoint.seconds)
            .join(LossPoint, and_(LossPoint.job_id == Job.id, LossPoint.iteration == last))
            .where(Job.id.in_(newest), Job.reused_from.is_(None), Job.device.is_not(None))
            .order_by(Job.finished_at.desc())
        )
        with self._database.session() as session:
            return [
                Pace(row.device, row.precision or "unknown", row.seconds / row.iteration)
                for row in session.execute(query)
            ]

    def ended_since(self, time: datetime, *, limit: int | None = None) -> list[Ended]:
        """The jobs that ended at `time` or later, the newest first; at most `limit`."""
        columns = (Job.id, Job.name, Job.state, Job.finished_at, Job.error)
        query = select(*columns).where(Job.finished_at >= time).order_by(Job.finished_at.desc(), Job.id).limit(limit)
        with self._database.session() as session:
            rows = session.execute(query).all()
            return [Ended(row.id, row.name, row.state, row.finished_at, row.error) for row in rows]
