"""The sensor: looks at the inbox whenever something changes there, and at intervals anyway, and keeps the dispatcher at
work in a thread beside. Events only wake it; the listing is the truth. Where the system tells of no changes
(network folders, used-up limits) it looks more often instead."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from flows.dashboard import publish_inbox
from flows.decoding import GuardedDecoder
from flows.dispatch import Dispatcher
from flows.errors import CollectionError, InboxMissingError, OrchestrationError, ServiceError
from flows.intake import Intake, Look
from flows.retention import Retention
from flows.runs import Runs
from flows.schedule import ScheduleKeeper
from flows.settings import Settings
from storage.database import open_database
from storage.errors import StorageError
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.nights import NightStore
from storage.retention import RetentionStore
from storage.workspace import Workspace

_COALESCE_SECONDS: Final = 0.2
_DISPATCH_SECONDS: Final = 2.0
# Where no events come, since the kernel does not see what other machines write.
_BLIND: Final = ("nfs", "cifs", "smb", "fuse", "9p", "vboxsf", "virtiofs", "ncpfs", "afs", "ceph", "gluster", "prl_fs")

logger = logging.getLogger("nst")


class Watcher:
    """Sets `wake` whenever something changes in a folder; `check` mends it where it has broken."""

    def __init__(self, folder: Path, wake: threading.Event, *, mode: str) -> None:
        self._folder = folder
        self._wake = wake
        self._polls = mode == "polling" or (mode == "auto" and is_blind(folder))
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        if self._polls:
            logger.info("%s tells of no changes; it is looked at every few seconds", folder)

    @property
    def polls(self) -> bool:
        """Whether nothing will be told, and the folder has to be looked at often."""
        return self._polls

    def check(self) -> None:
        """Watch the folder that is there now, with threads that live."""
        if self._polls:
            return
        try:
            status = self._folder.stat()
        except OSError:
            # The folder that comes back may have the same number.
            self.close()
            return
        place = (status.st_dev, status.st_ino)
        if self._observer is not None and place == self._watched and self._is_alive(self._observer):
            return
        self.close()
        observer = Observer()
        observer.schedule(_Waker(self._wake), str(self._folder), recursive=True)
        try:
            observer.start()
        except OSError as error:
            # Of a native watcher's limits one hits the service when another program has used them up.
            logger.warning("%s cannot be watched (%s); it is looked at every few seconds", self._folder, error)
            self._polls = True
            return
        self._observer, self._watched = observer, place
        self._wake.set()

    def close(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    @staticmethod
    def _is_alive(observer: BaseObserver) -> bool:
        return observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        # Reading the inbox is an event too, and must not lead to the next reading.
        if event.event_type not in ("opened", "closed_no_write"):
            self._wake.set()


def is_blind(folder: Path, *, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether the folder lies on a filesystem of which the kernel does not see all changes."""
    if not mounts.is_file():
        return False
    folder = folder.resolve()
    best, kind = "", ""
    for line in mounts.read_text(errors="replace").splitlines():
        _, place, filesystem, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        # Of two at one place the later hides the earlier.
        if folder.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, filesystem
    return kind.startswith(_BLIND)


class Sensor:
    """The sensor of one service; `run` works until `stop` is set."""

    def __init__(self, settings: Settings, *, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._wake = threading.Event()
        self._dispatch = threading.Event()
        self._workspace = Workspace(settings.home)
        self._waiting: frozenset[str] = frozenset()
        self._schedule = ScheduleKeeper(settings)
        self._unplanned = ""
        self._dispatcher_died = False

    def run(self) -> None:
        """Look at the inbox and dispatch until told to stop. What fails meanwhile is logged and tried again.

        Raises ServiceError when the dispatcher has died of something unforeseen.
        """
        self._workspace.create()
        with open_database(self._workspace.database_path) as database:
            store = JobStore(database)
            decoder = GuardedDecoder(max_pixels=self._settings.max_pixels)
            intake = Intake(
                store,
                self._workspace,
                self._settings,
                check=decoder.check,
                clock=time.monotonic,
                on_job=self._tell_new,
            )
            watcher = Watcher(self._workspace.inbox, self._wake, mode=self._settings.watcher)
            retention = Retention(RetentionStore(database), self._workspace, self._settings)
            with self._dispatching(store, NightStore(database), retention):
                try:
                    while not self._stop.is_set():
                        watcher.check()
                        with decoder:
                            look = self._look(intake)
                        self._wait(look, polls=watcher.polls)
                finally:
                    watcher.close()
        if self._dispatcher_died:
            raise ServiceError("The sensor's dispatcher died of the error above; start the sensor again.")

    def wake(self) -> None:
        """Look at once; with `stop` set before, end at once."""
        self._wake.set()
        self._dispatch.set()

    def _look(self, intake: Intake) -> Look | None:
        self._wake.clear()
        try:
            look = intake.look()
        except (InboxMissingError, ServiceError, StorageError) as error:
            logger.warning("%s", error)
            return None
        if look.claimed or look.rejected:
            self._dispatch.set()
        reasons = frozenset(waiting.reason for waiting in look.waiting)
        for reason in sorted(reasons - self._waiting):
            logger.info("inbox: %s", reason)
        self._waiting = reasons
        return look

    def _wait(self, look: Look | None, *, polls: bool) -> None:
        longest = self._settings.settle_seconds if polls or look is None else self._settings.rescan_seconds
        due = longest if look is None else min(longest, max(look.next_look - time.monotonic(), 0.0))
        # A burst of events is one reason to look.
        if self._wake.wait(due):
            self._stop.wait(_COALESCE_SECONDS)

    @contextmanager
    def _dispatching(self, store: JobStore, nights: NightStore, retention: Retention) -> Iterator[None]:
        dispatcher = Dispatcher(
            store, self._workspace, self._settings, Runs(self._settings.home), nights=nights, on_end=tell_end
        )
        thread = threading.Thread(target=self._keep_dispatching, args=(dispatcher, retention), name="dispatcher")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._dispatch.set()
            thread.join()

    def _keep_dispatching(self, dispatcher: Dispatcher, retention: Retention) -> None:
        said, shown = "", frozenset[str]()
        try:
            while not self._stop.is_set():
                self._dispatch.clear()
                try:
                    dispatcher.cycle()
                    if (waiting := self._waiting) != shown:
                        publish_inbox(sorted(waiting))
                        shown = waiting
                except (OrchestrationError, StorageError) as error:
                    if str(error) != said:
                        logger.warning("%s Jobs wait until it does.", error)
                    said = str(error)
                else:
                    said = ""
                self._keep_schedule()
                self._keep_limits(retention)
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

    def _keep_schedule(self) -> None:
        try:
            self._schedule.keep()
        except (OrchestrationError, CollectionError) as error:
            if str(error) != self._unplanned:
                logger.warning("%s The schedule of the nights is looked after then.", error)
            self._unplanned = str(error)
        else:
            self._unplanned = ""

    @staticmethod
    def _tell_new(job: Job) -> None:
        if job.state is not JobState.REJECTED:
            logger.info("%s: waits for its turn (job %s)", job.name, job.id)


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
