"""Hands pending jobs to Prefect, follows what becomes of them, and takes up again those whose worker is gone. The
database and the files decide what is true; Prefect is asked and told, and may be away."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from flows.errors import OrchestrationError
from flows.reuse import reuse_or_fail
from flows.runs import Runs, RunState
from flows.settings import Settings
from storage.errors import JobStateError
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState, Night
from storage.nights import NightStore
from storage.workspace import Workspace

_BATCH: Final = 1000
_TIDY_EVERY: Final = timedelta(seconds=10)
_BURST_ROOM: Final = 2
"""Runs that must be free for a burst to take one: a single drop always finds one. Nights leave so many free."""
_SUBMISSIONS_PER_ATTEMPT: Final = 4
_NIGHT_SUBMISSIONS: Final = 20
"""Runs that one night may use up: more than a machine is started anew in a night."""

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
    ) -> None:
        self._store = store
        self._nights = nights
        self._workspace = workspace
        self._settings = settings
        self._runs = runs
        self._on_end = on_end
        self._clock = clock
        self._told = self._tidied = clock()
        self._start = timedelta(seconds=settings.start_seconds)

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
        waiting = self._store.waiting(limit=_BATCH, now=self._clock())
        done = self._store.completed_fingerprints({job.fingerprint for job in waiting if job.fingerprint})
        for job in (job for job in waiting if job.fingerprint in done):
            reuse_or_fail(self._store, self._workspace, job)

    def _tidy(self) -> None:
        """Remove the folder under work/ of a job whose process died between completing it and removing that."""
        now = self._clock()
        if now - self._tidied < _TIDY_EVERY:
            return
        self._tidied = now
        # One that is just being completed removes its folder itself.
        before = now - timedelta(seconds=self._settings.lease_seconds)
        for job_id in self._store.completed_among(self._workspace.jobs_with_folders(), before=before):
            self._workspace.discard(job_id)

    def _recover(self) -> None:
        """Jobs whose worker is dead, by its process on this machine or by a lease that has run out."""
        dead = {job.id: job for job in self._store.held(socket.gethostname()) if not _alive(_pid(job))}
        dead |= {job.id: job for job in self._store.overdue(self._clock())}
        runs = set()
        for job in dead.values():
            last = job.attempts[-1]
            # It may have ended by itself meanwhile, and so has its run then.
            with contextlib.suppress(JobStateError):
                self._end_attempt(job, f"The process {last.pid} on {last.host} that worked on it died.")
                runs.add(last.flow_run_id)
        for run_id in runs - {None}:
            self._runs.mark_crashed(str(run_id), "Its process died; nst takes the job up again.")

    def _recover_nights(self) -> None:
        """Nights whose process is dead, or whose run will never begin them: another run goes on with each."""
        nights, now = self._nights.running(), self._clock()
        lost = [night for night in nights if night.pid is not None and _is_dead(night, now)]
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
            held = night.lease_until is not None and night.lease_until >= now
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
            if night.flow_run_id is None and (night.lease_until is None or night.lease_until < now):
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
        if job.state is JobState.CANCELLING:
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
        jobs = defaultdict[str, list[Job]](list)
        for job in self._store.submitted():
            jobs[str(job.flow_run_id)].append(job)
        if not jobs:
            return
        now = self._clock()
        for run_id, state in self._runs.states(jobs.keys()).items():
            held = all(job.lease_until is not None and job.lease_until >= now for job in jobs[run_id])
            match state:
                case RunState.WAITING:
                    self._store.extend_submission(run_id, lease_until=now + self._start)
                case RunState.CANCELLED:
                    for job in jobs[run_id]:
                        with contextlib.suppress(JobStateError):
                            self._store.ask_cancel(job.id)
                case RunState.ENDED | RunState.MISSING:
                    self._withdraw(jobs[run_id])
                case RunState.STARTING | RunState.RUNNING if not held:
                    self._runs.mark_crashed(run_id, "Its process died before it began the job.")
                    self._withdraw(jobs[run_id])

    def _withdraw(self, jobs: list[Job]) -> None:
        for job in jobs:
            with contextlib.suppress(JobStateError):
                if job.submission >= _SUBMISSIONS_PER_ATTEMPT * (len(job.attempts) + self._settings.max_attempts):
                    self._store.fail(
                        job.id,
                        attempt=None,
                        error=f"Its flow run ended {job.submission} times before it began; see logs/ in the home.",
                    )
                else:
                    self._store.withdraw_submission(job.id)

    def _submit(self) -> None:
        """A few jobs become a run each, a burst becomes one; never more runs at once than max_submitted."""
        waiting = self._store.waiting(limit=_BATCH, now=self._clock())
        # The same job is under way: its result will do.
        behind = self._store.behind_a_twin(waiting)
        waiting = [job for job in waiting if job.id not in behind]
        room = self._room()
        if len(waiting) > self._settings.burst and room >= min(_BURST_ROOM, self._settings.max_submitted):
            run_id = self._runs.submit_burst(waiting)
            self._note(waiting, run_id)
        elif len(waiting) <= self._settings.burst:
            for job in waiting[: max(room, 0)]:
                self._note([job], self._runs.submit_job(job))

    def _room(self) -> int:
        """How many more runs may be open: nights take their part, but never all."""
        nights = {night.flow_run_id for night in self._nights.running()} - {None}
        others = len(self._store.open_runs() - nights)
        return (
            self._settings.max_submitted - others - min(len(nights), max(self._settings.max_submitted - _BURST_ROOM, 0))
        )

    def _note(self, jobs: list[Job], run_id: str) -> None:
        self._store.note_submission(
            [job.id for job in jobs], flow_run_id=run_id, lease_until=self._clock() + self._start
        )

    def _tell(self) -> None:
        for job in self._store.finished_after(self._told, limit=_BATCH):
            self._on_end(job)
            self._told = max(self._told, job.finished_at or self._told)


def _is_dead(night: Night, now: datetime) -> bool:
    if night.host == socket.gethostname() and night.pid is not None and not _alive(night.pid):
        return True
    return night.lease_until is None or night.lease_until < now


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
