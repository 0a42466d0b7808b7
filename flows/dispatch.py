"""Hands pending jobs to Prefect, follows what becomes of them, and takes up again those whose worker is gone. The
database and the files decide what is true; Prefect is asked and told, and may be away. The clock may be set at any
time: a lease that seems to have run out, or to last too long, is then watched by a clock that nobody sets."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from flows.errors import OrchestrationError
from flows.leases import Standstill
from flows.published import cancel_job, complete_published
from flows.reuse import reuse_or_fail
from flows.runs import Runs, RunState
from flows.settings import Settings
from storage.errors import JobStateError
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState, Night
from storage.nights import NightStore
from storage.submissions import Submission
from storage.workspace import Workspace

_BATCH: Final = 1000
_TIDY_EVERY: Final = timedelta(seconds=10)
_BURST_ROOM: Final = 2
"""Runs that must be free for a burst to take one: a single drop always finds one. Nights leave so many free."""
_SUBMISSIONS_PER_ATTEMPT: Final = 4
_LONGEST_START: Final = 5
"""Times `start_seconds` that a run has to begin when several before it did not in time."""
_NIGHT_SUBMISSIONS: Final = 20
"""Runs that one night may use up: more than a machine is started anew in a night."""
_CREDIBLE_LEASES: Final = 2
"""A lease that lasts longer from now on than so many was given before the clock was set back."""
_LOCKED_SECONDS: Final = 1.0
"""Who waits longer than so for the database's lock was kept from it."""
_EVER: Final = datetime.max.replace(tzinfo=UTC)

logger = logging.getLogger("nst")


class Dispatcher:
    """The dispatcher of one service. `on_end` is told of every job that ended since the one before."""

    def __init__(
        self,
        store: JobStore,
        workspace: Workspace,
        settings: Settings,
        runs: Runs,
        *,
        nights: NightStore,
        on_end: Callable[[Job], None],
        clock: Callable[[], datetime] = utc_now,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._nights = nights
        self._workspace = workspace
        self._settings = settings
        self._runs = runs
        self._on_end = on_end
        self._clock = clock
        self._ticks = ticks
        self._told = self._tidied = clock()
        self._told_at = ticks()
        self._told_before_the_clock_was_set = set[tuple[str, datetime | None]]()
        self._start = timedelta(seconds=settings.start_seconds)
        self._still = Standstill(ticks)

    def cycle(self) -> None:
        """Do all that can be done now; OrchestrationError, after the rest, when Prefect is away."""
        self._reuse()
        problems = []
        for step in (self._recover, self._recover_nights, self._follow_submitted, self._submit):
            try:
                step()
            except OrchestrationError as error:
                problems.append(error)
        self._tidy()
        self._tell()
        if problems:
            raise problems[0]

    def _reuse(self) -> None:
        for job in self._store.waiting_to_reuse(limit=_BATCH, now=self._clock()):
            reuse_or_fail(self._store, self._workspace, job)

    def _tidy(self) -> None:
        """Remove the folder under work/ of a job whose process died between completing it and removing that."""
        now = self._clock()
        # A clock that was set back must not end it for as long.
        if timedelta() <= now - self._tidied < _TIDY_EVERY:
            return
        self._tidied = now
        # One that is just being completed removes its folder itself.
        before = now - timedelta(seconds=self._settings.lease_seconds)
        for job_id in self._store.completed_among(self._workspace.jobs_with_folders(), before=before):
            self._workspace.discard(job_id)

    def _recover(self) -> None:
        """Jobs whose worker is dead, by its process on this machine or by a lease that has run out."""
        now, at_work = self._clock(), self._store.overdue(_EVER)
        self._still.forget_all_but({job.id for job in at_work} | {night.id for night in self._nights.running()})
        dead = [job for job in at_work if self._is_dead(job, job.attempts[-1].host, job.attempts[-1].pid, now)]
        runs = set()
        for job in dead:
            last = job.attempts[-1]
            # It may have ended by itself meanwhile, and so has its run then.
            with contextlib.suppress(JobStateError):
                self._end_attempt(job, f"The process {last.pid} on {last.host} that worked on it died.")
                runs.add(last.flow_run_id)
        for run_id in runs - {None}:
            self._runs.mark_crashed(str(run_id), "Its process died; nst takes the job up again.")

    def _is_dead(self, work: Job | Night, host: str | None, pid: int | None, now: datetime) -> bool:
        """Whether nobody works any more on a job or night that this process had.

        A process of this machine that lives and lets its lease run out may hang, or another process may have its
        number since; or the clock was set forward, or the machine slept, and it will renew its lease.
        """
        is_here = host == socket.gethostname() and pid is not None
        if pid is not None and is_here and not _alive(pid):
            return True
        has_run_out = work.lease_until is None or work.lease_until < now
        if has_run_out and not is_here:
            return True
        if not has_run_out and self._is_held(work.lease_until, now):
            return False
        began = self._ticks()
        try:
            self._store.wait_for_lock()
        finally:
            if self._ticks() - began > _LOCKED_SECONDS:
                # Nobody could renew anything until now.
                self._still.forget(work.id)
        return self._still.seconds(work.id, work.lease_until) >= self._settings.lease_seconds

    def _is_held(self, lease_until: datetime | None, now: datetime) -> bool:
        """Whether the lease has not run out, nor was given before the clock was set back."""
        longest = _CREDIBLE_LEASES * max(_LONGEST_START * self._start, timedelta(seconds=self._settings.lease_seconds))
        return lease_until is not None and now <= lease_until <= now + longest

    def _recover_nights(self) -> None:
        """Nights whose process is dead, or whose run will never begin them: another run goes on with each."""
        nights, now = self._nights.running(), self._clock()
        lost = [night for night in nights if night.pid is not None and self._is_dead(night, night.host, night.pid, now)]
        waiting = [night for night in nights if night.pid is None and night.flow_run_id is not None]
        asked = {str(night.flow_run_id) for night in (*lost, *waiting)}
        states = self._runs.states(asked) if asked else {}
        for night in lost:
            if states[str(night.flow_run_id)] is RunState.CANCELLED:
                self._nights.cancel(night.id)
            else:
                logger.warning("%s: the process of its night died. It goes on in another.", night.collection)
                self._runs.mark_crashed(str(night.flow_run_id), "Its process died; nst goes on with its nights.")
                self._nights.release(night.id, submission=night.submission)
        for night in waiting:
            held = self._is_held(night.lease_until, now)
            match states[str(night.flow_run_id)]:
                case RunState.WAITING:
                    self._note_night(night, str(night.flow_run_id))
                case RunState.CANCELLED:
                    self._nights.cancel(night.id)
                case RunState.ENDED | RunState.MISSING:
                    self._nights.release(night.id, submission=night.submission)
                case RunState.STARTING | RunState.RUNNING if not held:
                    self._runs.mark_crashed(str(night.flow_run_id), "Its process died before it began the night.")
                    self._nights.release(night.id, submission=night.submission)
        for night in self._nights.running():
            if night.flow_run_id is None and not self._is_held(night.lease_until, now):
                self._submit_night(night)

    def _submit_night(self, night: Night) -> None:
        if night.submission > _NIGHT_SUBMISSIONS:
            error = f"Its flow run ended {_NIGHT_SUBMISSIONS} times before the night did; see logs/ in the home."
            self._nights.finish(night.id, error=error)
            logger.warning("%s: the night failed: %s", night.collection, error)
        else:
            self._note_night(night, self._runs.submit_night(night.collection, night=night))

    def _note_night(self, night: Night, run_id: str) -> None:
        self._nights.note_submission(
            night.id, submission=night.submission, flow_run_id=run_id, lease_until=self._clock() + self._start
        )

    def _end_attempt(self, job: Job, sentence: str) -> None:
        if complete_published(self._store, job.id):
            logger.info("%s: %s Its result was in its place already.", job.name, sentence)
        elif job.state is JobState.CANCELLING:
            self._store.cancel(job.id, attempt=None)
        elif len(job.attempts) - job.attempts_before_retry >= self._settings.max_attempts:
            self._store.fail(
                job.id, attempt=None, error=f"{sentence} That was attempt {len(job.attempts)}; `nst retry` tries again."
            )
        else:
            logger.warning("%s: %s It goes on in another.", job.name, sentence)
            self._store.release(job.id, error=sentence)

    def _follow_submitted(self) -> None:
        """Jobs that a run has but that have not begun: is there still a run that will begin them?"""
        jobs = defaultdict[str, list[Submission]](list)
        for submission in self._store.submitted():
            jobs[submission.flow_run_id].append(submission)
        if not jobs:
            return
        now = self._clock()
        # Of those, a burst that works on one of its jobs is alive; that job is looked after in _recover.
        at_work = {job.flow_run_id for job in self._store.held(socket.gethostname()) if _alive(_pid(job))}
        for run_id, state in self._runs.states(jobs.keys()).items():
            held = run_id in at_work or all(self._is_held(job.lease_until, now) for job in jobs[run_id])
            match state:
                case RunState.WAITING:
                    start = self._time_to_start((job.submission, job.attempts) for job in jobs[run_id])
                    # Thousands may wait for days: their rows are written again when half of the time has gone.
                    if not all(self._is_held(job.lease_until, now + start / 2) for job in jobs[run_id]):
                        self._store.extend_submission(run_id, lease_until=now + start)
                case RunState.CANCELLED:
                    for job in jobs[run_id]:
                        with contextlib.suppress(JobStateError):
                            cancel_job(self._store, job.job_id)
                case RunState.ENDED | RunState.MISSING:
                    self._withdraw(jobs[run_id])
                case RunState.STARTING | RunState.RUNNING if not held:
                    self._runs.mark_crashed(run_id, "Its process died before it began the job.")
                    self._withdraw(jobs[run_id])

    def _withdraw(self, jobs: list[Submission]) -> None:
        for job in jobs:
            with contextlib.suppress(JobStateError):
                if job.submission >= _SUBMISSIONS_PER_ATTEMPT * (job.attempts + self._settings.max_attempts):
                    self._store.fail(
                        job.job_id,
                        attempt=None,
                        error=f"Its flow run ended {job.submission} times before it began; see logs/ in the home.",
                    )
                else:
                    self._store.withdraw_submission(job.job_id)

    def _submit(self) -> None:
        """Jobs of a few drops become a run each and go first, a burst becomes one run; never more runs at once than
        max_submitted."""
        room = self._room()
        if room <= 0:
            return
        burst = self._settings.burst
        waiting = self._store.waiting(limit=_BATCH, now=self._clock(), few=burst)
        # The same job is under way: its result will do.
        behind = self._store.behind_a_twin(waiting)
        waiting = [job for job in waiting if job.id not in behind]
        few = waiting if len(waiting) <= burst else [job for job in waiting if job.burst_size <= burst]
        if len(few) > burst:
            few = []
        for job in few[:room]:
            self._note([job], self._runs.submit_job(job))
        many = [job for job in waiting if job not in few]
        if many and room - len(few) >= min(_BURST_ROOM, self._settings.max_submitted):
            self._note(many, self._runs.submit_burst(many))

    def _room(self) -> int:
        """How many more runs may be open: nights take their part, but never all."""
        nights = {night.flow_run_id for night in self._nights.running()} - {None}
        others = len(self._store.open_runs() - nights)
        return (
            self._settings.max_submitted - others - min(len(nights), max(self._settings.max_submitted - _BURST_ROOM, 0))
        )

    def _note(self, jobs: list[Job], run_id: str) -> None:
        start = self._time_to_start((job.submission, len(job.attempts)) for job in jobs)
        self._store.note_submission([job.id for job in jobs], flow_run_id=run_id, lease_until=self._clock() + start)

    def _time_to_start(self, counts: Iterable[tuple[int, int]]) -> timedelta:
        """How long a run may take to begin jobs of so many submissions and attempts: longer after each run that did
        not, for the machine may be busy."""
        lost = max(submission - 1 - attempts for submission, attempts in counts)
        return self._start * min(1 + max(lost, 0), _LONGEST_START)

    def _tell(self) -> None:
        for job in self._store.finished_after(self._told, limit=_BATCH):
            if (job.id, job.finished_at) not in self._told_before_the_clock_was_set:
                self._on_end(job)
                self._told = max(self._told, job.finished_at or self._told)
        now, ticks = self._clock(), self._ticks()
        if now < self._told:
            # The clock was set back: what ends from now on seems to end before what has been told.
            since = now - timedelta(seconds=ticks - self._told_at)
            ended = self._store.finished_after(since, limit=_BATCH)
            self._told_before_the_clock_was_set = {
                (job.id, job.finished_at) for job in ended if job.finished_at and job.finished_at > now
            }
            self._told = since
        self._told_at = ticks


def _pid(job: Job) -> int:
    return job.attempts[-1].pid


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
