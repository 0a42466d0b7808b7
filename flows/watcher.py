"""Watches the inbox: wakes the sensor whenever something changes there. Where the system tells of no changes (network
folders, used-up limits) it says so once, and the folder has to be looked at often."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

_AGAIN_SECONDS: Final = 60.0
"""How long a folder is polled that could not be watched before that is tried again."""
# Where no events come, since the kernel does not see what other machines write.
_BLIND: Final = ("nfs", "cifs", "smb", "fuse", "9p", "vboxsf", "virtiofs", "ncpfs", "afs", "ceph", "gluster", "prl_fs")
# Of a native watcher's limits one hits the service when another program has used them up.
_LIMITS: Final = {errno.EMFILE: "fs.inotify.max_user_instances", errno.ENOSPC: "fs.inotify.max_user_watches"}

logger = logging.getLogger("nst")


class Watcher:
    """Sets `wake` whenever something changes in a folder; `check` mends it where it has broken."""

    def __init__(
        self, folder: Path, wake: threading.Event, *, mode: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._wake = wake
        self._clock = clock
        self._blind = mode == "polling" or (mode == "auto" and is_blind(folder))
        self._refused_at: float | None = None
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        if self._blind:
            logger.info("%s tells of no changes; it is looked at every few seconds", folder)

    @property
    def polls(self) -> bool:
        """Whether nothing will be told, and the folder has to be looked at often."""
        return self._blind or self._refused_at is not None

    def check(self) -> None:
        """Watch the folder that is there now, with threads that live."""
        if self._blind or (self._refused_at is not None and self._clock() - self._refused_at < _AGAIN_SECONDS):
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
        try:
            observer = _observe(self._folder, self._wake)
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell_refused(error)
            self._refused_at = self._clock()
            return
        if self._refused_at is not None:
            logger.info("%s can be watched again", self._folder)
        self._observer, self._watched, self._refused_at = observer, place, None
        self._wake.set()

    def close(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def _tell_refused(self, error: OSError) -> None:
        if self._refused_at is None:
            limit = _LIMITS.get(error.errno or 0)
            logger.warning(
                "%s cannot be watched (%s)%s; it is looked at every few seconds",
                self._folder,
                error.strerror or error,
                f", raise {limit}" if limit else "",
            )

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


def _observe(folder: Path, wake: threading.Event) -> BaseObserver:
    """A started observer; raises OSError where the system gives none, and then leaves no thread behind."""
    observer = Observer()
    try:
        observer.schedule(_Waker(wake), str(folder), recursive=True)
        observer.start()
    except OSError:
        observer.stop()
        raise
    return observer
