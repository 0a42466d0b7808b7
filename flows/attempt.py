"""One try at a job while it runs: its files and settings, its lease, and the ways in which it can be told to stop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from prefect.logging import get_run_logger
from prefect.runtime import deployment

from flows import cancellations
from flows.errors import JobCancelledError, JobInterruptedError, OrchestrationError
from flows.interruption import stop_if_interrupted
from flows.leases import RENEWALS_A_LEASE, keeping
from flows.runs import Asker, RunState
from flows.settings import Settings
from nst_engine.config import TransferConfig
from storage import models
from storage.errors import DatabaseError, JobStateError
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState
from storage.workspace import Workspace

Phase = Literal["preprocess", "optimise", "deprocess", "publish"]

burst_stop: ContextVar[threading.Event | None] = ContextVar("burst_stop", default=None)
"""Set while a job runs as part of a burst: the event that tells it to stop and be taken up again later."""

night_run: ContextVar[str | None] = ContextVar("night_run", default=None)
"""Set while a night runs: the id of its flow run, which has the jobs of the bulk runs within."""


def is_service_run() -> bool:
    """Whether the service has started this flow run; else `nst run` has, and waits for it."""
    return deployment.id is not None or burst_stop.get() is not None


@dataclass(frozen=True)
class Attempt:
    """One try at a job and what it works with."""

    job: Job
    number: int
    store: JobStore
    workspace: Workspace
    settings: Settings

    @property
    def config(self) -> TransferConfig:
        """The job's settings."""
        return TransferConfig.model_validate(self.job.config)

    @property
    def folder(self) -> Path:
        """Where the job's files are until it ends."""
        return self.workspace.job_folder(self.job.id)

    @property
    def checkpoint(self) -> Path:
        """The state that a later attempt goes on from."""
        return self.folder / "checkpoint"

    @property
    def lease(self) -> timedelta:
        """How long the job is ours without another sign of life."""
        return timedelta(seconds=self.settings.lease_seconds)

    def recorded(self) -> models.Attempt:
        """This attempt as the database has it now."""
        return self.store.get(self.job.id).attempts[self.number - 1]

    def enter(self, phase: Phase) -> None:
        """Note the phase and renew the lease; JobCancelledError when somebody has cancelled the job."""
        stop_if_interrupted()
        self.store.enter_phase(self.job.id, attempt=self.number, phase=phase)
        self.renew()

    def renew(self) -> None:
        """Renew the lease; JobCancelledError when somebody has cancelled the job."""
        state = self.store.renew(self.job.id, attempt=self.number, lease_until=utc_now() + self.lease)
        if state is JobState.CANCELLING:
            raise JobCancelledError(f"Job {self.job.name} was cancelled.")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Renew the lease from another thread for the length of a block of a task that cannot do so itself."""
        logger = get_run_logger()

        def renew(lease_until: datetime) -> None:
            # A job that is no longer ours stops where the watch looks next, or where it is completed.
            with contextlib.suppress(JobStateError):
                self.store.renew(self.job.id, attempt=self.number, lease_until=lease_until)

        def warn(error: DatabaseError) -> None:
            logger.warning("%s The job may be taken for dead and run by another.", error)

        with keeping(renew, seconds=self.settings.lease_seconds, warn=warn):
            yield

    def discard_copies(self) -> None:
        """Remove the files of a job that was made from copies; pictures that were dropped stay for another try."""
        if self.job.manifest is None:
            self.workspace.discard(self.job.id)


class Watch:
    """Looks, whenever `look` is called, whether the attempt has to stop, and keeps its lease."""

    def __init__(self, attempt: Attempt, cancelled_in_prefect: threading.Event) -> None:
        self._attempt = attempt
        self._cancelled_in_prefect = cancelled_in_prefect
        self._stop = burst_stop.get()
        self._renewed = time.monotonic()

    def look(self) -> None:
        """Raise JobCancelledError or JobInterruptedError when the job has to stop here."""
        stop_if_interrupted()
        job = self._attempt.job
        if self._cancelled_in_prefect.is_set():
            raise JobCancelledError(f"Job {job.name} was cancelled in Prefect.")
        if self._stop is not None and self._stop.is_set():
            raise JobInterruptedError(f"Job {job.name} was interrupted by the end of its process.")
        now = time.monotonic()
        if now - self._renewed >= self._attempt.settings.lease_seconds / RENEWALS_A_LEASE:
            self._attempt.renew()
            self._renewed = now
        elif self._attempt.store.state_of(job.id) is JobState.CANCELLING:
            raise JobCancelledError(f"Job {job.name} was cancelled.")


@contextmanager
def watching(attempt: Attempt, *, run_id: str | None, warn: Callable[[str], None]) -> Iterator[Watch]:
    """Watch over an attempt whose flow run, where it has one, may be cancelled through Prefect's API.

    Prefect ends the process of a cancelled run, but not the run of a job inside a burst, nor one whose flow worker
    has died: so the API is asked.
    """
    if run_id is None:
        yield Watch(attempt, threading.Event())
        return
    with cancellations.watched(run_id, warn=warn) as cancelled:
        yield Watch(attempt, cancelled)


def cancelled_in_prefect(run_id: str) -> bool:
    """Whether somebody has cancelled this flow run, as far as Prefect can tell."""
    try:
        with contextlib.closing(Asker()) as asker:
            return asker.states([run_id])[run_id] is RunState.CANCELLED
    except OrchestrationError:
        return False
