"""What the database says about what is kept how long: jobs that were given up, and loss curves that were long ago."""

import time
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, func, select, tuple_, update
from sqlalchemy.orm import Session

from storage.lifecycle import Store
from storage.models import Job, JobState, LossPoint

GIVEN_UP: Final = (JobState.FAILED, JobState.CANCELLED)
POINTS_KEPT: Final = 200
"""Of a loss curve that is thinned out."""

_IDS_A_QUERY: Final = 500
_POINTS_A_TRANSACTION: Final = 5000
# Who waits for SQLite's write lock looks for it every 25 to 100 ms, and finds it only where it is let go for as long.
_GAP_SECONDS: Final = 0.05

Place = tuple[datetime, str]
"""Where a job stands among those that have ended: its end and its id."""


class RetentionStore(Store):
    """The database as the retention sees it. All methods raise DatabaseError when it does not work."""

    def jobs_among(self, job_ids: Sequence[str]) -> list[Job]:
        """The jobs with these ids; an id may be no job's."""
        jobs = list[Job]()
        with self._database.session() as session:
            for start in range(0, len(job_ids), _IDS_A_QUERY):
                jobs += session.scalars(select(Job).where(Job.id.in_(job_ids[start : start + _IDS_A_QUERY])))
        return jobs

    @contextmanager
    def given_up(self, job_id: str, *, before: datetime) -> Iterator[bool]:
        """Whether the job failed or was cancelled before then and has its pictures still in its folder.

        While the block lasts it stays so: who wants to retry the job waits. No other writer gets on either (on SQLite),
        so the block has to be short.
        """
        with self._database.begin() as session:
            query = select(Job.id).where(_given_up(job_id, before)).with_for_update()
            yield session.scalar(query) is not None

    def reject_pictures(self, job_id: str, *, before: datetime, to: Path) -> bool:
        """Note that the pictures of a job that failed or was cancelled before then lie in `to`, or soon will.

        From now on the job cannot be retried. Returns False, and notes nothing, for any other job.
        """
        with self._database.begin() as session:
            noted = session.connection().execute(
                update(Job).where(_given_up(job_id, before)).values(result_folder=str(to))
            )
            return noted.rowcount == 1

    def count_loss_points(self) -> int:
        """How many loss points there are in all."""
        with self._database.session() as session:
            return session.scalar(select(func.count()).select_from(LossPoint)) or 0

    def ended_after(self, place: Place | None, *, before: datetime, limit: int) -> list[Place]:
        """The jobs that ended before then and come after `place`, the first to end first; at most `limit`."""
        # Only a job that has ended has this time.
        query = select(Job.finished_at, Job.id).where(Job.finished_at < before)
        if place is not None:
            query = query.where(tuple_(Job.finished_at, Job.id) > place)
        with self._database.session() as session:
            found = session.execute(query.order_by(Job.finished_at, Job.id).limit(limit))
            return [(finished_at, job_id) for finished_at, job_id in found if finished_at is not None]

    def thin_losses(self, job_id: str) -> int:
        """Leave at most POINTS_KEPT points of the curve of a job that has ended, evenly spread over its iterations.

        The first and the last stay. Returns how many were removed; each of its transactions removes few, so that
        other writers go on.
        """
        with self._database.session() as session:
            query = select(LossPoint.iteration).where(LossPoint.job_id == job_id).order_by(LossPoint.iteration)
            iterations = list(session.scalars(query))
        if len(iterations) <= POINTS_KEPT:
            return 0
        kept = spread(iterations, POINTS_KEPT)
        removed = 0
        for start in range(0, len(iterations), _POINTS_A_TRANSACTION):
            if start:
                time.sleep(_GAP_SECONDS)
            with self._database.begin() as session:
                removed += _remove(session, job_id, iterations[start : start + _POINTS_A_TRANSACTION], kept)
        return removed


def spread(iterations: Sequence[int], count: int) -> set[int]:
    """At most `count` of ascending iterations, evenly spread from the first to the last of them.

    What has been chosen once is chosen again out of any part of the rest with it.
    """
    first, last = iterations[0], iterations[-1]
    wanted = (first + (last - first) * number / (count - 1) for number in range(count))
    return {_nearest(iterations, at) for at in wanted}


def _nearest(iterations: Sequence[int], at: float) -> int:
    index = bisect_left(iterations, at)
    return min(iterations[max(index - 1, 0) : index + 1], key=lambda iteration: abs(iteration - at))


def _remove(session: Session, job_id: str, iterations: Sequence[int], kept: Collection[int]) -> int:
    """Remove the points of a stretch of iterations but for those that are kept; none of a job that runs again."""
    spared = [iteration for iteration in iterations if iteration in kept]
    removed = session.connection().execute(
        delete(LossPoint).where(
            LossPoint.job_id == job_id,
            LossPoint.iteration.between(iterations[0], iterations[-1]),
            LossPoint.iteration.not_in(spared),
            select(Job.id).where(Job.id == job_id, Job.finished_at.is_not(None)).exists(),
        )
    )
    return removed.rowcount


def _given_up(job_id: str, before: datetime) -> ColumnElement[bool]:
    return and_(Job.id == job_id, Job.state.in_(GIVEN_UP), Job.finished_at < before, Job.result_folder.is_(None))
