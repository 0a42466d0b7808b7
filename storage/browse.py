"""What the gallery asks: pages of jobs, a loss curve thinned to what can be drawn, collections and their nights. Every
question stays quick at 100,000 jobs: lists read an index and only the columns that are shown."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, func, select, union_all
from sqlalchemy.orm import InstrumentedAttribute, Session

from storage.database import Database
from storage.lifecycle import no_job
from storage.models import Job, JobState, LossPoint, Night

_MAPPED_BYTES: Final = 4 << 30
# Found by name, so many are put in order here; of more, the first ones are soon met in the index of their order.
_FEW: Final = 1000
_NEWEST_FIRST: Final = (Job.created_at.desc(), Job.id.desc())


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs are wanted: all that fit what is given. `text` is a part of the name; case is ignored."""

    state: JobState | None = None
    preset: str | None = None
    collection: str | None = None
    text: str = ""


@dataclass(frozen=True)
class JobLine:
    """What a list shows of a job; rows and columns are those of the result."""

    id: str
    name: str
    state: JobState
    preset: str
    collection: str | None
    created_at: datetime
    rows: int | None
    columns: int | None


@dataclass(frozen=True)
class JobPage:
    """The jobs of page `number` of `pages`, both from 1, and how many there are on all pages."""

    jobs: Sequence[JobLine]
    total: int
    number: int
    pages: int


@dataclass(frozen=True)
class CollectionLine:
    """What a list shows of a collection: how many jobs, the newest of them, and its last night."""

    name: str
    jobs: int
    newest: Sequence[JobLine]
    night: Night | None


_LINE: Final[tuple[InstrumentedAttribute[Any], ...]] = (
    Job.id,
    Job.name,
    Job.state,
    Job.preset,
    Job.collection,
    Job.created_at,
    Job.result_rows,
    Job.result_columns,
)


class Browser:
    """Reads one database. All methods raise DatabaseError when it does not work; what they return is detached."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def jobs(self, wanted: JobFilter, *, page: int, size: int) -> JobPage:
        """The jobs that are wanted, newest first, `size` a page; a page after the last one is the last one."""
        with self._database.session() as session:
            fit = _conditions(session, wanted)
            few = _few_that_fit(session, fit) if wanted.text else None
            total = _count(session, fit) if few is None else len(few)
            pages = max(1, ceil(total / size))
            number = min(max(page, 1), pages)
            first = (number - 1) * size
            # The offset is walked in the index alone; only the rows of the page are read whole.
            page_ids = select(Job.id).where(*fit).order_by(*_NEWEST_FIRST).limit(size).offset(first)
            ids: Any = page_ids if few is None else few[first : first + size]
            rows = session.execute(select(*_LINE).where(Job.id.in_(ids)).order_by(*_NEWEST_FIRST))
            return JobPage([_line(row) for row in rows], total, number, pages)

    def presets(self) -> list[str]:
        """The presets of all jobs, by name."""
        with self._database.session() as session:
            return list(session.scalars(select(Job.preset).group_by(Job.preset).order_by(Job.preset)))

    def collection_names(self) -> list[str]:
        """The collections that have jobs, by name."""
        query = select(Job.collection).where(Job.collection.is_not(None)).group_by(Job.collection)
        with self._database.session() as session:
            return [name for name in session.scalars(query.order_by(Job.collection)) if name is not None]

    def job(self, job_id: str) -> Job:
        """The job with its sources and attempts; raises JobNotFoundError."""
        with self._database.session() as session:
            job = session.get(Job, job_id)
        if job is None:
            raise no_job(job_id)
        return job

    def has_job(self, job_id: str) -> bool:
        """Whether there is such a job."""
        with self._database.session() as session:
            return session.scalar(select(Job.id).where(Job.id == job_id)) is not None

    def losses(self, job_id: str, *, points: int) -> list[LossPoint]:
        """About `points` points of a loss curve at even distances, the first and the last among them; all of fewer."""
        with self._database.session() as session:
            counted = select(func.count(), func.max(LossPoint.iteration)).where(LossPoint.job_id == job_id)
            count, last = session.execute(counted).one()
            query = select(LossPoint).where(LossPoint.job_id == job_id)
            if count > points:
                # Named one by one they are looked up; a condition on the iteration would read them all.
                query = query.where(LossPoint.iteration.in_({*range(0, last, max(1, ceil(last / points))), last}))
            return list(session.scalars(query.order_by(LossPoint.iteration)))

    def collections(self, *, also: Sequence[str] = (), newest: int) -> list[CollectionLine]:
        """All collections with jobs or nights, and those of `also`, by name, with so many of their newest jobs."""
        number = func.row_number().over(
            partition_by=Night.collection, order_by=(Night.started_at.desc(), Night.id.desc())
        )
        ranked = select(Night.id, number.label("number")).subquery()
        last_nights = select(Night).join(ranked, Night.id == ranked.c.id).where(ranked.c.number == 1)
        counted = select(Job.collection, func.count()).where(Job.collection.is_not(None)).group_by(Job.collection)
        with self._database.session() as session:
            nights = {night.collection: night for night in session.scalars(last_nights)}
            counts: dict[str, int] = {str(name): count for name, count in session.execute(counted)}
            jobs: dict[str, list[JobLine]] = defaultdict(list)
            if counts:
                for row in session.execute(_newest_of(sorted(counts), newest)):
                    jobs[row.collection].append(_line(row))
        names = sorted({*nights, *counts, *also})
        return [CollectionLine(name, counts.get(name, 0), jobs[name], nights.get(name)) for name in names]

    def nights(self, collection: str, *, limit: int) -> list[Night]:
        """The nights of a collection, newest first."""
        query = select(Night).where(Night.collection == collection)
        with self._database.session() as session:
            return list(session.scalars(query.order_by(Night.started_at.desc(), Night.id.desc()).limit(limit)))

    def night(self, night_id: str) -> Night | None:
        """The night with this id, if there is one."""
        with self._database.session() as session:
            return session.get(Night, night_id)


def _conditions(session: Session, wanted: JobFilter) -> list[ColumnElement[bool]]:
    equal = ((Job.state, wanted.state), (Job.preset, wanted.preset), (Job.collection, wanted.collection))
    conditions = [column == value for column, value in equal if value is not None]
    on_sqlite = session.get_bind().dialect.name == "sqlite"
    if wanted.text:
        # SQLite's LIKE ignores case by itself, in half the time.
        contains = Job.name.contains if on_sqlite else Job.name.icontains
        conditions.append(contains(wanted.text, autoescape=True))
    if on_sqlite and len(conditions) + bool(wanted.text) > 1:
        # No index has all that is asked for: rows that are mapped into memory are read in half the time.
        session.connection().exec_driver_sql(f"PRAGMA mmap_size={_MAPPED_BYTES}")
    return conditions


def _count(session: Session, fit: Sequence[ColumnElement[bool]]) -> int:
    return session.scalar(select(func.count()).select_from(Job).where(*fit)) or 0


def _few_that_fit(session: Session, fit: Sequence[ColumnElement[bool]]) -> list[str] | None:
    """The ids of all jobs that fit, newest first, from one look at all names; None where there are many."""
    found = session.execute(select(Job.created_at, Job.id).where(*fit).limit(_FEW + 1)).all()
    if len(found) > _FEW:
        return None
    return [job_id for _, job_id in sorted(((row.created_at, row.id) for row in found), reverse=True)]


def _newest_of(collections: Sequence[str], newest: int) -> Any:
    """The newest jobs of each collection in one statement, which walks the index of each for so many rows."""
    parts = [
        select(select(*_LINE).where(Job.collection == name).order_by(*_NEWEST_FIRST).limit(newest).subquery())
        for name in collections
    ]
    return union_all(*parts)


def _line(row: Row[Any]) -> JobLine:
    return JobLine(*tuple(row))
