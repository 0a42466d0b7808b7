"""The sensor: looks at the inbox whenever something changes there, and at intervals anyway, and keeps the dispatcher at
work in a thread beside. Events only wake it; the listing is the truth."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flows import heartbeat
from flows.checked_picture import CheckedPicture
from flows.daily_backup import DailyBackup
from flows.dashboard import publish_inbox
from flows.decoding import GuardedDecoder
from flows.dispatch import Dispatcher
from flows.errors import CollectionError, InboxMissingError, OrchestrationError, ServiceError
from flows.intake import Intake, Look
from flows.night import sentence_on
from flows.notify import Notifier
from flows.retention import Retention
from flows.runs import Runs
from flows.said_once import SaidOnce
from flows.schedule import ScheduleKeeper
from flows.settings import Settings
from flows.strays import take_back_strays
from flows.watcher import Watcher
from storage.database import open_database
from storage.errors import StorageError
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState
from storage.nights import NightStore
from storage.retention import RetentionStore
from storage.workspace import Workspace

_COALESCE_SECONDS: Final = 0.2
_DISPATCH_SECONDS: Final = 2.0

logger = logging.getLogger("nst")


class Sensor:
    """The sensor of one service; `run` works until `stop` is set."""

    def __init__(self, settings: Settings, *, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._wake = threading.Event()
        self._dispatch = threading.Event()
        self._workspace = Workspace(settings.home)
        self._waiting: frozenset[str] = frozenset()
        # A disk may be away for days, and is looked for every few seconds.
        self._troubles = {what: SaidOnce() for what in ("look", "dispatch", "beat", "schedule")}
        self._inbox_is_mounted = False
        self._strays_taken = False
        self._backup = DailyBackup(settings.database_file, keep=settings.keep_backups)
        self._schedule = ScheduleKeeper(settings)
        self._dispatcher_died = False

    def run(self) -> None:
        """Look at the inbox and dispatch until told to stop. What fails meanwhile is logged and tried again.

        Raises ServiceError when the dispatcher has died of something unforeseen.
        """
        self._workspace.create()
        with open_database(self._settings.database) as database:
            store = JobStore(database)
            decoder = GuardedDecoder(max_pixels=self._settings.max_pixels)
            intake = Intake(
                store,
                self._workspace,
                self._settings,
                check=self._checked_by(decoder),
                clock=time.monotonic,
                on_job=self._tell_new,
            )
            watcher = Watcher(self._workspace.inbox, self._wake, mode=self._settings.watcher)
            kept = RetentionStore(database)
            retention = Retention(kept, self._workspace, self._settings)
            with self._dispatching(store, NightStore(database), retention):
                try:
                    while not self._stop.is_set():
                        watcher.check()
                        with decoder:
                            look = self._look(intake, kept)
                        self._wait(look, polls=watcher.polls)
                finally:
                    watcher.close()
        heartbeat.end(self._settings.home)
        if self._dispatcher_died:
            raise ServiceError("The sensor's dispatcher died of the error above; start the sensor again.")

    def wake(self) -> None:
        """Look at once; with `stop` set before, end at once."""
        self._wake.set()
        self._dispatch.set()

    def _look(self, intake: Intake, kept: RetentionStore) -> Look | None:
        self._wake.clear()
        look = None
        with self._troubles["look"].logged(InboxMissingError, ServiceError, StorageError):
            heartbeat.beat(self._settings.home, "sensor")
            self._require_inbox_disk()
            if not self._strays_taken:
                for folder in take_back_strays(kept, self._workspace):
                    logger.warning("%s: the database knows nothing of its job, which begins anew", folder)
                self._strays_taken = True
            look = intake.look()
        if look is None:
            return None
        if look.claimed or look.rejected:
            self._dispatch.set()
        reasons = frozenset(waiting.reason for waiting in look.waiting)
        for reason in sorted(reasons - self._waiting):
            logger.info("inbox: %s", reason)
        self._waiting = reasons
        return look

    def _checked_by(self, decoder: GuardedDecoder) -> Callable[[Path], CheckedPicture]:
        def check(path: Path) -> CheckedPicture:
            # A look at many large pictures takes long, and is no sign of death.
            heartbeat.beat(self._settings.home, "sensor")
            return decoder.check(path)

        return check

    def _require_inbox_disk(self) -> None:
        """Raise InboxMissingError when the inbox was a disk of its own and now is the folder that was beneath."""
        is_mounted = os.path.ismount(self._workspace.inbox.resolve())
        if self._inbox_is_mounted and not is_mounted:
            raise InboxMissingError(
                f"{self._workspace.inbox}: the disk of the inbox is away, and what lies beneath it is no drop; mount "
                "it again, or start the service again to go on with the folder as it is."
            )
        self._inbox_is_mounted = is_mounted

    def _wait(self, look: Look | None, *, polls: bool) -> None:
        longest = self._settings.settle_seconds if polls or look is None else self._settings.rescan_seconds
        due = longest if look is None else min(longest, max(look.next_look - time.monotonic(), 0.0))
        # A burst of events is one reason to look.
        if self._wake.wait(due):
            self._stop.wait(_COALESCE_SECONDS)

    @contextmanager
    def _dispatching(self, store: JobStore, nights: NightStore, retention: Retention) -> Iterator[None]:
        with Notifier(self._settings.notify or (), on=self._settings.notify_on.split()) as notifier:

            def on_end(job: Job) -> None:
                tell_end(job)
                notifier.job_ended(job)

            dispatcher = Dispatcher(
                store, self._workspace, self._settings, Runs(self._settings.home), nights=nights, on_end=on_end
            )
            ended_nights = EndedNights(nights, notifier)
            thread = threading.Thread(
                target=self._keep_dispatching, args=(dispatcher, retention, ended_nights), name="dispatcher"
            )
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                self._dispatch.set()
                thread.join()

    def _keep_dispatching(self, dispatcher: Dispatcher, retention: Retention, ended_nights: EndedNights) -> None:
        shown = frozenset[str]()
        try:
            while not self._stop.is_set():
                self._dispatch.clear()
                with self._troubles["beat"].logged(StorageError):
                    heartbeat.beat(self._settings.home, "dispatcher")
                with self._troubles["dispatch"].logged(
                    OrchestrationError, StorageError, more=" Jobs wait until it does."
                ):
                    ended_nights.tell()
                    dispatcher.cycle()
                    if (waiting := self._waiting) != shown:
                        publish_inbox(sorted(waiting))
                        shown = waiting
                with self._troubles["schedule"].logged(
                    OrchestrationError, CollectionError, more=" The schedule of the nights is looked after then."
                ):
                    self._schedule.keep()
                self._keep_limits(retention)
                self._backup.look()
                self._dispatch.wait(_DISPATCH_SECONDS)
        finally:
            # A sensor that claims and never submits would go unnoticed; one that has ended is started again.
            self._dispatcher_died = not self._stop.is_set()
            self._stop.set()
            self._wake.set()

    @staticmethod
    def _keep_limits(retention: Retention) -> None:
        try:
            retention.keep()
        except StorageError as error:
            logger.warning("%s", error)

    @staticmethod
    def _tell_new(job: Job) -> None:
        if job.state is not JobState.REJECTED:
            logger.info("%s: waits for its turn (job %s)", job.name, job.id)


class EndedNights:
    """Tells the notifier of each night that ended since this was made, whatever process has ended it."""

    def __init__(self, nights: NightStore, notifier: Notifier) -> None:
        self._nights = nights
        self._notifier = notifier
        self._told = utc_now()

    def tell(self) -> None:
        """Tell of those that ended since the last call."""
        for night in self._nights.finished_after(self._told):
            self._notifier.night_ended(sentence_on(night))
            self._told = night.finished_at or self._told


def tell_end(job: Job) -> None:
    """One line about a job that has ended."""
    match job.state:
        case JobState.COMPLETED:
            again = " (done before)" if job.reused_from else ""
            logger.info("%s: done%s, %s", job.name, again, job.result_folder)
        case JobState.REJECTED:
            logger.warning("%s: rejected to %s: %s", job.name, job.result_folder, job.error)
        case JobState.FAILED:
            logger.warning("%s: failed: %s", job.name, job.error)
        case _:
            logger.info("%s: %s", job.name, job.state)
