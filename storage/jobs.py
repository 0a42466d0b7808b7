"""Every question about jobs and every change of their state, each in one transaction."""

import os
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, delete, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from storage.attempts import AttemptStore
from storage.database import Database
from storage.errors import AmbiguousJobError, JobStateError, WorkspaceError
from storage.lifecycle import TRANSITIONS, move, no_job, refuse, utc_now
from storage.manifest import Manifest
from storage.models import Attempt, Job, JobState, LossPoint, Role, Source
from storage.new import NewJob, NewLossPoint, NewSource
from storage.submissions import SubmissionStore, night_held, of_no_running_night

__all__ = [
    "TRANSITIONS",
    "JobStore",
    "Manifest",
    "NewJob",
    "NewLossPoint",
    "NewSource",
    "is_job_id",
    "new_job_id",
    "utc_now",
]

# Crockford's: no i, l, o and u, so that an id can be read aloud and typed.
_ID_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH: Final = 10
_LISTED_IDS: Final = 5
_RESULT_LOCK: Final = 0x6E737472  # "nstr", the key of a PostgreSQL advisory lock

_NEWEST_FIRST: Final = (Job.created_at.desc(), Job.id.desc())
_OLDEST_FIRST: Final = (Job.created_at, Job.id)


def new_job_id() -> str:
    """Ten random characters of Crockford's base32 in lower case."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def is_job_id(text: str) -> bool:
    """Whether new_job_id() could have made it."""
    return len(text) == _ID_LENGTH and set(text) <= set(_ID_ALPHABET)


class JobStore(SubmissionStore, AttemptStore):
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
        super().__init__(database, clock=clock)
        self._make_id = make_id

    def create(self, new: NewJob) -> Job:
        """Write a claimed job under a fresh id."""
        with self._database.begin() as session:
            job = self._job(self._fresh_id(session), new, JobState.CLAIMED)
            session.add(job)
            session.flush()
            session.refresh(job)
        return job

    def create_pending(self, new: Iterable[NewJob], *, night_id: str, flow_run_id: str) -> list[str] | None:
        """Write jobs of a night that wait for their turn at once, in one transaction; returns their ids in order.

        Nothing is written, and None returned, where the night has ended or this run has lost it.
        """
        made: dict[str, Job] = {}
        with self._database.begin() as session:
            if session.scalar(night_held(night_id, flow_run_id=flow_run_id).with_for_update()) is None:
                return None
            for each in new:
                job_id = self._fresh_id(session, taken=made)
                made[job_id] = self._job(job_id, each, JobState.PENDING)
            session.add_all(made.values())
        return list(made)

    def _fresh_id(self, session: Session, *, taken: Collection[str] = ()) -> str:
        job_id = self._make_id()
        while job_id in taken or session.get(Job, job_id) is not None:
            job_id = self._make_id()
        return job_id

    def _job(self, job_id: str, new: NewJob, state: JobState) -> Job:
        positions: Counter[Role] = Counter()
        sources = []
        for source in new.sources:
            position = positions["style"] - 1 if source.role == "style_mask" else positions[source.role]
            sources.append(Source(position=position, **asdict(source)))
            positions[source.role] += 1
        return Job(
            id=job_id,
            name=new.name,
            state=state,
            preset=new.preset,
            config=dict(new.config),
            created_at=self._clock(),
            fingerprint=new.fingerprint,
            priority=new.priority,
            manifest=None if new.manifest is None else new.manifest.to_document(),
            error=new.rejection,
            lease_until=new.lease_until,
            snapshot_every=new.snapshot_every,
            collection=new.collection,
            night_id=new.night_id,
            burst_size=new.burst_size,
            sources=sources,
        )

    def claimed(self) -> list[Job]:
        """Claimed jobs whose files are to be moved, oldest first; one with an error is to be rejected."""
        query = select(Job).where(Job.state == JobState.CLAIMED, Job.manifest.is_not(None)).order_by(*_OLDEST_FIRST)
        with self._database.session() as session:
            return list(session.scalars(query))

    def forget(self, job_id: str) -> None:
        """Delete a claimed job."""
        with self._database.begin() as session:
            deleted = session.connection().execute(delete(Job).where(Job.id == job_id, Job.state == JobState.CLAIMED))
            if not deleted.rowcount:
                refuse(session, job_id, "be forgotten")

    def make_pending(self, job_id: str) -> None:
        """Let a claimed job wait for its turn."""
        with self._database.begin() as session:
            move(session, job_id, JobState.PENDING, of=[JobState.CLAIMED])

    def reject(self, job_id: str, *, error: str, folder: str) -> None:
        """End a claimed job that can never work and whose files lie in `folder`."""
        with self._database.begin() as session:
            move(session, job_id, JobState.REJECTED, error=error, result_folder=folder, finished_at=self._clock())

    def retry(self, job_id: str) -> None:
        """Let a failed or cancelled job wait for its turn again, as if it had not been tried."""
        tried = select(func.count()).where(Attempt.job_id == job_id).scalar_subquery()
        moved_out = select(Job.result_folder).where(
            Job.id == job_id, Job.state.in_([JobState.FAILED, JobState.CANCELLED])
        )
        with self._database.begin() as session:
            folder = session.scalar(moved_out.with_for_update())
            if folder is not None:
                raise JobStateError(
                    f"Job {job_id} cannot be tried again: its pictures have moved to {folder}; drop them again."
                )
            move(
                session,
                job_id,
                JobState.PENDING,
                of=[JobState.FAILED, JobState.CANCELLED],
                error=None,
                finished_at=None,
                result_folder=None,
                flow_run_id=None,
                lease_until=None,
                submission=Job.submission + 1,
                attempts_before_retry=tried,
            )

    def completed_twin(self, fingerprint: str) -> Job | None:
        """The newest completed job with this fingerprint and a result folder."""
        query = (
            select(Job)
            .where(Job.fingerprint == fingerprint, Job.state == JobState.COMPLETED, Job.result_folder.is_not(None))
            .order_by(*_NEWEST_FIRST)
            .limit(1)
        )
        with self._database.session() as session:
            return session.scalar(query)

    def behind_a_twin(self, jobs: Collection[Job]) -> set[str]:
        """The ids of those that share their fingerprint with a pending, running or cancelling job made before.

        A job that waits in a night does not count: its turn may be hours away.
        """
        states = (JobState.RUNNING, JobState.CANCELLING)
        wanted = {job.fingerprint for job in jobs if job.fingerprint}
        query = (
            select(Job.fingerprint, Job.created_at, Job.id)
            .where(
                Job.fingerprint.in_(wanted),
                or_(Job.state.in_(states), and_(Job.state == JobState.PENDING, of_no_running_night())),
            )
            .order_by(*_NEWEST_FIRST)
        )
        with self._database.session() as session:
            oldest = {row.fingerprint: (row.created_at, row.id) for row in session.execute(query)}
        return {
            job.id for job in jobs if job.fingerprint in oldest and oldest[job.fingerprint] < (job.created_at, job.id)
        }

    def reuse(
        self,
        job_id: str,
        *,
        twin_id: str,
        result_folder: str,
        result_files: Mapping[str, str],
        rows: int,
        columns: int,
    ) -> None:
        """End a pending job with a copy of the completed twin's result; losses and environment are copied here.

        Raises JobStateError when the twin is not completed.
        """
        now = self._clock()
        with self._database.begin() as session:
            twin = session.get(Job, twin_id)
            if twin is None:
                raise no_job(twin_id)
            if twin.state is not JobState.COMPLETED:
                raise JobStateError(f"Job {twin_id} is {twin.state} and has no result to reuse.")
            move(
                session,
                job_id,
                JobState.COMPLETED,
                of=[JobState.PENDING],
                reused_from=twin_id,
                result_folder=result_folder,
                result_files=dict(result_files),
                result_rows=rows,
                result_columns=columns,
                started_at=now,
                finished_at=now,
                weights_name=twin.weights_name,
                weights_sha256=twin.weights_sha256,
                precision=twin.precision,
                device=twin.device,
                versions=twin.versions,
            )
            _copy_losses(session, of=twin_id, to=job_id)

    def reserve_result(self, job_id: str, candidates: Iterable[Path]) -> Path:
        """The result folder of a pending or running job: the one it has, else the first candidate that is free.

        Free is what neither exists on disk nor is another job's. Raises WorkspaceError when none is.
        """
        with self._database.begin() as session:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(select(func.pg_advisory_xact_lock(_RESULT_LOCK)))
            job = session.get(Job, job_id)
            if job is None:
                raise no_job(job_id)
            if job.state not in (JobState.PENDING, JobState.RUNNING):
                refuse(session, job_id, "be given a result folder")
            if job.result_folder is not None:
                return Path(job.result_folder)
            for folder in candidates:
                taken = select(Job.id).where(Job.result_folder == str(folder)).limit(1)
                if not os.path.lexists(folder) and session.scalar(taken) is None:
                    session.connection().execute(update(Job).where(Job.id == job_id).values(result_folder=str(folder)))
                    return folder
        raise WorkspaceError(f"No folder for the result of job {job_id} is free; name another one.")

    def get(self, job_id: str) -> Job:
        """The job with its sources and attempts."""
        with self._database.session() as session:
            job = session.get(Job, job_id)
        if job is None:
            raise no_job(job_id)
        return job

    def find(self, reference: str) -> Job:
        """The one job with this id, else with this name, else whose id begins so.

        Raises JobNotFoundError when there is none and AmbiguousJobError when there are several.
        """
        wanted_id = reference.lower().encode("ascii", "replace").decode()
        with self._database.session() as session:
            job = session.get(Job, wanted_id)
            if job is not None:
                return job
            newest = select(Job).order_by(*_NEWEST_FIRST).limit(_LISTED_IDS + 1)
            found = (
                session.scalars(newest.where(Job.name == reference)).all()
                or session.scalars(newest.where(Job.id.startswith(wanted_id, autoescape=True))).all()
            )
        if not reference or not found:
            raise no_job(reference)
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

    def finished_after(self, time: datetime, *, limit: int) -> list[Job]:
        """Jobs that ended after `time`, in whatever way, the first to end first; at most `limit`."""
        # Only a job that has ended has this time.
        query = select(Job).where(Job.finished_at > time).order_by(Job.finished_at, Job.id).limit(limit)
        with self._database.session() as session:
            return list(session.scalars(query))

    def completed_among(self, job_ids: Collection[str], *, before: datetime) -> list[str]:
        """Those of the ids whose jobs were completed before that time."""
        query = select(Job.id).where(Job.id.in_(job_ids), Job.state == JobState.COMPLETED, Job.finished_at < before)
        with self._database.session() as session:
            return list(session.scalars(query))

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state, 0 included."""
        query = select(Job.state, func.count()).group_by(Job.state)
        with self._database.session() as session:
            return dict.fromkeys(JobState, 0) | dict(session.execute(query).all())


def _copy_losses(session: Session, *, of: str, to: str) -> None:
    """Give a job the loss points of another, as points of no attempt, in place of its own."""
    session.connection().execute(delete(LossPoint).where(LossPoint.job_id == to))
    columns: dict[str, ColumnElement[Any]] = {column.key: column for column in LossPoint.__table__.columns}
    columns |= {"job_id": literal(to), "attempt": literal(0)}
    points = select(*columns.values()).where(LossPoint.job_id == of)
    session.connection().execute(insert(LossPoint).from_select(list(columns), points))
