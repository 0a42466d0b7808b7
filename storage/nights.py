"""Nights: the runs over a collection, whose they are, which jobs they have, and every way in which one ends."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from storage.database import Database
from storage.jobs import new_job_id
from storage.lifecycle import OPEN, Store, utc_now
from storage.models import Attempt, Job, JobState, Night, NightState, Source
from storage.submissions import night_held, waits

_IDS_A_STATEMENT: Final = 1000
_NIGHT_LOCK: Final = 0x6E73746E  # "nstn", the key of a PostgreSQL advisory lock
_UNDER_WAY: Final = (JobState.RUNNING, JobState.CANCELLING, JobState.COMPLETED)
# Of several jobs of one fingerprint the first of these says how the pair stands.
_STANDING: Final = (JobState.COMPLETED, *OPEN, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class Standing:
    """How far a pair of a collection is: its job, and the pictures' paths, content first, of one not completed."""

    job_id: str
    state: JobState
    night_id: str | None
    paths: tuple[str, ...]


class NightStore(Store):
    """The nights of one database. What its methods return is detached, as the JobStore's."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], datetime] = utc_now,
        make_id: Callable[[], str] = new_job_id,
    ) -> None:
        super().__init__(database, clock=clock)
        self._make_id = make_id

    def start(
        self, collection: str, *, host: str, pid: int, flow_run_id: str, lease_until: datetime
    ) -> tuple[Night, bool]:
        """A new night of the collection, and True; the one that is running, and False, where there is one."""
        with self._database.begin() as session:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(select(func.pg_advisory_xact_lock(_NIGHT_LOCK)))
            running = session.scalar(
                select(Night).where(Night.collection == collection, Night.state == NightState.RUNNING)
            )
            if running is not None:
                return running, False
            night_id = self._make_id()
            while session.get(Night, night_id) is not None:
                night_id = self._make_id()
            night = Night(
                id=night_id,
                collection=collection,
                state=NightState.RUNNING,
                started_at=self._clock(),
                lease_until=lease_until,
                host=host,
                pid=pid,
                flow_run_id=flow_run_id,
            )
            session.add(night)
            session.flush()
            session.refresh(night)
        return night, True

    def take_over(self, night_id: str, *, host: str, pid: int, flow_run_id: str, lease_until: datetime) -> Night | None:
        """Go on with a night that has been handed to this run; None where it has ended or another run has it."""
        with self._database.begin() as session:
            # A run may begin before whoever submitted it has noted it.
            taken = _change(
                session,
                night_id,
                Night.pid.is_(None),
                func.coalesce(Night.flow_run_id, flow_run_id) == flow_run_id,
                host=host,
                pid=pid,
                flow_run_id=flow_run_id,
                lease_until=lease_until,
            )
            return session.get(Night, night_id) if taken else None

    def renew(self, flow_run_id: str, *, lease_until: datetime) -> None:
        """Hold the leases of all nights of a run until then."""
        with self._database.begin() as session:
            session.connection().execute(
                update(Night)
                .where(Night.flow_run_id == flow_run_id, Night.state == NightState.RUNNING)
                .values(lease_until=lease_until)
            )

    def release(self, night_id: str, *, submission: int, lease_until: datetime | None = None) -> bool:
        """Take a running night, and its waiting jobs, from the run it was handed to at that submission.

        Nobody hands it to the next before `lease_until`. Returns False when it has ended or another was faster.
        """
        with self._database.begin() as session:
            released = _change(
                session,
                night_id,
                Night.submission == submission,
                host=None,
                pid=None,
                flow_run_id=None,
                lease_until=lease_until,
                submission=Night.submission + 1,
            )
            if released:
                session.connection().execute(
                    update(Job)
                    .where(Job.night_id == night_id, Job.state == JobState.PENDING, Job.flow_run_id.is_not(None))
                    .values(flow_run_id=None, lease_until=None, submission=Job.submission + 1)
                )
        return released

    def note_submission(self, night_id: str, *, submission: int, flow_run_id: str, lease_until: datetime) -> None:
        """Hand a released night to a run, which has until then to begin; one that it has begun already is its own."""
        with self._database.begin() as session:
            _change(
                session,
                night_id,
                Night.submission == submission,
                Night.pid.is_(None),
                flow_run_id=flow_run_id,
                lease_until=lease_until,
            )

    def note_plan(self, night_id: str, *, pairs: int, done_before: int, problems: Sequence[Mapping[str, Any]]) -> None:
        """Note what a running night has found."""
        with self._database.begin() as session:
            found = {"pairs": pairs, "done_before": done_before, "problems": [dict(problem) for problem in problems]}
            _change(session, night_id, **found)

    def holds(self, night_id: str, *, flow_run_id: str) -> bool:
        """Whether the night runs and this run has it."""
        with self._database.session() as session:
            return session.scalar(night_held(night_id, flow_run_id=flow_run_id)) is not None

    def take_up(self, night_id: str, job_ids: Collection[str], *, flow_run_id: str) -> bool:
        """Make these jobs of the collection the night's: failed and cancelled ones wait again, as if not tried.

        One that has been completed since it was found is the night's too. Nothing is changed, and False returned,
        where the night has ended or this run has lost it.
        """
        tried = select(func.count()).where(Attempt.job_id == Job.id).scalar_subquery()
        again = {"state": JobState.PENDING, "error": None, "finished_at": None, "result_folder": None}
        waits_anew = {"flow_run_id": None, "lease_until": None, "submission": Job.submission + 1, "night_id": night_id}
        with self._database.begin() as session:
            if session.scalar(night_held(night_id, flow_run_id=flow_run_id).with_for_update()) is None:
                return False
            for page in _pages(list(job_ids)):
                of = update(Job).where(Job.id.in_(page))
                for statement in (
                    of.where(Job.state.in_(_UNDER_WAY)).values(night_id=night_id),
                    of.where(Job.state == JobState.PENDING).values(waits_anew),
                    of.where(Job.state.in_((JobState.FAILED, JobState.CANCELLED))).values(
                        {**again, **waits_anew, "attempts_before_retry": tried}
                    ),
                ):
                    session.connection().execute(statement)
        return True

    def hand_out(self, night_id: str, *, flow_run_id: str, lease_until: datetime, limit: int) -> dict[str, int]:
        """Hand waiting jobs of a running night to its run: their ids and submissions, in the order of waiting().

        A run that has lost the night is given none.
        """
        own = night_held(night_id, flow_run_id=flow_run_id)
        ours = select(Job.id, Job.submission).where(Job.night_id.in_(own), waits(self._clock()))
        with self._database.begin() as session:
            rows = session.execute(ours.order_by(Job.priority.desc(), Job.created_at, Job.id).limit(limit)).all()
            for page in _pages([row.id for row in rows]):
                session.connection().execute(
                    update(Job).where(Job.id.in_(page)).values(flow_run_id=flow_run_id, lease_until=lease_until)
                )
        return {row.id: row.submission for row in rows}

    def not_begun(self, night_id: str, *, flow_run_id: str) -> int:
        """How many jobs of the night have been handed to this run and still wait."""
        handed = (Job.night_id == night_id, Job.state == JobState.PENDING, Job.flow_run_id == flow_run_id)
        with self._database.session() as session:
            return session.scalar(select(func.count()).select_from(Job).where(*handed)) or 0

    def finish(self, night_id: str, *, contact_sheet: str | None = None, error: str | None = None) -> Night | None:
        """End a running night: failed with an `error`, a failed job or a problem, else completed.

        Returns it with the counts of its jobs; None when it has ended before.
        """
        with self._database.begin() as session:
            night = session.get(Night, night_id)
            counts = _counts(session, night_id)
            bad = error is not None or counts[JobState.FAILED] or (night is not None and night.problems)
            _change(
                session,
                night_id,
                state=NightState.FAILED if bad else NightState.COMPLETED,
                contact_sheet=contact_sheet,
                error=error,
                **self._end(counts),
            )
            return _ended(session, night_id, night)

    def cancel(self, night_id: str) -> Night | None:
        """Cancel a running night with its jobs: those that wait at once, those that run by their workers.

        Returns it with the counts of its jobs; None when it has ended before.
        """
        with self._database.begin() as session:
            night = session.get(Night, night_id)
            if night is None or night.state is not NightState.RUNNING:
                return None
            own = update(Job).where(Job.night_id == night_id)
            for statement in (
                own.where(Job.state == JobState.PENDING).values(
                    state=JobState.CANCELLED, finished_at=self._clock(), result_folder=None, lease_until=None
                ),
                own.where(Job.state == JobState.RUNNING).values(state=JobState.CANCELLING),
            ):
                session.connection().execute(statement)
            _change(session, night_id, state=NightState.CANCELLED, **self._end(_counts(session, night_id)))
            return _ended(session, night_id, night)

    def get(self, night_id: str) -> Night | None:
        """The night with this id."""
        with self._database.session() as session:
            return session.get(Night, night_id)

    def running(self) -> list[Night]:
        """The nights that have not ended, oldest first."""
        query = select(Night).where(Night.state == NightState.RUNNING).order_by(Night.started_at, Night.id)
        with self._database.session() as session:
            return list(session.scalars(query))

    def finished_after(self, time: datetime) -> list[Night]:
        """The nights that ended after `time`, in whatever way, the first to end first."""
        query = select(Night).where(Night.finished_at > time).order_by(Night.finished_at, Night.id)
        with self._database.session() as session:
            return list(session.scalars(query))

    def last(self, collection: str) -> Night | None:
        """The night of a collection that runs, else the newest."""
        query = select(Night).where(Night.collection == collection)
        with self._database.session() as session:
            # A clock that was set back makes what runs older than what has ended.
            runs = Night.finished_at.is_(None).desc()
            return session.scalar(query.order_by(runs, Night.started_at.desc(), Night.id.desc()).limit(1))

    def jobs(self, night_id: str, *, limit: int) -> list[Job]:
        """The jobs of a night, oldest first, at most `limit`."""
        query = select(Job).where(Job.night_id == night_id).order_by(Job.created_at, Job.id).limit(limit)
        with self._database.session() as session:
            return list(session.scalars(query))

    def counts(self, night_id: str) -> dict[JobState, int]:
        """How many of a night's jobs are in each state, 0 included."""
        with self._database.session() as session:
            return _counts(session, night_id)

    def standings(self, collection: str) -> dict[str, Standing]:
        """How each pair of a collection stands that has had a job, by fingerprint."""
        own = (Job.collection == collection, Job.fingerprint.is_not(None))
        jobs = select(Job.fingerprint, Job.id, Job.state, Job.night_id).where(*own).order_by(Job.created_at, Job.id)
        pictures = (
            select(Source.job_id, Source.original_path)
            .join(Job, Job.id == Source.job_id)
            .where(*own, Job.state != JobState.COMPLETED)
            .order_by(Source.role, Source.position)
        )
        with self._database.session() as session:
            rows = session.execute(jobs).all()
            paths: dict[str, tuple[str, ...]] = {}
            for job_id, path in session.execute(pictures):
                paths[job_id] = (*paths.get(job_id, ()), path)
        # The best comes last and stays; of equals that is the newest.
        rows = sorted(rows, key=lambda row: -_STANDING.index(row.state))
        return {row.fingerprint: Standing(row.id, row.state, row.night_id, paths.get(row.id, ())) for row in rows}

    def results(self, collection: str) -> dict[str, str]:
        """The result folder of each pair of a collection that is done, by fingerprint."""
        query = (
            select(Job.fingerprint, Job.result_folder)
            .where(Job.collection == collection, Job.state == JobState.COMPLETED, Job.fingerprint.is_not(None))
            .order_by(Job.created_at, Job.id)
        )
        with self._database.session() as session:
            return {str(fingerprint): folder for fingerprint, folder in session.execute(query).all() if folder}

    def _end(self, counts: Mapping[JobState, int]) -> dict[str, Any]:
        return {
            "finished_at": self._clock(),
            "lease_until": None,
            "completed": counts[JobState.COMPLETED],
            "failed": counts[JobState.FAILED],
            "cancelled": counts[JobState.CANCELLED] + counts[JobState.CANCELLING],
        }


def _change(session: Session, night_id: str, *guards: Any, **values: Any) -> bool:
    """Change a running night in one guarded statement; False where the guards do not hold."""
    changed: CursorResult[Any] = session.connection().execute(
        update(Night).where(Night.id == night_id, Night.state == NightState.RUNNING, *guards).values(**values)
    )
    return bool(changed.rowcount)


def _ended(session: Session, night_id: str, night: Night | None) -> Night | None:
    if night is None or night.state is not NightState.RUNNING:
        return None
    session.refresh(night)
    return night


def _counts(session: Session, night_id: str) -> dict[JobState, int]:
    query = select(Job.state, func.count()).where(Job.night_id == night_id).group_by(Job.state)
    return dict.fromkeys(JobState, 0) | dict(session.execute(query).all())


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), _IDS_A_STATEMENT):
        yield ids[first : first + _IDS_A_STATEMENT]
