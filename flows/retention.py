"""What is kept how long. A job that failed or was cancelled and that nobody retried gives up its folder under work/:
what nst made is removed, what the user dropped moves to rejected/. Old loss curves are thinned out, the thumbnails of
the gallery are bounded. Results are never touched, nor is any job that waits or runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from flows.claim import manifest_of
from flows.settings import Settings
from storage import leftovers
from storage.errors import StorageError, WorkspaceError
from storage.jobs import utc_now
from storage.models import Job, JobState
from storage.retention import GIVEN_UP, Place, RetentionStore
from storage.workspace import Workspace

_EVERY: Final = timedelta(minutes=10)
# A clock that goes forward by more at once may be wrong, and what is thinned out is gone. So much later it is right.
_LEAP: Final = timedelta(days=1)
# What one call does at most, so that the jobs that wait behind it are not kept long.
_FOLDERS_A_CALL: Final = 20
_CURVES_A_CALL: Final = 500
_POINTS_A_CALL: Final = 50_000
_MEGABYTE: Final = 1_000_000
_GIGABYTE: Final = 1_000_000_000

logger = logging.getLogger("nst")


class Retention:
    """Keeps one home within the limits of its settings."""

    def __init__(
        self,
        store: RetentionStore,
        workspace: Workspace,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = utc_now,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._workspace = workspace
        self._settings = settings
        self._clock = clock
        self._ticks = ticks
        self._last_ticks = ticks()
        self._not_before = self._last_ticks
        self._last: datetime | None = None
        self._thinned: Place | None = None
        self._said = set[str]()

    def keep(self) -> None:
        """Do what is due, a bounded piece of it and at most every ten minutes.

        Raises StorageError, after the rest is done, where something could not be.
        """
        now = self._clock()
        # A clock that was set back must not end it for as long.
        if self._last is not None and timedelta() <= now - self._last < _EVERY:
            return
        if not self._trusts(now):
            return
        done, problems = list[str](), list[StorageError]()
        for step in (self._keep_work, self._keep_curves, self._keep_thumbnails):
            try:
                done += step(now, problems)
            except StorageError as error:
                problems.append(error)
        if done:
            logger.info("kept within the limits: %s", ", ".join(done))
        if problems:
            raise problems[0]

    def _trusts(self, now: datetime) -> bool:
        """Whether it may be as late as the clock says, by a clock that nobody sets."""
        ticks = self._ticks()
        if self._last is not None:
            leap = now - self._last - timedelta(seconds=ticks - self._last_ticks)
            if leap > _LEAP:
                logger.warning(
                    "The clock went forward by %.0f days at once; nothing is cleaned up for a day.", leap / _LEAP
                )
                self._not_before = ticks + _LEAP.total_seconds()
            elif leap < -_LEAP:
                self._not_before = ticks
        self._last, self._last_ticks = now, ticks
        return ticks >= self._not_before

    def _keep_work(self, now: datetime, problems: list[StorageError]) -> list[str]:
        freed = leftovers.remove_aside(self._workspace)
        jobs = self._given_up_jobs()
        moved = self._clean_old(jobs, now - timedelta(days=self._settings.keep_work_days), problems)
        freed += leftovers.remove_aside(self._workspace)
        self._shrink(jobs, self._settled(now), problems)
        freed += leftovers.remove_aside(self._workspace)
        done = [f"moved the pictures of {moved} given-up jobs from work/ to rejected/"] if moved else []
        return [*done, f"removed {freed / _MEGABYTE:.1f} MB from work/"] if freed else done

    def _keep_curves(self, now: datetime, _problems: list[StorageError]) -> list[str]:
        removed = self._thin_curves(now - timedelta(days=self._settings.keep_losses_days), self._settled(now))
        return [f"thinned out loss curves by {removed} points"] if removed else []

    def _keep_thumbnails(self, _now: datetime, _problems: list[StorageError]) -> list[str]:
        limit = round(self._settings.keep_cache_gigabytes * _GIGABYTE)
        removed = leftovers.trim(self._workspace.home / "cache", limit=limit)
        return [f"removed {removed / _MEGABYTE:.1f} MB from cache/"] if removed else []

    def _settled(self, now: datetime) -> datetime:
        """The process of a job that ended before then is no longer at its end."""
        return now - timedelta(seconds=self._settings.lease_seconds)

    def _given_up_jobs(self) -> list[Job]:
        """The failed and cancelled jobs with a folder under work/, the first to end first."""
        names = [name for name in self._workspace.jobs_with_folders() if not leftovers.is_aside(name)]
        jobs = self._store.jobs_among(names)
        for name in sorted(set(names) - {job.id for job in jobs}):
            self._say_once(f"{self._workspace.work / name} is no job's; nst leaves it alone.")
        given_up = [(job.finished_at, job.id, job) for job in jobs if job.state in GIVEN_UP and job.finished_at]
        return [job for *_, job in sorted(given_up, key=lambda entry: entry[:2])]

    def _clean_old(self, jobs: list[Job], before: datetime, problems: list[StorageError]) -> int:
        """Clean the folders of jobs that ended before then; returns of how many the pictures were moved."""
        # What a crash has cut off comes first: the place in rejected/ is theirs though it may not be there yet.
        begun = [job for job in jobs if job.result_folder is not None]
        old = [job for job in jobs if job.result_folder is None and job.finished_at and job.finished_at < before]
        cleaned = moved = 0
        for job in [*begun, *old]:
            try:
                if job.result_folder is None and not self._has_dropped_pictures(job):
                    cleaned += self._remove_copies(job, before)
                elif self._reject(job, before):
                    cleaned, moved = cleaned + 1, moved + 1
            except WorkspaceError as error:
                problems.append(error)
            if cleaned == _FOLDERS_A_CALL:
                break
        return moved

    def _has_dropped_pictures(self, job: Job) -> bool:
        return job.manifest is not None and bool(_not_made(self._workspace.job_folder(job.id), _own_names(job)))

    def _remove_copies(self, job: Job, before: datetime) -> bool:
        """Empty the folder of a job that was made from copies; returns whether anything was removed."""
        folder, copies = self._workspace.job_folder(job.id), _own_names(job)
        names = leftovers.names_in(folder)
        ours = [name for name in names if name in copies or leftovers.is_made(name)]
        if foreign := sorted(set(names) - set(ours)):
            self._say_once(f"{', '.join(foreign)} in {folder} is not nst's, which leaves it alone.")
            if not ours:
                return False
        with self._store.given_up(job.id, before=before) as given_up:
            if given_up:
                leftovers.set_aside(self._workspace, job.id, ours)
        return given_up

    def _reject(self, job: Job, before: datetime) -> bool:
        """Move what is the user's from a job's folder to rejected/ and remove the rest; False where it is retried.

        First the database says where the pictures will be, which also ends the retries; then they are moved; then the
        rest is removed. Each step may be repeated.
        """
        folder, own = self._workspace.job_folder(job.id), _own_names(job)
        if job.result_folder is None:
            to = self._workspace.rejected_folder(job.name)
            if not self._store.reject_pictures(job.id, before=before, to=to):
                return False
        else:
            to = Path(job.result_folder)
        # With what a crash has left moved: the reason must not get the name of one of them.
        names = [*_not_made(folder, own), *own.intersection(leftovers.names_in(to))]
        self._workspace.reject({folder / name: name for name in names}, to=to, reason=self._reason(job))
        if left := _not_made(folder, own):
            raise WorkspaceError(f"{', '.join(left)} in {folder} cannot be moved to {to}; move it by hand.")
        leftovers.set_aside(self._workspace, job.id, leftovers.names_in(folder))
        return True

    def _reason(self, job: Job) -> str:
        error = (job.error or "nobody knows why").rstrip(".")
        end = f"failed: {error}" if job.state is JobState.FAILED else f"was {job.state}"
        days = f"{self._settings.keep_work_days:g} days"
        return f"Job {job.id} ({job.name}) {end}. Nobody retried it for {days}; drop the pictures again."

    def _shrink(self, jobs: list[Job], settled: datetime, problems: list[StorageError]) -> None:
        """Remove what given-up jobs have made, the first to end first, until work/ is within its size."""
        limit = self._settings.keep_work_gigabytes * _GIGABYTE
        size = leftovers.size_of(self._workspace.work)
        for job in jobs:
            if size <= limit:
                return
            folder, own = self._workspace.job_folder(job.id), _own_names(job)
            made = sorted(set(leftovers.names_in(folder)) - set(_not_made(folder, own)))
            if not made:
                continue
            freed = sum(leftovers.size_of(folder / name) for name in made)
            try:
                with self._store.given_up(job.id, before=settled) as given_up:
                    if given_up:
                        leftovers.set_aside(self._workspace, job.id, made)
                        size -= freed
            except WorkspaceError as error:
                problems.append(error)
        if size > limit:
            self._say_once(
                f"{self._workspace.work} takes more than keep_work_gigabytes = {self._settings.keep_work_gigabytes:g}, "
                "and no more in it may be removed; retry what failed, drop it again, or allow more."
            )

    def _thin_curves(self, old: datetime, settled: datetime) -> int:
        """Thin out the curves of jobs that ended before `old`, and of others until there are few enough points."""
        surplus = self._store.count_loss_points() - self._settings.keep_loss_points
        removed = 0
        places = self._store.ended_after(self._thinned, before=settled, limit=_CURVES_A_CALL)
        for place in places:
            if removed >= _POINTS_A_CALL or (place[0] >= old and removed >= surplus):
                return removed
            removed += self._store.thin_losses(place[1])
            self._thinned = place
        if removed < surplus and len(places) < _CURVES_A_CALL:
            self._say_once(
                f"There are more than keep_loss_points = {self._settings.keep_loss_points} loss points though all "
                "curves are thinned out; allow more."
            )
        return removed

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            logger.warning("%s", sentence)
        self._said.add(sentence)


def _own_names(job: Job) -> frozenset[str]:
    """The names that the job's pictures, and what else was dropped with them, have in its folder."""
    return frozenset([*(source.file_name for source in job.sources), *manifest_of(job).moves.values()])


def _not_made(folder: Path, own: frozenset[str]) -> list[str]:
    """What lies in a job's folder and is not made by the job: its pictures, and what somebody put there."""
    return [name for name in leftovers.names_in(folder) if name in own or not leftovers.is_made(name)]
